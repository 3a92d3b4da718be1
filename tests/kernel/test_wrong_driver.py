"""A driver that answers wrongly in every field of its protocol, one at a time: it is ended with a line that says what was
wrong, its successor goes on, and nothing that was acknowledged is lost.

What the messages may become is made of the records (wrong_driver.py). Of each field one value that the decoder takes is
tried in a simulation, and more if the kernel takes that one; LLMASOS_WHOLE=1 tries all values in all messages: minutes.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
import zlib
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmasos.drivers import protocol
from llmasos.drivers.protocol import FromDriver, Note, Progress
from llmasos.simulator import simulate, slots
from llmasos.simulator import simulation as simulator
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.records import Kind, Sampler, Signal, State
from llmasos.syscalls.table import (
    Call,
    Checkpoint,
    Decode,
    Evict,
    Kill,
    Ps,
    Read,
    Restore,
    Setsched,
    Spawn,
)
from tests.kernel.wrong_driver import MESSAGES, Lie, Wrong, liar, made, wrongs

WHOLE = bool(os.environ.get("LLMASOS_WHOLE"))
pytestmark = pytest.mark.timeout(3600 if WHOLE else 300)
PROMPT = [5, 6, 7, 8] * 9
HOT = Sampler(temperature=1.0, seed=3)
LIMIT = 900.0  # virtual seconds in which a call must be answered, whatever a driver says

# Fields in which nothing of the right type is wrong: both truths may be, or somebody else judges it.
FREE = {
    "Loaded.guesses": "",
    "Loaded.changed": "",
    "Failed.broken": "",
    "Heartbeat.busy": "",
    "Inspected.head": "the kernel reads it as the bytes of a stranger's file (tests/kernel/test_checkpoint.py)",
    "StepDone.results[].logprobs": "none, where none were asked for",
}
TOKENS = ("StepDone.results[].token", "StepDone.results[].more")  # a wrong one that a model could have said is believed


class Life:
    """A short life of two devices, in which drivers send every kind of message that they send by themselves. A call may
    be refused, with a reason; each is answered. `acknowledged` are the tokens of answers, by pid and position. Until the
    lie is told it is the life in which none is, whose invariants are checked once; and no life waits for the disk."""

    def __init__(self, lie: Lie, image: str) -> None:
        self.lie = lie
        self.acknowledged: dict[int, dict[int, int]] = defaultdict(dict)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(simulator, "Driver", liar(lie))
            patch.setattr(os, "fsync", lambda descriptor: None)
            options = {"swap": slots(16), "guess_rows": 8, "memory": "8m"}
            self.sim = simulate(24, devices=2, options=options, restart_max=1.0, checked=not lie.message)
            self.program = self.sim.program()
            self._live(image)
            self.sim.run_for(60.0)
            self.sim.run_until(lambda: all(d.state == "up" for d in self.sim.kernel.devices.values()), LIMIT, "a driver")
            self._look(believed=not self.blamed and any(name in lie_name(lie) for name in TOKENS))

    @property
    def blamed(self) -> list[str]:
        """Lines of the log that say what was wrong with a message."""
        errors = [line.text for line in self.sim.log if line.level == "error"]
        return [text for text in errors if re.search(r"protocol error: .*; killed|it sent what is no message: ", text)]

    def ask(self, call: Call[Any]) -> Any:
        try:
            return self.program.call(call, LIMIT)
        except SyscallError:  # the simulation sees that it has a reason
            return None

    def decode(self, pid: int | None, count: int, logprobs: int = 0) -> None:
        answer = self.ask(Decode(pid, count, logprobs=logprobs)) if pid else None
        if pid and answer is not None:
            self.acknowledged[pid].update(enumerate(answer.tokens, answer.position))

    def _live(self, image: str) -> None:
        ask, pids = self.ask, []
        for first in (1, 2):
            pid = ask(Spawn("sim", tokens=[*PROMPT, first], sampler=HOT))
            pids.append(pid)
            self.decode(pid, 3, logprobs=2)
        both = [self.program.start(Decode(pid, 6)) for pid in pids if pid]
        self.sim.run_until(lambda: all(one.done for one in both), LIMIT)
        for pid in filter(None, pids):
            ask(Kill(pid, Signal.STOP))
        self.sim.run_for(0.1)
        for pid in filter(None, pids):
            ask(Kill(pid, Signal.CONT))
            self.decode(pid, 2)
        if pid := pids[0]:
            ask(Checkpoint(pid, image))
            self.decode(ask(Restore(image)), 2)
            ask(Setsched(pid, device="sim1"))
            self.decode(pid, 2)
        if other := ask(Spawn("sim:2m", tokens=[1])):
            ask(Kill(other, Signal.KILL))
            ask(Evict("sim:2m"))
        ask(Spawn("none", tokens=[1]))

    def _look(self, believed: bool) -> None:
        """Nothing that was acknowledged is lost, and every process goes on with the tokens that the model says."""
        assert not self.sim.halted
        agents = [row.pid for row in self.program.call(Ps()) if row.kind is Kind.LLM and row.state is not State.ZOMBIE]
        assert agents or self.lie.told
        for pid in agents:
            log = self.program.call(Read(pid)).tokens
            for position, token in self.acknowledged[pid].items():
                assert log[position] == token, f"{pid} has lost {token} at {position}"
            start = min(self.acknowledged[pid], default=len(log))
            sampler = self.sim.kernel.table.llm(pid).traits.sampler
            if not believed:
                assert log[start:] == self.sim.continuation(log[:start], len(log) - start, sampler)


def lie_name(lie: Lie) -> str:
    return getattr(lie, "name", lie.message)


@cache
def heard() -> tuple[FromDriver, ...]:
    """All that honest drivers say in such a life."""
    lie = Lie("", 0, [])
    with tempfile.TemporaryDirectory() as place:
        Life(lie, f"{place}/image")
    return tuple(lie.heard)


def lie_of(wrong: Wrong, number: int) -> Lie:
    lie = Lie(wrong.message, number, [msgspec.msgpack.encode(wrong.body)])
    lie.name = f"{wrong.message}.{wrong.field}"  # type: ignore[attr-defined]
    return lie


def undecoded(body: bytes) -> str:
    """Why the decoder refuses a message, or ""."""
    try:
        protocol.decode_from_driver(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return str(error)
    return ""


def samples(kind: type[Any]) -> list[tuple[int, FromDriver]]:
    """Messages of a kind in the life, with their numbers; 0 and one that could be, where there are none."""
    found = [message for message in heard() if type(message) is kind]
    numbered = list(enumerate(found, start=1))
    if kind is protocol.StepDone and not WHOLE:  # one with log-probabilities, and one with guesses
        numbered = [next(one for one in numbered if has(one[1])) for has in (_has_logprobs, _has_guesses)]
    return numbered if WHOLE or kind is protocol.StepDone else numbered[:1]


def _has_logprobs(message: Any) -> bool:
    return any(result.logprobs is not None for result in message.results)


def _has_guesses(message: Any) -> bool:
    return any(result.more for result in message.results)


def check(wrong: Wrong, number: int, image: str) -> bool:
    """Live with a lie; returns whether it was found out."""
    life = Life(lie_of(wrong, number), image)
    assert life.lie.told
    incarnations = sum(driver.incarnation for driver in life.sim.drivers.values())
    assert len(life.blamed) <= 1, "what was wrong is said once"
    assert incarnations >= 2 + len(life.blamed), "its successor was started"
    return bool(life.blamed)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_no_field_of_a_message_can_be_wrong_unnoticed_or_unbounded(kind: type[Any], tmp_path: Path) -> None:
    image = str(tmp_path / "image")
    fields: dict[str, list[tuple[Wrong, int]]] = defaultdict(list)
    refused: dict[str, str] = {}
    for number, message in samples(kind) or [(0, made(kind))]:
        for wrong in wrongs(message):
            name = f"{wrong.message}.{wrong.field}"
            if wrong.fits:
                fields.setdefault(name, [])
            try:
                body = msgspec.msgpack.encode(wrong.body)
            except OverflowError:
                continue
            if why := undecoded(body):
                if wrong.fits:
                    refused.setdefault(name, why)
            elif number and protocol.decode_from_driver(body) != message:
                fields.setdefault(name, []).append((wrong, number))
                if not wrong.fits:
                    refused.setdefault(name, "")
    for name, tries in fields.items():
        tries.sort(key=lambda one: zlib.crc32(str(one[0]).encode()))
        found_out: dict[tuple[int, bytes], bool] = {}  # several values are the same in a message
        for wrong, number in tries:
            lie = (number, msgspec.msgpack.encode(wrong.body))
            if lie not in found_out:
                found_out[lie] = check(wrong, number, image)
            if found_out[lie] and wrong.fits:
                refused.setdefault(name, "by the kernel")
            if (name in refused or name in FREE) and not WHOLE:
                break
    assert fields.keys() - refused.keys() - FREE.keys() == set()


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_a_message_that_comes_twice_late_never_or_unasked_costs_its_driver_at_most_its_life(
    kind: type[Any], tmp_path: Path
) -> None:
    image, name = str(tmp_path / "image"), kind.__name__
    refs = (0, 1, 1 << 40) if "ref" in kind.__struct_fields__ and WHOLE else (1 << 40,)
    unasked = [msgspec.msgpack.encode(made(kind, ref)) for ref in refs]
    last = sum(type(message) is kind for message in heard())
    for number in range(1, last + 1) if WHOLE else [1, last] if last else []:
        for lie in (Lie(name, number, [], twice=True), Lie(name, number, [], late=True), Lie(name, number, [])):
            if lie.twice:
                lie.bodies = [protocol.encode([one for one in heard() if type(one) is kind][number - 1])]
            life = Life(lie, image)
            assert life.lie.told
            assert len(life.blamed) <= 1
            if lie.twice and kind is not Progress:
                assert life.blamed, "who answers twice is found out"
    for body in unasked:
        for lie in (Lie("Hello", 1, [body], late=True), Lie("StepDone", 1, [body], twice=True)):
            life = Life(lie, image)
            innocent = kind is not protocol.Hello and "ref" not in kind.__struct_fields__ and lie.twice
            assert bool(life.blamed) != innocent, life.blamed


def test_the_log_says_what_was_wrong_by_the_fields_name(tmp_path: Path) -> None:
    message = next(one for one in heard() if isinstance(one, protocol.Probed))
    wrong = next(w for w in wrongs(message) if w.field == "vocab" and w.value == -1)
    life = Life(lie_of(wrong, 1), str(tmp_path / "image"))
    assert life.lie.refused
    assert "Expected `int` >= 1 - at `$[6]`" in life.blamed[0]


def test_what_a_driver_still_says_after_it_was_found_out_does_not_count(tmp_path: Path) -> None:
    bodies = [protocol.encode(made(protocol.Done, 1 << 40))] * 3 + [protocol.encode(Note("info", "still here"))]
    life = Life(Lie("StepDone", 2, bodies), str(tmp_path / "image"))
    assert len(life.blamed) == 1
    assert "still here" not in "".join(line.text for line in life.sim.log)


@pytest.mark.parametrize(("seconds", "believed"), [(1e9, True), (math.nextafter(1e9, 2e9), False)])
def test_a_step_that_is_said_to_have_taken_more_than_thirty_years_has_not(
    seconds: float, believed: bool, tmp_path: Path
) -> None:
    message = next(one for one in heard() if isinstance(one, protocol.StepDone))
    body = protocol.encode(msgspec.structs.replace(message, seconds=seconds))
    assert bool(Life(Lie("StepDone", 1, [body]), str(tmp_path / "image")).blamed) != believed

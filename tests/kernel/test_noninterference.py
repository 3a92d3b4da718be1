"""Noninterference: what one user gets to see does not depend on what another does.

Two runs for each seed: Ann does the same in both, Ben something else, more or less of it. Ann's transcript (tokens,
errnos, texts, and all records of hers but for times and what is where in memory) is the same to the letter. Simulated
devices, virtual time, little memory, so that both lose pages to each other. All seeds: LLMASOS_WHOLE=1.

Left out is what tells of a device that is shared: times, residency, `stats`, how often pages were lost.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmasos.simulator import Future, Prog, Simulation, simulate
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.pids import pid_of
from llmasos.syscalls.records import (
    GroupInfo,
    GroupSettings,
    LogLine,
    ModelInfo,
    ProcessInfo,
    Sampler,
    Signal,
    TraceEvent,
    TraceResult,
)
from llmasos.syscalls.table import (
    Call,
    Checkpoint,
    Decode,
    Detach,
    Dmesg,
    Exec,
    Exit,
    Feed,
    Fork,
    Getinfo,
    GroupCreate,
    GroupKill,
    GroupMove,
    GroupRemove,
    GroupSet,
    GroupStat,
    Kill,
    Models,
    Pagein,
    Ps,
    Read,
    Records,
    Rename,
    Restore,
    Setlimits,
    Setsched,
    Spawn,
    Trace,
    Truncate,
    Wait,
)

SEEDS = range(1000 if os.environ.get("LLMASOS_WHOLE") else 30)
PARTS = len(SEEDS) // 10  # tests
STEPS = 25
ANN, BEN = 1001, 1002
NAMES = ("sim", "tiny", "sim:context=256,vocab=1000")
KEPT: dict[Any, tuple[str, ...]] = {  # of these records what does not tell of the shared device
    ProcessInfo: ("pid", "ppid", "kind", "name", "state", "model", "nice", "length", "finish", "seed", "group", "limits",
                  "exit_status", "errno", "reason", "record_bytes"),
    GroupInfo: ("path", "settings", "pids", "processes", "tokens"),
    ModelInfo: ("name", "path", "mapped_by"),
    TraceEvent: ("seq", "what", "pid", "detail"),
    LogLine: ("seq", "level", "text"),
}  # fmt: skip
DEVICES = ("mem.", "sched.", "group.held")  # events of the shared device


def told(value: Any) -> Any:
    """A result as it stands in the transcript."""
    if isinstance(value, TraceResult):
        events = [event for event in value.events if not event.what.startswith(DEVICES)]
        return [told(msgspec.structs.replace(event, seq=0, detail=_untimed(event))) for event in events]
    if isinstance(value, list):
        found = [told(one) for one in value]
        return sorted(found) if value and isinstance(value[0], ModelInfo) else found
    if type(value) in KEPT:
        return type(value).__name__, *(getattr(value, name) for name in KEPT[type(value)])
    return msgspec.structs.astuple(value)[:3] if hasattr(value, "usage") else value


def _untimed(event: TraceEvent) -> str:
    """The answers of calls that look at the device are left out."""
    looks = ("ps", "getinfo", "models", "group_stat", "pagein", "wait", "dmesg", "checkpoint")
    return "" if event.what.removeprefix("ret.") in looks else event.detail


class User:
    """Somebody who makes calls at random, as his seed has it."""

    def __init__(self, sim: Simulation, uid: int, seed: int | str, place: Path) -> None:
        self.chance = random.Random(f"{uid} {seed}")
        self.program: Prog = sim.program("p", uid=uid, chance=self.chance.getrandbits(32))
        self.uid, self.file = uid, f"{place}/{uid}"
        self.pids: list[int] = [self.program.pid]
        self.transcript: list[Any] = []

    def tokens(self, most: int = 60) -> list[int]:
        return [self.chance.randrange(100) for _ in range(self.chance.randrange(1, most))]

    def pid(self) -> int:
        """Mostly one of his own, now and then any number, or the pid of a process of the other user."""
        if self.chance.random() < 0.85:
            return self.chance.choice(self.pids)
        number = self.chance.randrange(1, 130)
        return self.chance.choice([number, pid_of(ANN + BEN - self.uid, number)])

    def group(self) -> str:
        home = self.chance.choice([f"/users/{self.uid}"] * 6 + [f"/users/{ANN + BEN - self.uid}", "/users", "/system"])
        return f"{home}/{self.chance.choice(['a', 'b', 'c'])}"

    def call(self) -> Call[Any]:
        chance, pid = self.chance, self.pid()
        sampler = chance.choice([None, None, Sampler(temperature=1.0, seed=chance.randrange(9))])
        made: list[Callable[[], Call[Any]]] = [
            lambda: Spawn(chance.choice(NAMES), self.tokens(), sampler, detached=chance.random() < 0.5),
            lambda: Spawn("sim", self.tokens(), name="n", records=[b"r"]),
            lambda: Fork(pid, chance.randrange(1, 3)),
            lambda: Feed(pid, self.tokens(20)),
            lambda: Decode(pid, chance.randrange(12), sampler=sampler, logprobs=chance.randrange(2)),
            lambda: Decode(pid, chance.randrange(30)),
            lambda: Read(pid),
            lambda: Records(pid),
            lambda: Truncate(pid, chance.randrange(20)),
            lambda: Exec(pid, "sim", self.tokens()),
            lambda: Kill(pid, chance.choice([Signal.STOP, Signal.CONT, Signal.TERM]))
            if pid != self.program.pid else Getinfo(),
            lambda: Exit(pid) if pid != self.program.pid and pid else Getinfo(),
            lambda: Wait(pid, timeout=0.0),
            lambda: Getinfo(pid),
            lambda: Ps(after=chance.randrange(120), limit=chance.randrange(1, 9)),
            lambda: Setsched(pid, nice=chance.randrange(0, 19)),
            lambda: Setlimits(pid),
            lambda: Detach(pid),
            lambda: Rename(pid, "other"),
            lambda: Checkpoint(pid, self.file),
            lambda: Restore(self.file),
            lambda: GroupCreate(self.group()),
            lambda: GroupSet(self.group(), GroupSettings(cpu_weight=chance.randrange(1, 99))),
            lambda: GroupMove(pid if pid != self.program.pid else 0, self.group()),
            lambda: GroupRemove(self.group()),
            lambda: GroupKill(self.group()),
            lambda: GroupStat(f"/users/{self.uid}", below=True),
            lambda: Models(),
            lambda: Pagein(chance.choice(NAMES)),
            lambda: Dmesg(after=chance.randrange(-1, 9)),
            lambda: Trace(0),
        ]  # fmt: skip
        return chance.choice(made)()

    def take(self, call: Call[Any], future: Future[Any]) -> None:
        """Note the answer, and whom it has brought to life."""
        try:
            value = future.value
        except SyscallError as error:
            self.transcript.append((call, error.errno, error.reason))
            return
        self.transcript.append((call, Errno.OK, told(value)))
        if isinstance(call, Spawn | Restore):
            self.pids.append(value)
        elif isinstance(call, Fork):
            self.pids += value


def transcript(seed: int, secret: int, place: Path) -> list[Any]:
    """What Ann gets, while Ben does what his secret has him do. Files are at `place`."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    sim = simulate(24, checked=False, journal=seed % 2 == 0)
    ann, ben = User(sim, ANN, seed, place), User(sim, BEN, f"{seed} {secret}", place)
    begun: list[tuple[Call[Any], Future[Any]]] = []
    for _ in range(STEPS):
        for _ in range(ben.chance.randrange(2 + 2 * secret)):
            call = ben.call()
            begun.append((call, ben.program.start(call)))
        for call, future in begun:
            if future.done:
                ben.take(call, future)
        begun = [(call, future) for call, future in begun if not future.done]
        call = ann.call()
        future = ann.program.start(call)
        sim.run_until(lambda future=future, call=call: future.done or _stands(sim, call), what=repr(call)[:200])  # type: ignore[misc]
        if not future.done:
            future.cancel()
        sim.run_until(lambda: not _computes(sim), what="quiet")
        ann.take(call, future)
    return ann.transcript


def _stands(sim: Simulation, call: Call[Any]) -> bool:
    """Whether a call waits for one of Ann's processes that is stopped, and so for ever."""
    row = sim.kernel.table.find(pid_of(ANN, getattr(call, "pid", 0)))
    return row is not None and row.state == "stopped"


def _computes(sim: Simulation) -> bool:
    """Whether Ann has a process that has something to compute: what state it is in is a matter of time."""
    owner = sim.kernel.owners["1001"]
    return any(row.kind == "llm" and row.owner is owner and row.state in ("ready", "running") for row in sim.kernel.table)


@pytest.mark.parametrize("part", range(PARTS))
def test_what_a_user_sees_does_not_depend_on_what_another_does(part: int, tmp_path: Path) -> None:
    kinds: set[Any] = set()
    for seed in SEEDS[part::PARTS]:
        one, other = (transcript(seed, secret, tmp_path / "files") for secret in (0, 2))
        for number, (mine, others) in enumerate(zip(one, other, strict=True)):
            assert mine == others, f"seed {seed}, call {number}"
        kinds |= {(type(call), errno is Errno.OK) for call, errno, _ in one}
    assert sum(succeeds for _, succeeds in kinds) > 15, "hardly any call succeeds"

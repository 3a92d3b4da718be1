"""Confinement: two programs that have nothing but what they were granted pass no bit from one to the other, by any call.

With `[partition]`, in virtual time. One program does what its secret has it do, by all rows of the table; what the other
gets, and when, is the same to the letter, whatever that is.
"""

from __future__ import annotations

import os
import random
from typing import Any

import msgspec
import pytest

from llmasos.kernel.events import Partition
from llmasos.simulator import Future, Prog, Simulation, simulate
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.pids import pid_of
from llmasos.syscalls.records import Advice, GroupSettings, Limits, Record, Sampler, SchedClass, Signal
from llmasos.syscalls.table import (
    CONFINED,
    TABLE,
    Accept,
    Attach,
    Call,
    Decode,
    Detach,
    Exit,
    Feed,
    Getinfo,
    Grant,
    Grants,
    Kill,
    Models,
    Null,
    Pagein,
    Ps,
    Read,
    Records,
    Rename,
    Revoke,
    Setsched,
    Shutdown,
    Spawn,
    Truncate,
    Wait,
)

SECRETS = 300 if os.environ.get("LLMASOS_WHOLE") else 3
ANN, BEN = 1001, 1002
RIGHTS = 7  # see, read, control
FIRST, LAST = 1.0, 4.0  # seconds, of what they do
VALUES: dict[str, Any] = {
    "advice": Advice.WILLNEED,
    "settings": GroupSettings(cpu_weight=7),
    "limits": Limits(tokens=1000),
    "signal": Signal.CONT,
    "tokens": [1, 2, 3],
    "model": "sim",
    "name": "n",
    "to": str(ANN),
    "ticket": b"t" * 16,
    "handle": 99,
    "owner": "1003",
}
LEFT_OUT: tuple[type[Call[Any]], ...] = (Attach, Exit)  # nothing is left of who does it


class Tool:
    """A confined program of a user, with a process of his that it was granted, and what it does at random."""

    def __init__(self, sim: Simulation, uid: int, chance: random.Random) -> None:
        self.sim, self.uid, self.chance = sim, uid, chance
        user = sim.program(uid=uid, chance=uid)
        self.pid = user.call(Spawn("sim", [uid % 90, 2, 3], detached=True))
        self.program: Prog = sim.program("tool", uid=uid, chance=uid)
        self.program.call(Attach(confined=True))
        self.program.call(Accept(user.call(Grant(self.pid, str(uid), RIGHTS)).ticket))
        self.made: list[Future[Any]] = []

    def begin(self, calls: int) -> None:
        for moment in sorted(self.chance.uniform(FIRST, LAST) for _ in range(calls)):
            self.sim.at(moment, self.act)

    def act(self) -> None:
        self.made.append(self.program.start(self.call()))

    def call(self) -> Call[Any]:
        chance, pid = self.chance, self.pid
        tokens = [chance.randrange(90) for _ in range(chance.choice((1, 20, 60)))]
        useful: list[Call[Any]] = [
            Decode(pid, chance.randrange(1, 40), sampler=Sampler(temperature=1.0, seed=chance.randrange(9))),
            Feed(pid, tokens),
            Truncate(pid, chance.randrange(1, 4)),
            Kill(pid, chance.choice((Signal.STOP, Signal.CONT, Signal.INT))),
            Read(pid), Records(pid), Getinfo(pid), Getinfo(), Ps(), Models(), Grants(), Null(),
            Rename(pid, chance.choice("abc")),
            Setsched(pid, nice=chance.randrange(20), sched_class=chance.choice(list(SchedClass)[1:])),
            Wait(timeout=0.01), Grant(pid, str(self.uid), 1), Revoke(chance.randrange(90, 99)),
            Accept(bytes(16)), Getinfo(chance.randrange(1, 20)),
            Getinfo(pid_of(ANN + BEN - self.uid, chance.randrange(20))),
        ]  # fmt: skip
        if chance.random() < 0.7:
            return chance.choice(useful)
        return self.any_row()

    def any_row(self) -> Call[Any]:
        """Any call of the table, on what may be there or not."""
        row = self.chance.choice([row for row in TABLE.values() if row.record not in LEFT_OUT])
        given: dict[str, Any] = {}
        for field in msgspec.structs.fields(row.record):
            if field.name == "pid":
                given["pid"] = self.chance.choice((self.pid, self.pid, 1, 7))
            elif field.name == "path":
                given["path"] = self.chance.choice(("/", "/users", "/users/1001", "sim", "/tmp/none"))
            elif field.required:
                given[field.name] = VALUES.get(field.name, 1)
        return row.record(**given)

    def seen(self) -> list[Any]:
        """What it got, and when."""
        return [(one.call, one.done and one.at, one.errno, _told(one)) for one in self.made]


def _told(future: Future[Any]) -> Any:
    if future.reply is None:
        return None
    return future.reply.reason or _plain(future.reply.value)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return msgspec.to_builtins(value) if isinstance(value, Record) else value


def run(secret: int) -> tuple[list[Any], set[Any]]:
    """What Ann's tool gets while Ben's has a secret, 0 being to do nothing; and which calls of his were made."""
    partition = Partition([str(ANN), str(BEN)], 0.02)
    sim = simulate(frames=48, max_runs=3, partition=partition, checked=secret == 1)
    sim.program("operator").call(Pagein("sim"))
    receiver, sender = (Tool(sim, uid, random.Random(f"{uid} {secret * (uid == BEN)}")) for uid in (ANN, BEN))
    assert sim.now < FIRST
    receiver.begin(120)
    if secret:
        sender.begin(40 + 60 * (secret % 3))
    sim.run_for(LAST + 3.0 - sim.now)
    return receiver.seen(), {type(one.call) for one in sender.made if one.errno is Errno.OK}


@pytest.mark.timeout(7200 if SECRETS > 100 else 300)
def test_two_confined_programs_pass_no_bit_by_any_call() -> None:
    alone, _ = run(0)
    kinds = {type(one[0]) for one in alone if one[2] is Errno.OK}
    assert len(kinds) > 12, "most calls are refused, and nothing is tested"
    made: set[Any] = set()
    for secret in range(1, SECRETS + 1):
        seen, done = run(secret)
        made |= done
        for mine, wanted in zip(seen, alone, strict=True):
            assert mine == wanted, f"the secret {secret} shows in {mine[0]}"
    assert len(made) > 12


def test_all_that_a_confined_program_may_call_is_tried() -> None:
    tool = Tool(simulate(64), ANN, random.Random(1))
    tried = {type(tool.call()) for _ in range(4000)}
    assert {row.record for row in TABLE.values()} - tried == set(LEFT_OUT)
    assert tried > CONFINED - set(LEFT_OUT)
    assert {Shutdown, Detach} < tried

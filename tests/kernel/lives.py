"""Recorded lives: what the core does with every event of some lives, as a short mark for each event (lives.json).

A life is made by a seed: programs call whatever there is to call, drivers and kernels die, time goes by. A changed mark
says that the core does something else than it did, be that a fault or what was meant. `python -m tests.kernel.lives NAME`
prints all that it does in a life, to be compared with what another revision prints; `python -m tests.kernel.lives
--record` takes what it does now for right. Texts are left out, and so are fields that records have got since the
recording.
"""

from __future__ import annotations

import argparse
import enum
import hashlib
import json
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from llmasos.kernel.events import (
    AuditFails,
    DriverPrinted,
    Event,
    HaltRequest,
    JournalCompacted,
    JournalFails,
    JournalGrows,
    JournalWaits,
    Log,
    Measured,
    Noted,
    OsFigures,
    Partition,
    Rejected,
    Reply,
    Send,
    Syscall,
)
from llmasos.kernel.journal.records import Answer
from llmasos.kernel.objects.process import Program
from llmasos.simulator import FRAME_BYTES, Prog, simulate, slots
from llmasos.syscalls import pids
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import Advice, GroupSettings, KvAction, Limits, Right, Sampler, SchedClass, Signal
from llmasos.syscalls.table import (
    Accept,
    Advise,
    BootInfoCall,
    Checkpoint,
    Decode,
    Detach,
    Dmesg,
    Estimate,
    Evict,
    Exec,
    Exit,
    Feed,
    Fork,
    Getinfo,
    Grant,
    Grants,
    GroupCreate,
    GroupKill,
    GroupMove,
    GroupRemove,
    GroupSet,
    GroupStat,
    Inventory,
    Kill,
    Models,
    Pagein,
    Ps,
    Read,
    Records,
    Rename,
    Restore,
    Revoke,
    Sched,
    Setlimits,
    Setsched,
    Shred,
    Spawn,
    StatsCall,
    Trace,
    Truncate,
    Wait,
)

FILE = Path(__file__).with_name("lives.json")
ACTS = 300
ELSEWHERE = ("os_pid", "size", "rss", "cpu_seconds", "head")  # what another process or file may have otherwise
GROUPS = ["/a", "/b", "/a/x"]
Schema = dict[str, list[str]]  # of records: the fields that count


@dataclass(frozen=True)
class Kind:
    """What a life is lived on."""

    frames: int = 24
    devices: int = 1
    options: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = ("sim",)
    reboots: bool = False  # the kernel is killed now and then, and the next one boots
    owners: tuple[tuple[int | None, str], ...] = ((None, ""), (None, ""))  # of the programs: uid and tenant


SWAP = {"swap": slots(40), "link": "2e7"}
KINDS = {
    "plain": Kind(),
    "small": Kind(10, config={"policy": "round_robin", "quantum": 8, "aging_seconds": 0.05}),
    "swap": Kind(12, 1, {**SWAP, "lose_every": "11", "unwritten_every": "13"}, {"victims": "fifo"}),
    "moves": Kind(16, 2, SWAP, {"policy": "mlfq", "victims": "clock"}),
    "reborn": Kind(16, 1, SWAP, {"grace": 1.0}, reboots=True),
    "guesses": Kind(24, 1, {"guess_rows": "8"}, {"policy": "lottery", "max_runs": 2, "step_tokens": 24}),
    "models": Kind(
        24,
        1,
        {"link": "2e7"},
        {"weight_bytes": 5_000_000, "weight_quantum": 0.05, "idle_seconds": 0.5},
        ("sim", "sim:1.5m", "sim:2m"),
    ),
    "failures": Kind(
        16,
        1,
        {"link": "2e7", "fail_load_every": "3", "streams": "4"},
        {"weight_bytes": 3_000_000, "evictions": "cost", "pagein_seconds": 1.0, "max_crashes": 2, "policy": "fcfs"},
        ("sim", "sim:1.2m"),
    ),
    "owners": Kind(
        20,
        2,
        SWAP,
        {"audit": "/audit", "audit_required": ["rights"], "grace": 1.0, "session_processes": 6},
        reboots=True,
        owners=((None, ""), (1001, ""), (1001, "a"), (1002, ""), (1002, "b")),
    ),
    "turns": Kind(
        24,
        1,
        SWAP,
        {"partition": Partition(["1001", "1002/b"], 0.02), "max_runs": 2, "show_all": True},
        owners=((None, ""), (1001, ""), (1002, ""), (1002, "b")),
    ),
}


class Life:
    """One life. `told` has a line for each event, what the core did with it."""

    def __init__(self, name: str, schema: Schema) -> None:
        kind = KINDS[name]
        self.schema, self.told = schema, list[str]()
        self.dice, self.models = random.Random(name), kind.models
        self.sim = simulate(kind.frames, devices=kind.devices, options=kind.options, checked=False, **kind.config)
        self._listen()
        self.owners, self.lasting = kind.owners, kind.reboots
        self.programs = [self.sim.program(uid=uid, tenant=tenant) for uid, tenant in kind.owners]
        for path in GROUPS:
            self.programs[0].start(GroupCreate(path))
        self.pids: list[int] = []
        self.images: list[str] = []
        self.spawned: list[Any] = []
        self.granted: list[Any] = []
        with tempfile.TemporaryDirectory(
            dir="/tmp"
        ) as self.place:  # the bytes of its name are charged: as many everywhere
            for act in range(ACTS):
                if kind.reboots and act % 60 == 59:
                    self._reboot()
                self._act(act)
            self.sim.run_for(30.0)
            for program in self.programs:
                calls: list[Any] = [Ps(), StatsCall(), Models(), GroupStat("/", below=True), BootInfoCall(), Trace(0)]
                for call in [*calls, Dmesg(), Grants()]:
                    program.start(call)
            self.sim.event(HaltRequest("the end", kind.reboots))

    def _listen(self) -> None:
        kernel: Any = self.sim.kernel
        kernel.handle = self._telling(kernel.handle)

    def _reboot(self) -> None:
        self.sim.kill()
        self.sim.boot_again()
        self._listen()
        self.programs[0].come_back()
        for at, (uid, tenant) in enumerate(self.owners):
            if at:
                self.programs[at] = self.sim.program(uid=uid, tenant=tenant)
        self.spawned, self.granted = [], []

    def _telling(self, handle: Callable[[Event, int], list[Any]]) -> Callable[[Event, int], list[Any]]:
        def told(event: Event, now: int) -> list[Any]:
            actions = handle(event, now)
            what = type(event.call).__name__ if isinstance(event, Syscall) else type(event).__name__
            kept = [self._plain(action) for action in actions]
            self.told.append(json.dumps([now, what, kept]))
            return actions

        return told

    def _plain(self, value: Any) -> Any:
        match value:
            case Reply():
                return ["Reply", value.peer, value.seq, value.errno.name, self._plain(value.value), value.changes]
            case Log():
                return ["Log", value.level]
            case Answer():
                return ["Answer", value.program, value.seq, value.call, value.errno.name, value.about]
            case Send():
                return ["Send", self._plain(value.message)]
            case msgspec.Struct():
                name = type(value).__name__
                fields = self.schema.setdefault(name, list(value.__struct_fields__))
                return [name, *(self._plain(getattr(value, one)) for one in fields if one not in ELSEWHERE)]
            case enum.Enum():
                return value.name
            case float():
                return f"{value:.9g}"
            case str():
                return value if value.isidentifier() or value in (*self.models, *GROUPS) else len(value) > 0
            case bytes():
                return len(value)
            case dict():
                return sorted([str(key), self._plain(one)] for key, one in value.items())
            case list() | tuple():
                return [self._plain(one) for one in value]
        return value if isinstance(value, int | None) else type(value).__name__

    # --- what happens ---

    def _act(self, act: int) -> None:
        dice = self.dice
        alive = (self.sim.kernel.table.find(pid) for pid in self.pids)
        self.pids = [
            process.pid for process in alive if process is not None and (not process.is_zombie() or act % 5 == 0)
        ]
        self.pids += [inward(one.program, one.value) for one in self.spawned if one.done and not one.errno]
        self.spawned = [one for one in self.spawned if not one.done]
        for made in [one for one in self.granted if one.done and not one.errno]:
            takers = [one for one in self.programs if owner_of(one) == made.call.to]
            if takers and dice.random() < 0.8:
                dice.choice(takers).start(Accept(made.value.ticket))
        self.granted = [one for one in self.granted if not one.done]
        if dice.random() < 0.015:
            self.sim.crash()
        if dice.random() < 0.003:
            self.sim.hang()
        if dice.random() < 0.01:
            at = dice.randrange(1, len(self.programs))
            self.programs[at].disconnect()
            uid, tenant = self.owners[at]
            rights = Right.ALL & ~dice.choice([Right(0), Right.ADMIN, Right.PRIORITY, Right.MEMORY])
            self.programs[at] = self.sim.program("again", rights, uid=uid, tenant=tenant)
        if dice.random() < 0.03:
            self.sim.event(self._outside(act))
        program = dice.choice(self.programs)
        own = [pid for pid in self.pids if pids.uid_of(pid) == (program.uid or 0)]
        near = own if own and dice.random() < 0.8 else self.pids
        call = self._call(as_read(program, dice.choice(near)) if near else 1, act)
        future = program.start(call)
        if isinstance(call, Spawn | Restore):
            self.spawned.append(future)
        elif isinstance(call, Fork) and future.done and not future.errno:
            self.pids += [inward(program, pid) for pid in future.value]
        elif isinstance(call, Grant):
            self.granted.append(future)
        if dice.random() < 0.03:
            future.cancel() if not future.done else None
        self.sim.run_for(dice.choice([0.0, 0.001, 0.004, 0.02, 0.1]))

    def _outside(self, act: int) -> Event:
        """Something that nobody has called for."""
        figures = {1000 + program.peer: (act << 12, act / 8) for program in self.programs}
        events: list[Event] = [
            OsFigures(figures),
            Rejected(self.programs[0].peer, Errno.EMSGSIZE, "too long"),
            DriverPrinted("sim0", self.sim.driver().incarnation, "a line"),
            Noted("warning", "a line"),
            JournalWaits(2.0, act % 2 == 0),
            JournalCompacted(1000, 100),
            Measured("digest", 3, "/opt"),
        ]
        if not self.lasting:
            events += [
                JournalGrows("full"),
                JournalFails("full" if act % 2 else ""),
                AuditFails("full" if act % 2 else ""),
            ]
        return self.dice.choice(events)

    def _call(self, pid: int, act: int) -> Any:
        dice, model = self.dice, self.dice.choice(self.models)
        device = f"sim{dice.randrange(len(self.sim.kernel.devices))}"
        tokens = [dice.randrange(900) for _ in range(dice.choice([1, 9, 16, 33, 90]))]
        group, path = dice.choice(GROUPS), f"{self.place}/{dice.randrange(3)}"
        spawn = Spawn(
            model,
            tokens=tokens,
            sampler=Sampler(dice.choice([0.0, 1.0]), seed=act),
            group=dice.choice(["", "", group]),
            sched_class=dice.choice([SchedClass.FAIR, SchedClass.FAIR, *SchedClass]),
            nice=dice.choice([0, 0, 3, -5]),
            device=device,
            name=f"p{act}",
            detached=dice.random() < 0.3,
            once=dice.random() < 0.1,
            limits=Limits(tokens=dice.choice([0, 0, 20])),
        )
        settings = GroupSettings(
            kv_max=dice.choice([0, 4, 8]) * FRAME_BYTES,
            swap_max=dice.choice([0, 3]) * FRAME_BYTES,
            tokens_max=dice.choice([0.0, 0.0, 100.0]),
            tokens_total=dice.choice([0, 0, 200]),
            pids_max=dice.choice([0, 5]),
            cpu_weight=dice.choice([10, 100, 500]),
            kv_action=dice.choice(list(KvAction)),
        )
        decode = Decode(pid, dice.choice([0, 1, 4, 30]), [999], None, dice.choice([0, 2]), dice.choice([None, 0.05]))
        records = Feed(pid, tokens[:5], [b"a record", b"another"])
        hand = Grant(pid, owner_of(dice.choice(self.programs)), dice.choice([3, 7, 15, 1, 4]))
        often: list[Any] = [
            spawn,
            spawn,
            decode,
            decode,
            decode,
            Feed(pid, tokens[:20]),
            Read(pid, follow=dice.random() < 0.3),
        ]
        return dice.choice(
            [
                *often * 3,
                spawn,
                spawn,
                records,
                records,
                Records(pid),
                Fork(pid, 2),
                Kill(pid, dice.choice(list(Signal))),
                Kill(pid, Signal.STOP),
                Kill(pid, Signal.CONT),
                Truncate(pid, dice.randrange(40)),
                Exec(pid, model),
                Exit(pid, 3),
                Wait(0, 0.05),
                Wait(pid, 0.05),
                Detach(pid),
                Rename(pid, f"q{act}"),
                Getinfo(pid),
                Ps(),
                Setsched(pid, dice.randrange(-5, 6)),
                Setsched(pid, device=device),
                Setlimits(pid, Limits(dice.choice([0, 60]), 0, dice.choice([0, 4]))),
                Models(),
                Pagein(model),
                StatsCall(),
                Evict(model, force=dice.random() < 0.5),
                Advise(model, dice.choice(list(Advice))),
                Estimate(model),
                BootInfoCall(),
                Estimate("sim:1.1m", context=100),
                Checkpoint(pid, path),
                Checkpoint(pid, path, False),
                Restore(path),
                GroupCreate(group, settings),
                GroupSet(group, settings),
                GroupStat("/", below=True),
                GroupMove(pid, group),
                GroupKill(group, dice.choice([Signal.STOP, Signal.CONT, Signal.KILL])),
                GroupRemove(group),
                Trace(dice.choice([-1, 0, act]), timeout=dice.choice([0.0, 0.1])),
                Dmesg(dice.choice([-1, act])),
                Inventory(),
                Setsched(pid, sched_class=SchedClass.REALTIME, budget=dice.choice([0.01, 0.4]), period=1.0),
                Setsched(pid, sched_class=dice.choice(list(SchedClass))),
                *[hand] * (3 * len(set(self.owners))),
                Accept(b""),
                Grants(dice.choice([0, 2]), dice.choice([1, 5])),
                Revoke(dice.randrange(1, 8)),
                Ps(dice.choice([0, pid]), 3),
                Evict(model, dtype="int8"),
                Pagein(model, dtype="int8"),
                Shred(pid),
                Sched(device, dice.choice(["fair", "fcfs", "round_robin", "mlfq", "lottery"])),
                Sched(device, "", dice.choice([0, 1, 3]), 0, dice.choice(["cost", "fifo"]), dice.choice(["", "cost"])),
            ]
        )


def owner_of(program: Prog) -> str:
    """Its name, as `grant` wants it."""
    process = program.sim.kernel.table.find(pids.pid_of(program.uid or 0, pids.number_of(program.pid)))
    return process.owner.name if isinstance(process, Program) and process.owner.name else "0"


def inward(program: Prog, pid: int) -> int:
    """The kernel's pid for what a program was told."""
    return pids.pid_of(program.uid, pid) if program.uid and pid < pids.MARK else pid


def as_read(program: Prog, pid: int) -> int:
    """The pid by which a program knows what has this one in the kernel."""
    if not program.uid:
        return pid
    return pids.number_of(pid) if pids.uid_of(pid) == program.uid else pids.foreign(pid)


def mark(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()[:4]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kernel.lives", description=__doc__)
    parser.add_argument("name", nargs="?", choices=list(KINDS))
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    if asked.record:
        schema: Schema = {}
        lives = {name: " ".join(map(mark, Life(name, schema).told)) for name in KINDS}
        FILE.write_text(json.dumps({"schema": schema, "lives": lives}, indent=1, sort_keys=True) + "\n")
    elif asked.name:
        print("\n".join(Life(asked.name, json.loads(FILE.read_text())["schema"]).told))


if __name__ == "__main__":
    sys.exit(main())

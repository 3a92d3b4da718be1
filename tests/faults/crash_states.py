"""Every state in which a power loss can leave a journal is booted: `python -m tests.faults.crash_states --seeds 100`.

A simulated kernel lives a short life; its frames go through the real keeper into a real file, whose operations are
recorded (disk.py), with compactions, and with disks that fail for a while. Then, for a crash behind each operation, every
way in which the directory may look is laid out and booted: the journal is opened, and a core recovers from it. What must
hold:

- what it adds up to is what the journal had added up to at that position: a prefix of history, nothing else;
- under `always` nothing that was answered is missing, under `interval` nothing older than a second, or than the last time
  when the disk worked;
- programs that were told more get ESTALE, the others are taken up;
- opening it a second time, or after another crash while it is mended, gives the same.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
import trio.testing

from llmasos.kernel.core import Kernel
from llmasos.kernel.edge import journal_keeper as keeper
from llmasos.kernel.edge.journal_file import open_journal
from llmasos.kernel.edge.journal_keeper import Fsync, Keeper
from llmasos.kernel.events import Append, Reply, Syscall
from llmasos.kernel.journal.records import Frame
from llmasos.kernel.journal.state import State
from llmasos.kernel.journal.tickets import ticket
from llmasos.simulator import Prog, Simulation, small_config
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import Sampler, Signal
from llmasos.syscalls.table import Attach, Decode, Exit, Feed, Fork, Kill, Spawn, Truncate
from tests.faults.disk import Disk, Mark, Tree, crashes, lay

SLACK = 0.01  # seconds of virtual time that a sync may be late
FULL = "no space"


# --- a life -------------------------------------------------------------------------------------------------------------


class Life(Simulation):
    """A simulated kernel, and what it writes, in order: frames, and answers (None) that come after them."""

    def __init__(self) -> None:
        self.written: list[Frame | None] = []
        self.states: dict[int, State] = {}  # by position
        self.tickets: dict[int, tuple[bytes, int]] = {}  # by seen: a program that was told it
        super().__init__(small_config(), checked=False)
        self.run_until(lambda: all(device.state == "up" for device in self.kernel.devices.values()))

    def _append(self, append: Append) -> None:
        super()._append(append)
        self.written.append(append.frame)
        assert self.saved is not None
        self.states[append.frame.position] = self.saved.copy()

    def _reply(self, reply: Reply) -> None:
        super()._reply(reply)
        program = self.peers[reply.peer]
        if reply.told and program.ticket:
            self.tickets[program.seen] = program.ticket, program.pid
        self.written.append(None)


def life(seed: int, acts: int) -> Life:
    """A short life of a simulated kernel, drawn by a seed."""
    pick = random.Random(seed)
    sim = Life()
    programs = [sim.program() for _ in range(2)]
    pids = [programs[0].call(Spawn("sim", [1, 2, 3], Sampler(temperature=1.0, seed=seed), detached=True))]
    for _ in range(acts):
        _act(pick, pick.choice(programs), pids)
        sim.run_for(pick.choice((0.0, 0.002, 0.01)))
    return sim


def _act(pick: random.Random, program: Prog, pids: list[int]) -> None:
    pid = pick.choice(pids)
    match pick.randrange(9):
        case 0:
            pids.append(program.call(Spawn("sim", pick.choices(range(900), k=pick.choice((1, 30, 400))), detached=True)))
        case 1 if len(pids) < 12:
            children: list[int] = program.call(Fork(pid, 1, detached=True))
            pids += children
        case 2 if len(pids) > 2:
            program.start(pick.choice((Exit(pid), Kill(pid, Signal.KILL))))
            pids.remove(pid)
        case 3:
            program.start(Truncate(pid, pick.randrange(4)))
        case 4 | 5:
            program.start(Decode(pid, pick.choice((1, 5)), wait=pick.random() < 0.5))
        case _:
            program.start(Feed(pid, pick.choices(range(900), k=pick.choice((1, 4, 700)))))


# --- written to a disk --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Needed:
    """What a crash at a moment must leave: a position, and the moment's time for the message."""

    position: int = 0
    at: float = 0.0


@dataclass(slots=True)
class Written:
    life: Life
    disk: Disk
    fsync: Fsync
    secret: bytes
    failed: int = 0  # times that the journal could not be written
    compacted: int = 0


@contextmanager
def inline(pick: random.Random) -> Iterator[None]:
    """Threads are no threads: what would run in one runs at once or a little later, as drawn, so that a run can be
    repeated; and compaction begins with little."""
    threads: Any = trio.to_thread
    lengths: Any = keeper
    real, before = threads.run_sync, lengths.COMPACT_BYTES

    async def run_sync(call: Callable[..., Any], *given: Any, **_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        for _turn in range(pick.choice((0, 0, 1, 3))):
            await trio.lowlevel.checkpoint()
        return call(*given)

    threads.run_sync, lengths.COMPACT_BYTES = run_sync, 6000
    try:
        yield
    finally:
        threads.run_sync, lengths.COMPACT_BYTES = real, before


def write(found: Life, directory: Path, fsync: Fsync, seed: int, *, faulty: bool) -> Written:
    """Send a life through the real keeper to a directory, whose operations are recorded."""
    pick = random.Random(f"{seed} {fsync}")
    disk = Disk(directory)
    with disk.recording(), inline(pick):
        opened = open_journal(directory)
        written = Written(found, disk, fsync, opened.state.secret)
        trio.run(_written, written, opened, pick, faulty, clock=trio.testing.MockClock(autojump_threshold=0))
    return written


async def _written(written: Written, opened: Any, pick: random.Random, faulty: bool) -> None:
    disk, position, failing = written.disk, [0], [False]

    def report(event: Any) -> None:
        name = type(event).__name__
        written.failed += name == "JournalFails" and bool(event.reason)
        written.compacted += name == "JournalCompacted"

    def snapshot() -> State:
        state = written.life.states[position[0]].copy()
        state.secret = written.secret
        return state

    def fault(call: str) -> None:
        if failing[0] and pick.random() < 0.7:
            raise OSError(*pick.choice(((errno.ENOSPC, FULL), (errno.EIO, "no disk"))))

    def told(seen: int, when: float) -> None:
        disk.mark(("answered", seen, when))

    disk.fault, disk.clock = fault, trio.current_time
    kept = Keeper(opened, written.fsync, report, snapshot)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kept.run)
        for step in written.life.written:
            if faulty and pick.random() < 0.02:
                failing[0] = not failing[0]
            if step is None:
                seen, now = position[0], trio.current_time()
                kept.when_kept(lambda seen=seen, now=now: told(seen, now))  # type: ignore[misc]
            else:
                position[0] = step.position
                kept.append(step)
                disk.mark(("frame", step.position, trio.current_time(), bool(kept.failing)))
            if pick.random() < 0.3:
                await trio.sleep(pick.choice((0.0, 0.01, 0.2, 1.5)))
        failing[0] = False
        await trio.sleep(pick.choice((0.0, 100.0)))
        nursery.cancel_scope.cancel()
    kept.close()
    os.close(opened.lock)


def needed(written: Written, at: int) -> Needed:
    """What a crash behind operation `at` must leave. Under `interval` something only if the disk has never failed: what
    is written while it fails is safe when a whole file has been made again."""
    marks = [op.what for op in written.disk.ops[:at] if isinstance(op, Mark)]
    need = Needed()
    now = written.disk.times[min(at, len(written.disk.ops) - 1)]  # until then nothing else has come to the disk
    if written.fsync == "always":
        need.position = max((mark[1] for mark in marks if mark[0] == "answered"), default=0)
    elif written.fsync == "interval" and not written.failed:
        old = [mark[1] for mark in marks if mark[0] == "frame" and mark[2] < now - keeper.INTERVAL_SECONDS - SLACK]
        need.position = max(old, default=0)
    need.at = now
    return need


# --- booted -------------------------------------------------------------------------------------------------------------


class Lost(AssertionError):
    """A crash state after which something that must hold does not."""


@dataclass(slots=True)
class Booter:
    """Boots trees in a directory of its own, and counts them."""

    written: Written
    place: Path
    states: int = 0
    nested: int = 0
    recovered: dict[int, set[int]] = field(default_factory=dict)  # positions that were recovered -> seen that were tried
    known: dict[int, int] = field(
        default_factory=dict
    )  # trees that were booted (hashes) -> the position they had to have

    def boot(self, tree: Tree, need: Needed, pick: random.Random, *, again: bool = True) -> None:
        """Raises Lost."""
        key = hash(tuple(sorted(tree.items())))
        if self.known.get(key, -1) >= need.position:
            return
        self.known[key] = need.position
        self.states += 1
        directory = self.place / f"{self.states}"
        lay(tree, directory)
        disk = Disk(directory)
        with disk.recording():
            opened = open_journal(directory)
        state, position = opened.state, opened.state.position
        os.close(opened.fd)
        os.close(opened.lock)
        self._check(state, need)
        changed = len(disk.ops)
        if again and changed:  # it was mended: a crash may come then, too
            for at in range(1, changed + 1):
                for nested in crashes(disk, at, pick, most=1):
                    self.nested += 1
                    self.boot(nested, need, pick, again=False)
        if again:
            opened = open_journal(directory)
            if opened.state.difference(state):
                raise Lost(f"opened again it adds up to something else: {opened.state.difference(state)}")
            os.close(opened.fd)
            os.close(opened.lock)
            self._recover(state, position)
        shutil.rmtree(directory)

    def _check(self, state: State, need: Needed) -> None:
        if state.position < need.position:
            promised = f"{need.position} was promised at {need.at:.3f} s"
            raise Lost(f"{self.written.fsync}: position {state.position} came back, {promised}")
        if not state.position:
            return
        wanted = self.written.life.states.get(state.position)
        if wanted is None:
            raise Lost(f"position {state.position} was never written")
        wanted.secret = state.secret
        if found := state.difference(wanted):
            raise Lost(f"at position {state.position} the {found}")
        if state.secret != self.written.secret:
            raise Lost("the key of the tickets is another")

    def _recover(self, state: State, position: int) -> None:
        """A core recovers, and programs come back: those that were told more than there is hear so."""
        state.boot = 999
        kernel = Kernel(self.written.life.file)
        kernel.boot(0, state)
        for process in self.written.life.states[position].processes if position else ():
            if process not in kernel.table:
                raise Lost(f"process {process} is in the journal and not in the table")
        tried = self.recovered.setdefault(position, set())
        for peer, (seen, (_, pid)) in enumerate(self.written.life.tickets.items(), 1):
            if seen in tried and len(tried) > 3 and abs(seen - position) > 1:
                continue
            tried.add(seen)
            self._come_back(kernel, peer, pid, seen, position)

    def _come_back(self, kernel: Kernel, peer: int, pid: int, seen: int, position: int) -> None:
        call = Attach(ticket=ticket(kernel.secret, pid), seen=seen)
        answer = next(a for a in kernel.handle(Syscall(peer, 1, call, 1), kernel.now) if isinstance(a, Reply))
        # Of those that know no more the first is taken up, and the others are the same program.
        if (answer.errno is Errno.ESTALE) != (seen > position):
            raise Lost(f"a program that was told {seen} gets {answer.errno.name} where {position} came back")


def check(seed: int, fsync: Fsync, acts: int, most: int, *, faulty: bool, points: int = 0) -> tuple[Booter, Written]:
    """All crash states of one life; `points`: of so many moments, drawn. Raises Lost, with what leads there again."""
    pick = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="llmasos-crash-", dir=_memory()) as base:
        written = write(life(seed, acts), _made(Path(base) / "live"), fsync, seed, faulty=faulty)
        booter = Booter(written, _made(Path(base) / "states"))
        moments = list(range(1, len(written.disk.ops) + 1))
        if points and len(moments) > points:
            moments = sorted(pick.sample(moments, points))
        for at in moments:
            need = needed(written, at)
            try:
                for tree in crashes(written.disk, at, pick, most):
                    booter.boot(tree, need, pick)
            except Exception as error:
                raise Lost(f"seed {seed}, {fsync}, {'faulty disk, ' if faulty else ''}crash at {at}: {error}") from error
    return booter, written


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _made(directory: Path) -> Path:
    directory.mkdir(mode=0o700)
    return directory


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.crash_states", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--acts", type=int, default=60, help="system calls of a life")
    chosen = parser.parse_args(arguments)
    states, began = 0, time.monotonic()
    policies: tuple[Fsync, ...] = ("always", "interval", "never")
    for seed in range(chosen.first, chosen.first + chosen.seeds):
        for fsync in policies:
            for faulty in (False, True):
                booter, _ = check(seed, fsync, chosen.acts, 8, faulty=faulty)
                states += booter.states
        print(f"seed {seed}: {states:,} states booted in {time.monotonic() - began:.0f} s, nothing lost", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A disk that becomes read-only under a running kernel, as a file system does that has found an error (EROFS).

Each call by itself, and all of them: it is said with the system's words, nothing that was appended is lost, and the
journal goes on by itself when the disk can be written again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from llmasos.kernel.edge import journal_file, journal_keeper
from llmasos.kernel.edge.journal_file import NAME, open_journal
from llmasos.kernel.edge.journal_keeper import Keeper
from llmasos.kernel.edge.keys import Keys
from llmasos.kernel.edge.master import FileSource
from llmasos.kernel.events import Event, JournalCompacted, JournalFails, JournalGrows
from llmasos.kernel.journal.records import Frame, Grown
from llmasos.kernel.journal.state import State
from llmasos.simulator import simulate
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Decode, Spawn
from tests.booted import PATIENCE
from tests.kernel.journaled import frames_written

READ_ONLY = os.strerror(errno.EROFS)
CALLS = ("write", "pwrite", "open", "fsync", "fdatasync", "replace", "ftruncate")


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    """What a kernel writes in a short life: one process after the other, each of which needs a key."""
    sim = simulate()
    written = frames_written(sim)
    program = sim.program()
    for number in range(6):
        program.call(Decode(program.call(Spawn("sim", [number + 1, 2, 3], detached=True)), 4))
    return written


class Disk:
    """The calls that fail, for as long as it is read-only."""

    def __init__(self, patch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
        self.read_only, self.refused = False, 0
        for name in names:
            patch.setattr(os, name, self._failing(name, getattr(os, name)))

    def _failing(self, name: str, whole: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            reads = name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if self.read_only and not reads:
                self.refused += 1
                raise OSError(errno.EROFS, READ_ONLY)
            return whole(*args, **named)

        return call


def keys_in(place: Path, *, plain: bool) -> Keys:
    return Keys(FileSource(place / "config" / "seal.key"), place / "keys", plain=plain)


@pytest.mark.parametrize("plain", [False, True], ids=["encrypted", "plain"])
@pytest.mark.parametrize("names", [*((name,) for name in CALLS), CALLS], ids=[*CALLS, "all"])
def test_a_disk_that_becomes_read_only_costs_nothing_that_was_appended(
    tmp_path: Path, frames: list[Frame], monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], plain: bool
) -> None:
    monkeypatch.setattr(journal_keeper, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(journal_keeper, "INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr(journal_keeper, "COMPACT_BYTES", 2048)
    disk = Disk(monkeypatch, names)
    seen: list[Event] = []
    live = State(b"")

    async def scenario() -> None:
        opened = open_journal(tmp_path / "journal", keys_in(tmp_path, plain=plain))
        live.secret = opened.state.secret
        keeper = Keeper(opened, "interval", seen.append, live.copy)

        def append(frame: Frame) -> None:
            live.apply(frame)
            keeper.append(frame)

        async def grow_until(done: Callable[[], bool]) -> None:
            pid, log = next((pid, len(one.log)) for pid, one in live.processes.items())
            with trio.fail_after(PATIENCE):
                while not done():
                    append(Frame(frames[-1].now, [Grown(pid, log, [], 4, 4)]))
                    await trio.sleep(0.005)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.run)
            half = len(frames) // 2
            for frame in frames[:half]:
                append(frame)
            disk.read_only = True
            for frame in frames[half:]:
                append(frame)
            if not (plain and names == ("pwrite",)) and names not in (("ftruncate",), ("pwrite",)):
                await grow_until(lambda: disk.refused > 0)
            if len(names) > 1:
                await grow_until(lambda: any(isinstance(one, JournalFails) for one in seen))
            disk.read_only = False
            seen_before = len(seen)
            await grow_until(
                lambda: not keeper.failing and any(isinstance(one, JournalCompacted) for one in seen[seen_before:])
            )
            nursery.cancel_scope.cancel()
        keeper.sync_all()
        keeper.close()
        os.close(opened.lock)

    trio.run(scenario)
    reasons = [one.reason for one in seen if isinstance(one, JournalFails | JournalGrows) and one.reason]
    assert all(READ_ONLY in reason for reason in reasons), reasons
    assert reasons or len(names) == 1
    found = journal_file.read(tmp_path / "journal" / NAME, keys=keys_in(tmp_path, plain=plain))
    assert not found.trouble
    assert not found.lost
    assert not found.state.difference(live)


def test_a_boot_on_a_read_only_disk_says_so_and_touches_nothing(
    tmp_path: Path, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_journal(tmp_path / "journal", keys_in(tmp_path, plain=False))
    assert opened.seal is not None
    for frame in frames:
        journal_file.write_all(opened.fd, journal_file.framed(opened.seal.live.encode(frame)))
    os.close(opened.fd)
    os.close(opened.lock)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with monkeypatch.context() as patched:
        disk = Disk(patched, CALLS)
        disk.read_only = True
        for _ in range(2):
            with pytest.raises(SyscallError, match=READ_ONLY) as caught:
                open_journal(tmp_path / "journal", keys_in(tmp_path, plain=False))
            assert caught.value.errno is Errno.EIO
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    again = open_journal(tmp_path / "journal", keys_in(tmp_path, plain=False))
    wanted = State(again.state.secret)
    for frame in frames:
        wanted.apply(frame)
    assert not again.state.difference(wanted)
    os.close(again.fd)
    os.close(again.lock)

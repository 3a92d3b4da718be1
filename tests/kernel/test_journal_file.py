"""The file of the journal: cut short, damaged, of another version, on a full disk, and killed while it is compacted."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import trio
import trio.lowlevel

from llmasos.kernel.clock import SECOND
from llmasos.kernel.edge import journal_file as file
from llmasos.kernel.edge import journal_keeper as keeper
from llmasos.kernel.edge.journal_file import NAME, VERSION, framed, header, open_journal
from llmasos.kernel.edge.journal_keeper import Fsync, Keeper
from llmasos.kernel.events import Event, JournalCompacted, JournalFails, JournalGrows
from llmasos.kernel.journal.records import Frame, Grown, encode
from llmasos.kernel.journal.state import State
from llmasos.simulator import simulate
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Decode, Feed, Spawn, Truncate
from tests.booted import PATIENCE
from tests.kernel.journaled import frames_written


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    """What a kernel writes in a short life; the last frame changes something."""
    sim = simulate()
    written = frames_written(sim)
    program = sim.program()
    pid = program.call(Spawn("sim", [1, 2, 3]))
    program.call(Decode(pid, 8, logprobs=1))
    program.call(Truncate(pid, 5))
    program.call(Feed(pid, [4, 5, 6]))
    return written


def state_of(frames: list[Frame], secret: bytes = b"") -> State:
    state = State(secret)
    for frame in frames:
        state.apply(frame)
    return state


def write(directory: Path, frames: list[Frame]) -> bytes:
    """A journal of these frames; its bytes."""
    opened = open_journal(directory)
    for frame in frames:
        file.write_all(opened.fd, framed(encode(frame)))
    os.close(opened.fd)
    opened.close()
    return (directory / NAME).read_bytes()


def reopen(directory: Path) -> tuple[State, list[tuple[str, str]]]:
    opened = open_journal(directory)
    assert opened.size == os.fstat(opened.fd).st_size
    os.close(opened.fd)
    opened.close()
    assert not (directory / (NAME + ".new")).exists()
    return opened.state, opened.notes


def test_a_journal_is_ours_alone_and_comes_back_as_it_was(tmp_path: Path, frames: list[Frame]) -> None:
    write(tmp_path, frames)
    found = (tmp_path / NAME).stat()
    assert stat.S_IMODE(found.st_mode) == 0o600
    state, notes = reopen(tmp_path)
    assert len(state.secret) == file.KEY_BYTES
    assert not state.difference(state_of(frames, state.secret))
    assert state.now == frames[-1].now
    assert not notes
    assert reopen(tmp_path)[0].secret == state.secret


def test_a_last_write_cut_short_at_any_byte_is_cut_off(tmp_path: Path, frames: list[Frame]) -> None:
    whole = write(tmp_path, frames)
    last = len(framed(encode(frames[-1])))
    secret = reopen(tmp_path)[0].secret
    wanted = state_of(frames[:-1], secret)
    for length in range(len(whole) - last + 1, len(whole)):
        (tmp_path / NAME).write_bytes(whole[:length])
        state, notes = reopen(tmp_path)
        assert not state.difference(wanted)
        assert [level for level, _ in notes] == ["warning"]
        assert "cut short" in notes[0][1]
        assert (tmp_path / NAME).read_bytes() == whole[: len(whole) - last]
        assert reopen(tmp_path)[1] == []


def test_a_flipped_byte_anywhere_leaves_all_that_stands_before_it(
    tmp_path: Path, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # thousands of files, and no power loss here
    whole = write(tmp_path, frames)
    secret = reopen(tmp_path)[0].secret
    bounds = [len(whole)]  # where the frames begin, from the last one
    for frame in reversed(frames):
        bounds.append(bounds[-1] - len(framed(encode(frame))))
    begins = bounds[:0:-1]
    wanted = [state_of(frames[:n], secret) for n in range(len(frames) + 1)]
    for place in range(begins[0], len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x40
        (tmp_path / NAME).write_bytes(damaged)
        state, notes = reopen(tmp_path)
        kept = sum(begin <= place for begin in begins) - 1
        assert not state.difference(wanted[kept]), f"byte {place}"
        ((level, text),) = notes
        if level == "warning":
            assert place >= begins[-1] + 8, "only the last frame's body can be a write that was cut short"
        else:
            aside = tmp_path / f"{NAME}.damaged-1"
            assert str(aside) in text
            assert aside.read_bytes() == damaged
            aside.unlink()
        again, notes = reopen(tmp_path)
        assert not again.difference(wanted[kept])
        assert not notes


def test_damage_before_the_first_frame_begins_anew_and_keeps_the_file(tmp_path: Path, frames: list[Frame]) -> None:
    whole = write(tmp_path, frames)
    damaged = bytearray(whole)
    damaged[len(header()) + 20] ^= 1
    (tmp_path / NAME).write_bytes(damaged)
    for number in (1, 2):
        (tmp_path / NAME).write_bytes(damaged)
        state, _ = reopen(tmp_path)
        assert len(state.secret) == file.KEY_BYTES
        assert not state.difference(State(state.secret))
        assert (tmp_path / f"{NAME}.damaged-{number}").read_bytes() == damaged


@pytest.mark.parametrize(
    "left",
    [b"", bytes(5), bytes(len(header())), bytes(8192), *(header()[:length] for length in (1, 8, len(header()) - 1))],
)
def test_a_file_of_which_a_power_loss_left_the_name_alone_is_kept_aside_and_the_boot_goes_on(
    tmp_path: Path, left: bytes
) -> None:
    (tmp_path / NAME).write_bytes(left)
    state, ((level, text),) = reopen(tmp_path)
    assert not state.difference(State(state.secret))
    assert level == "error"
    assert f"{tmp_path / NAME}.damaged-1" in text
    assert (tmp_path / f"{NAME}.damaged-1").read_bytes() == left
    again, notes = reopen(tmp_path)
    assert (again.secret, notes) == (state.secret, [])


@pytest.mark.parametrize("offset", [0, 8])
def test_another_version_and_another_program_s_file_are_refused_and_not_touched(
    tmp_path: Path, frames: list[Frame], offset: int
) -> None:
    other = bytearray(write(tmp_path, frames))
    other[offset] ^= 2
    (tmp_path / NAME).write_bytes(other)
    for _ in range(2):
        with pytest.raises(SyscallError) as caught:
            open_journal(tmp_path)
        assert caught.value.errno is Errno.EINVAL
        assert "move it away" in caught.value.reason
        assert (f"version {VERSION ^ 2}" in caught.value.reason) == (offset == 8)
    assert (tmp_path / NAME).read_bytes() == other
    assert os.listdir(tmp_path) == [NAME]


def test_a_link_leads_to_the_journal_it_names_with_its_lock_and_its_place(tmp_path: Path, frames: list[Frame]) -> None:
    kept, place = tmp_path / "kept", tmp_path / "run"
    write(kept, frames)
    place.mkdir()
    (place / NAME).symlink_to(kept / NAME)
    first = open_journal(place)
    assert first.path == kept / NAME
    assert first.state.processes
    with pytest.raises(SyscallError) as caught:
        open_journal(kept)
    assert caught.value.errno is Errno.EBUSY
    os.close(first.fd)
    first.close(remove=True)
    assert os.listdir(kept) == []


def test_two_kernels_never_share_a_journal(tmp_path: Path) -> None:
    first = open_journal(tmp_path)
    with pytest.raises(SyscallError) as caught:
        open_journal(tmp_path)
    assert caught.value.errno is Errno.EBUSY
    os.close(first.fd)
    first.close(remove=True)
    assert os.listdir(tmp_path) == []


# --- while the kernel runs ------------------------------------------------------------------------------------------


class Rig:
    """A keeper, and the state of the kernel it works for."""

    def __init__(self, directory: Path, fsync: Fsync = "never") -> None:
        self.opened = open_journal(directory)
        self.live = self.opened.state.copy()
        self.events: list[Event] = []
        self.keeper = Keeper(self.opened, fsync, self.events.append, lambda: self.live.copy())

    def append(self, frame: Frame) -> None:
        self.live.apply(frame)
        self.keeper.append(frame)

    def run(self, scenario: Callable[[Rig], Awaitable[None]]) -> None:
        async def main() -> None:
            with trio.fail_after(PATIENCE):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.keeper.run)
                    await scenario(self)
                    self.keeper.stop()
                    nursery.cancel_scope.cancel()

        try:
            trio.run(main)
        finally:
            self.keeper.close()
            self.opened.close()

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.002)

    def seen(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def growth(state: State, count: int) -> Frame:
    """A process says something else than it did: the live state stays as large as it is."""
    (pid,) = state.processes
    process = state.processes[pid]
    keep = min(len(process.log), 4)
    return Frame(state.now + SECOND, [Grown(pid, keep, [count % 1000] * 20, process.fed, count)])


def begin(rig: Rig, frames: list[Frame]) -> None:
    for frame in frames:
        rig.append(frame)


@pytest.mark.parametrize("fsync", ["always", "interval", "never"])
def test_a_journal_is_bounded_by_compaction_and_adds_up_to_the_same(
    tmp_path: Path, frames: list[Frame], fsync: Fsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "COMPACT_BYTES", 4096)
    monkeypatch.setattr(keeper, "_TAIL_BYTES", 256)
    rig = Rig(tmp_path, fsync)

    async def scenario(rig: Rig) -> None:
        begin(rig, frames)
        for count in range(3000):
            rig.append(growth(rig.live, count))
            if count % 10 == 0:
                await trio.lowlevel.checkpoint()
        await rig.until(lambda: rig.keeper.size < 3 * 4096)

    rig.run(scenario)
    compactions = rig.seen(JournalCompacted)
    assert len(compactions) >= 2
    assert all(event.after < event.before for event in compactions)
    assert not rig.seen(JournalFails)
    state, notes = reopen(tmp_path)
    assert not state.difference(rig.live)
    assert not notes


def test_a_journal_is_bounded_however_often_the_kernel_is_killed_before_its_compaction(
    tmp_path: Path, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "COMPACT_BYTES", 4096)
    sizes: list[int] = []

    async def life(rig: Rig) -> None:
        await rig.until(lambda: rig.keeper.size <= 4096)
        while rig.keeper.size + 256 < 2 * 4096:
            rig.append(growth(rig.live, 1))
            if len(sizes) % 2:
                await trio.lowlevel.checkpoint()
        sizes.append(rig.keeper.size)

    write(tmp_path, frames)
    for _ in range(6):
        rig = Rig(tmp_path)
        if rig.keeper.size > 4096:
            rig.append(growth(rig.live, 0))  # as a boot does
        rig.run(life)
        state, _ = reopen(tmp_path)
        assert not state.difference(rig.live)
    assert max(sizes) < 3 * 4096


class Killed(BaseException):
    pass


def test_a_kernel_killed_at_any_write_of_a_compaction_leaves_a_whole_journal(
    tmp_path: Path, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "COMPACT_BYTES", 4096)
    monkeypatch.setattr(file, "_PIECE", 256)
    left = 0

    def may_die(function: Callable[..., Any], *, half: bool = False) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                if half:  # a write that was cut short
                    function(arguments[0], arguments[1][: len(arguments[1]) // 2])
                raise Killed
            return function(*arguments)

        return wrapped

    for module, name in (
        (file, "write_all"),
        (file, "replace"),
        (file, "sync_directory"),
        (os, "fsync"),
    ):
        monkeypatch.setattr(module, name, may_die(getattr(module, name), half=name == "write_all"))
    died, number = 0, 0
    while number == 0 or died == number:
        number += 1
        place = tmp_path / str(number)
        rig = Rig(place)

        async def scenario(rig: Rig) -> None:
            begin(rig, frames)
            count = 0
            while not rig.keeper._due():
                rig.append(growth(rig.live, count := count + 1))
            nonlocal left
            left = number  # noqa: B023
            await rig.until(lambda: rig.seen(JournalCompacted))
            left = 0

        try:
            rig.run(scenario)
        except* Killed:  # and nothing else
            died += 1
        assert not rig.seen(JournalFails)
        state, notes = reopen(place)
        assert not state.difference(rig.live), f"killed at write {number}"
        assert not notes
    assert died > 5, "the compaction that was not killed came last"


@contextlib.contextmanager
def small_files(limit: int) -> Iterator[None]:
    """No file may be longer: what a full disk looks like to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("fsync", ["always", "interval"])
def test_a_full_disk_is_said_once_and_made_good_when_there_is_room(
    tmp_path: Path, frames: list[Frame], fsync: Fsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "RETRY_SECONDS", 0.01)
    rig = Rig(tmp_path, fsync)
    told: list[str] = []
    repair, tries = rig.keeper._repair, 0

    async def counted() -> bool:
        nonlocal tries
        tries += 1
        return await repair()

    rig.keeper._repair = counted  # type: ignore[method-assign]

    async def scenario(rig: Rig) -> None:
        begin(rig, frames)
        before = rig.live.copy()
        with small_files(64):
            for count in range(50):
                rig.append(growth(rig.live, count))
            rig.keeper.when_kept(lambda: told.append("changed"), changes=True)
            rig.keeper.when_kept(lambda: told.append("looked"), changes=False)
            await rig.until(lambda: tries > 3)
            assert rig.keeper.failing == os.strerror(errno.EFBIG)
            assert told == (["looked"] if fsync == "always" else ["changed", "looked"])
            found = file.read(rig.keeper.path)
            assert not found.trouble
            assert not found.state.difference(before), "what there was is still there"
        await rig.until(lambda: not rig.keeper.failing)
        rig.append(growth(rig.live, 99))
        rig.keeper.when_kept(lambda: told.append("again"))
        await rig.until(lambda: "again" in told)

    rig.run(scenario)
    fails = [event.reason for event in rig.seen(JournalFails)]
    assert len(fails) == 2
    assert os.strerror(errno.EFBIG) in fails[0]
    assert fails[1] == ""
    assert "changed" in told
    state, notes = reopen(tmp_path)
    assert not state.difference(rig.live)
    assert not notes


def test_frames_that_come_while_the_old_file_is_left_after_a_repair_are_in_the_new_one(
    tmp_path: Path, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "RETRY_SECONDS", 0.01)
    rig = Rig(tmp_path, "always")
    leaving, go_on, leave = threading.Event(), threading.Event(), rig.keeper._leave

    def slow(old: int, gone: set[int], scrub: bool) -> None:
        leaving.set()
        assert go_on.wait(60)
        leave(old, gone, scrub)

    rig.keeper._leave = slow  # type: ignore[method-assign]

    async def scenario(rig: Rig) -> None:
        begin(rig, frames)
        rig.keeper.path.unlink()
        rig.keeper.look()
        await rig.until(leaving.is_set)
        rig.append(growth(rig.live, 99))
        go_on.set()
        await rig.until(lambda: not rig.keeper.failing)

    rig.run(scenario)
    state, _ = reopen(tmp_path)
    assert not state.difference(rig.live)


def test_a_kernel_that_halts_and_cannot_sync_answers_nobody_who_waits_for_that(
    tmp_path: Path, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls have no answer, so they are made again in the next kernel."""
    told: list[str] = []
    for trouble in (0, errno.EIO):
        rig = Rig(tmp_path / str(trouble), "always")
        begin(rig, frames)
        rig.keeper.when_kept(lambda trouble=trouble: told.append(os.strerror(trouble)))  # type: ignore[misc]
        with monkeypatch.context() as patch:
            if trouble:
                patch.setattr(os, "fsync", mock.Mock(side_effect=OSError(trouble, os.strerror(trouble))))
            why = rig.keeper.sync_all()
        assert why == (os.strerror(trouble) if trouble else "")
        rig.keeper.stop(kept=not why)
        rig.keeper.close()
        rig.opened.close()
    assert told == [os.strerror(0)]


def test_a_repair_whose_file_cannot_be_synced_leaves_no_descriptor(
    tmp_path: Path, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "RETRY_SECONDS", 0.01)
    rig = Rig(tmp_path)
    fsync, failed = os.fsync, 0

    def failing(descriptor: int) -> None:
        nonlocal failed
        if failed < 3:
            failed += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    def held() -> int:
        count = 0
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
                count += os.readlink(f"/proc/self/fd/{name}").startswith(os.fspath(tmp_path))
        return count

    async def scenario(rig: Rig) -> None:
        begin(rig, frames)
        before = held()
        monkeypatch.setattr(os, "fsync", failing)
        rig.keeper.path.unlink()
        rig.keeper.look()
        await rig.until(lambda: not rig.keeper.failing)
        await rig.until(lambda: held() == before)  # the old file is closed beside it
        assert failed == 3

    rig.run(scenario)


def test_a_frame_that_cannot_be_written_as_the_new_file_of_a_repair_gets_its_name_is_in_the_next_one(
    tmp_path: Path, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "RETRY_SECONDS", 0.01)
    rig = Rig(tmp_path)
    named, go_on = threading.Event(), threading.Event()
    sync_directory = file.sync_directory

    def slow(path: Path) -> None:
        if not named.is_set():
            named.set()
            assert go_on.wait(60)
        sync_directory(path)

    def refusing(frame: Frame) -> bytes:
        raise Errno.EIO("there is no place for a key")

    async def scenario(rig: Rig) -> None:
        begin(rig, frames)
        monkeypatch.setattr(file, "sync_directory", slow)
        rig.keeper.path.unlink()
        rig.keeper.look()
        await rig.until(named.is_set)
        monkeypatch.setattr(keeper, "encode", refusing)
        rig.append(growth(rig.live, 99))
        monkeypatch.setattr(keeper, "encode", encode)
        go_on.set()
        await rig.until(lambda: not rig.keeper.failing)

    rig.run(scenario)
    state, _ = reopen(tmp_path)
    assert not state.difference(rig.live)


@pytest.mark.parametrize("fsync", ["always", "interval"])
def test_a_journal_that_cannot_be_compacted_grows_and_is_compacted_later(
    tmp_path: Path, frames: list[Frame], fsync: Fsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for what is appended, and none for a second file."""
    monkeypatch.setattr(keeper, "COMPACT_BYTES", 4096)
    monkeypatch.setattr(keeper, "RETRY_SECONDS", 0.01)
    write_new, full = file.write_new, True

    def refusing(*given: Any, **named: Any) -> int:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_new(*given, **named)

    monkeypatch.setattr(file, "write_new", refusing)
    told: list[str] = []

    async def scenario(rig: Rig) -> None:
        nonlocal full
        begin(rig, frames)
        while rig.keeper.size < 4 * 4096:
            rig.append(growth(rig.live, 7))
            await trio.lowlevel.checkpoint()
        await rig.until(lambda: rig.seen(JournalGrows))
        rig.keeper.when_kept(lambda: told.append("kept"))
        await rig.until(lambda: told)
        state = file.read(rig.keeper.path).state
        assert not state.difference(rig.live)
        full = False
        await rig.until(lambda: rig.keeper.size < 4096)

    full = False
    rig = Rig(tmp_path, fsync)
    full = True
    rig.run(scenario)
    assert not rig.seen(JournalFails)
    assert os.strerror(errno.ENOSPC) in rig.seen(JournalGrows)[0].reason
    state, notes = reopen(tmp_path)
    assert not state.difference(rig.live)
    assert not notes


def test_always_answers_wait_for_the_disk_and_keep_their_order(
    tmp_path: Path, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    rig = Rig(tmp_path, "always")
    fdatasync = os.fdatasync

    def counted(fd: int) -> None:
        size = os.fstat(fd).st_size
        fdatasync(fd)
        synced.append(size)

    monkeypatch.setattr(os, "fdatasync", counted)
    told: list[tuple[int, int]] = []

    async def scenario(rig: Rig) -> None:
        rig.keeper.when_kept(lambda: told.append((-1, 0)))
        assert told == [(-1, 0)], "nothing is on its way to the disk"
        begin(rig, frames)
        for count in range(200):
            rig.append(growth(rig.live, count))
            size = rig.keeper.size

            def tell(count: int = count, size: int = size) -> None:
                told.append((count, size))
                assert max(synced) >= size

            rig.keeper.when_kept(tell)
            if count % 7 == 0:
                await trio.lowlevel.checkpoint()
        await rig.until(lambda: len(told) == 201)

    rig.run(scenario)
    assert [count for count, _ in told] == list(range(-1, 200))
    assert 1 <= len(synced) < 200, "one fsync serves all who wait"


@pytest.mark.parametrize("fsync", ["interval", "never", "always"])
def test_what_has_to_be_on_the_disk_is_synced_before_it_is_told_under_every_policy(
    tmp_path: Path, frames: list[Frame], fsync: Fsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "INTERVAL_SECONDS", 3600.0)
    done: list[str] = []
    sync = os.fdatasync

    def synced(fd: int) -> None:
        sync(fd)
        done.append("synced")

    monkeypatch.setattr(os, "fdatasync", synced)

    async def scenario(rig: Rig) -> None:
        begin(rig, frames)
        for count in range(3):
            await trio.sleep(0.02)
            done.clear()
            rig.append(growth(rig.live, count))
            rig.keeper.when_kept(lambda: done.append("told"), synced=True)
            assert not done
            await rig.until(lambda: "told" in done)
            assert "synced" in done[: done.index("told")]

    rig = Rig(tmp_path, fsync)
    rig.run(scenario)

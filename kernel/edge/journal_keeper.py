"""The journal while the kernel runs: it is written, synced and compacted here, and repaired if it could not be written.

Frames are written where the kernel handles its events, before any answer leaves, so they survive the kernel. To survive
the machine they need an fsync, which takes milliseconds and runs in a thread: once a second (`interval`), never, or
whenever there is a frame (`always`). Under `always` answers wait for it, and one fsync serves all that wait, as databases
commit in groups.

Compaction reads the file in a thread and writes the state that it adds up to into a new file. Once that has caught up,
frames go to both, until the new file has the journal's name and both are on the disk. So at every moment the file of that
name is whole. If the journal cannot be written, the kernel says so and goes on; a new file of the whole live state, tried
again and again, makes up for the frames that were lost. Meanwhile, under `always`, no call that changes something is
answered.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import trio

from llmasos.kernel.edge import journal_file as file
from llmasos.kernel.edge.journal_file import Opened
from llmasos.kernel.edge.master import overwrite
from llmasos.kernel.events import Event, JournalCompacted, JournalFails, JournalGrows, JournalWaits
from llmasos.kernel.journal.records import Frame, encode
from llmasos.kernel.journal.state import State
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.spare_memory import give_back

Fsync = Literal["always", "interval", "never"]

INTERVAL_SECONDS = 1.0
COMPACT_BYTES = 1 << 20  # a smaller file is left alone
COMPACT_FACTOR = 2  # and so is one that is not this many times as long as after the last compaction
SLOW_SECONDS = 2.0  # a sync that takes longer is said
RETRY_SECONDS = 1.0  # after a failure; doubled each time,
RETRY_MOST = 30.0  # up to this
_TAIL_BYTES = 1 << 16  # a rest this short is copied at once, between two events


@dataclass(slots=True, eq=False)
class _Copy:
    """A file to which frames are written; `size` bytes of it are whole frames."""

    fd: int
    size: int


@dataclass(slots=True, eq=False)
class _Forget:
    """Processes of which nothing is to be left; what was done is said in `gone`, what is in the way in `trouble`."""

    pids: list[int]
    done: trio.Event
    gone: list[str]
    trouble: str = ""


class _Stopped(Exception):
    pass


class Keeper:
    """The open journal of a running kernel. `report` takes events for the core; `snapshot` gives the live state."""

    def __init__(
        self, opened: Opened, fsync: Fsync, report: Callable[[Event], None], snapshot: Callable[[], State]
    ) -> None:
        self.path, self._opened, self._seal = opened.path, opened, opened.seal
        self.failing = ""
        self.position = opened.state.position if opened.state is not None else 0  # of the latest frame
        self._copies = [_Copy(opened.fd, opened.size)]  # two while the file is being replaced
        self._fsync = fsync
        self._report = report
        self._snapshot = snapshot
        # Bytes after the last compaction. How much of an earlier kernel's file is live is not known.
        self._compacted = 0
        self._frames = 0  # appended so far
        self._synced = 0  # of these, on the disk
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._missed: list[bytes] | None = None  # frames since the snapshot of a new file that is being written
        self._forgets: list[_Forget] = []
        self._stumbled = False  # a frame could not be encrypted, so that only a new snapshot has it
        self._unsynced = trio.Event()
        self._hurry = trio.Event()  # an answer waits for a sync
        self._wanted = trio.Event()  # a new file
        self._switching = trio.Lock()  # held while the files are synced or exchanged
        self._stopping = threading.Event()

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._copies[0].size

    # --- where events are handled -----------------------------------------------------------------------------------

    def append(self, frame: Frame) -> None:
        """Write a frame, or note that it could not be written."""
        self._frames += 1
        self.position = frame.position
        try:
            data = file.framed(encode(frame) if self._seal is None else self._seal.live.encode(frame))
        except SyscallError as error:  # there is no place for a key
            self._stumbled = True
            self._fail(OSError(errno.EIO, error.reason))
            return
        if self._missed is not None:
            self._missed.append(data)
        elif not self.failing:
            try:
                for copy in self._copies:
                    file.write_all(copy.fd, data)
            except OSError as error:
                self._fail(error)
            else:
                for copy in self._copies:
                    copy.size += len(data)
            if self._due():
                self._wanted.set()
        if self._fsync != "never":
            self._unsynced.set()

    def when_kept(
        self, then: Callable[[], None], *, changes: bool = True, tells: bool = True, synced: bool = False
    ) -> None:
        """Call `then` as soon as all frames so far are as safe as `fsync` wants: mostly at once; `synced`: as soon as
        they are on the disk, whatever it wants. Calls are made in order; but one that `tells` of nothing that is kept
        does not wait, and while the journal fails neither does one that `changes` nothing."""
        waits = tells and (self._fsync == "always" or synced)
        if not waits or (self._synced == self._frames and not self._waiting) or (self.failing and not changes):
            then()
            return
        self._waiting.append((self._frames, then))
        self._unsynced.set()
        self._hurry.set()

    async def forget(self, pids: list[int], patience: float) -> tuple[list[str], str]:
        """Leave nothing of processes in any file: the journal is written anew without them, what it was is overwritten,
        the keys are forgotten. Returns what was done, and why it is not, if that takes longer than `patience` seconds;
        then it is tried on."""
        wanted = _Forget(pids, trio.Event(), [])
        self._forgets.append(wanted)
        self._wanted.set()
        with trio.move_on_after(patience):
            await wanted.done.wait()
        if wanted.done.is_set():
            return wanted.gone, ""
        why = wanted.trouble or self.failing or "the journal could not be written anew yet"
        return [], f"{why}; it is tried until it is done"

    def look(self) -> None:
        """See whether the file still has its name. If somebody has removed it, it is written anew."""
        try:
            found = self.path.stat()
            there = any(os.path.samestat(os.fstat(copy.fd), found) for copy in self._copies)
        except OSError:
            there = False
        if not there and not self.failing:
            self._fail(OSError(errno.ENOENT, "it has been removed"))

    def _fail(self, error: OSError) -> None:
        for copy in self._copies:
            with contextlib.suppress(OSError):  # then reading the file cuts off the half frame
                os.ftruncate(copy.fd, copy.size)
        if not self.failing:
            self.failing = error.strerror or str(error)
            self._report(JournalFails(f"{self.path} cannot be written: {self.failing}"))
        self._wanted.set()

    def _due(self) -> bool:
        return self.size > max(COMPACT_BYTES, COMPACT_FACTOR * self._compacted)

    # --- beside it --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Sync the file as `fsync` wants, compact it, repair it; until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._renew)
            nursery.start_soon(self._sync)

    def stop(self, *, kept: bool = True) -> None:
        """The kernel halts: send the answers that still wait, if what they tell is `kept`; else their callers make these
        calls again, in the next kernel. Call this before `run` is cancelled."""
        self._stopping.set()
        while self._waiting:
            then = self._waiting.popleft()[1]
            if kept:
                then()

    def sync_all(self) -> str:
        """The kernel halts and is to come back: bring all frames to the disk. Returns why they are not there, if so."""
        try:
            self._sync_keys()
            for copy in self._copies:
                os.fsync(copy.fd)
            file.sync_directory(self.path)
        except OSError as error:
            return error.strerror or str(error)
        return self.failing

    def close(self) -> None:
        for copy in self._copies:
            os.close(copy.fd)

    async def _sync(self) -> None:
        """Sync all frames that there are with one fsync, again and again; with `never`, when an answer waits for it."""
        while True:
            await self._unsynced.wait()
            self._unsynced, self._hurry = trio.Event(), trio.Event()
            if not self.failing and self._frames > self._synced:
                async with self._switching:
                    frames = self._frames
                    try:
                        await self._to_disk([copy.fd for copy in self._copies])
                    except OSError as error:  # it is not known what is on the disk: only a new file helps
                        self._fail(error)
                if not self.failing:
                    self._kept(frames)
            if self._fsync == "interval":
                with trio.move_on_after(INTERVAL_SECONDS):
                    await self._hurry.wait()

    def _sync_keys(self) -> None:
        """A frame is of no use without its keys."""
        if self._seal is not None:
            self._seal.store.sync()

    async def _to_disk(self, files: Sequence[int]) -> None:
        """Have files on the disk, with the keys that they need. Raises OSError."""
        begun, said = trio.current_time(), False

        async def say() -> None:
            nonlocal said
            await trio.sleep(SLOW_SECONDS)
            said = True
            self._report(JournalWaits(SLOW_SECONDS, done=False))

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(say)
                await trio.to_thread.run_sync(self._sync_keys)
                for fd in files:
                    await trio.to_thread.run_sync(os.fdatasync, fd)
                nursery.cancel_scope.cancel()
        except* OSError as errors:
            raise errors.exceptions[0] from None
        finally:
            if said:
                self._report(JournalWaits(trio.current_time() - begun, done=True))

    def _kept(self, frames: int) -> None:
        self._synced = max(self._synced, frames)
        while self._waiting and self._waiting[0][0] <= self._synced:
            self._waiting.popleft()[1]()

    async def _renew(self) -> None:
        """Put a new file in the place of the old one whenever one is wanted."""
        delay = RETRY_SECONDS
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            forgets = list(self._forgets)
            done = self.failing == "" and await self._compact(scrub=bool(forgets))
            if self.failing:
                done = await self._repair()
            if done and forgets:
                done = await self._forget_all(forgets)
            if done:
                delay = RETRY_SECONDS
            else:
                self._wanted.set()
                await trio.sleep(delay)
                delay = min(2 * delay, RETRY_MOST)

    async def _forget_all(self, forgets: list[_Forget]) -> bool:
        """The journal has just been written anew: forget the keys."""
        try:
            removed = await trio.to_thread.run_sync(self._forget_keys, {pid for one in forgets for pid in one.pids})
        except (OSError, SyscallError) as error:
            for one in forgets:
                one.trouble = error.reason if isinstance(error, SyscallError) else str(error)
            return False
        for one in forgets:
            whose = "its key" if len(one.pids) == 1 else f"the keys of {len(one.pids)} processes"
            what = f"{whose}, so that what was said is noise in the journal and in all copies of it"
            one.gone += [what if self._seal is not None else "its log in the journal, which was overwritten", *removed]
            self._forgets.remove(one)
            one.done.set()
        return True

    def _forget_keys(self, pids: set[int]) -> list[str]:
        removed = [f"{path}, which was not encrypted" for path in file.remove_open_copies(self.path)]
        if self._seal is not None:
            self._seal.forget(pids)
            self._seal.keys.renew(self._seal.store)
        return removed

    async def _compact(self, *, scrub: bool = False) -> bool:
        """Replace the file by one of the state that it adds up to. `scrub`: overwrite the old one. False: not done;
        without room for a new file, the old one is as good as it was."""
        gone = set(self._seal.live.gone) if self._seal is not None else set()
        old, upto = self._copies[0], self._copies[0].size
        new, replaced = -1, False
        try:
            new = await trio.to_thread.run_sync(self._write_compacted, upto)  # needs memory for all that is in it
            while old.size - upto > _TAIL_BYTES and not self.failing:
                upto = await trio.to_thread.run_sync(file.copy, old.fd, upto, old.size, new)
            file.copy(old.fd, upto, old.size, new)
            if not self.failing:
                self._copies = [old, _Copy(new, os.fstat(new).st_size)]
                await trio.to_thread.run_sync(os.fsync, new)
            if not self.failing:
                file.replace(self.path)
                replaced = True
                await trio.to_thread.run_sync(file.sync_directory, self.path)
                async with self._switching:
                    before, self._copies = old.size, self._copies[1:]
                    await trio.to_thread.run_sync(self._leave, old.fd, gone, scrub)
                self._compacted = self.size
                self._report(JournalCompacted(before, self.size))
                return True
        except _Stopped:
            return False
        except MemoryError:
            self._report(JournalGrows("no memory"))
        except OSError as error:
            if replaced:
                self._fail(error)
            elif not self.failing:
                self._report(JournalGrows(error.strerror or str(error)))
        async with self._switching:
            self._copies = [old]
            if new >= 0:
                file.drop_new(self.path, new)
        return False

    def _leave(self, old: int, gone: set[int], scrub: bool) -> None:
        """A new file has taken the place of this one. What cannot be done now is done next time."""
        with contextlib.suppress(OSError, SyscallError):
            if scrub:
                overwrite(old)
            if self._seal is not None and gone:
                self._seal.tidy(gone)
        os.close(old)
        give_back()  # of the state that was read and written, all that there is

    def _write_compacted(self, upto: int) -> int:
        try:
            keys = self._seal.keys if self._seal is not None else None
            found = file.read(self.path, upto, self._rest(), keys)
        except SyscallError as error:
            raise OSError(errno.EIO, error.reason) from None
        if found.trouble:
            raise OSError(errno.EIO, f"it is damaged: {found.trouble}")
        return file.write_new(self.path, found.state.snapshot(), self._rest(), self._seal)

    async def _repair(self) -> bool:
        """Replace the file by one of the live state, since it lacks the frames that could not be written."""
        new = -1
        try:
            state, self._missed, self._stumbled = self._snapshot(), [], False
            new = await trio.to_thread.run_sync(self._write_live, state)
            while self._missed:
                missed, self._missed = self._missed, []
                file.write_all(new, b"".join(missed))
                await trio.to_thread.run_sync(os.fsync, new)
            async with self._switching:
                file.replace(self.path)
                await trio.to_thread.run_sync(file.sync_directory, self.path)
                if self._stumbled:
                    raise OSError(errno.EIO, "a frame could not be encrypted")
                file.write_all(new, b"".join(self._missed))
                # From here on frames go to the new file: none may come to `_missed` while the old ones are left.
                left, self._copies = self._copies, [_Copy(new, os.fstat(new).st_size)]
                self._missed, self.failing = None, ""
                self._compacted = self.size
        except (OSError, MemoryError, _Stopped):
            self._missed = None
            if new >= 0:
                file.drop_new(self.path, new)
            return False
        self._unsynced.set()
        self._report(JournalFails(""))
        for copy in left:
            with contextlib.suppress(OSError):
                await trio.to_thread.run_sync(self._leave, copy.fd, set(), bool(self._forgets))
        return True

    def _write_live(self, state: State) -> int:
        self._opened.hold_again()
        new = file.write_new(self.path, state.snapshot(), self._rest(), self._seal)
        try:
            os.fsync(new)
        except OSError:
            file.drop_new(self.path, new)
            raise
        return new

    def _rest(self) -> Callable[[], None]:
        rest = file.polite()

        def turn() -> None:
            if self._stopping.is_set():
                raise _Stopped
            rest()

        return turn

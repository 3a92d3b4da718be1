"""A file of slots, to which several threads, kernels and commands of one user write.

It only grows at its end, under a lock (flock); a slot is overwritten in its place. Nobody waits for the disk while the
file is held: what is written is synced afterwards, and a whole new file (keys are renewed, much was overwritten) is
written beside this one while others go on, gets what came meanwhile, and takes its name in an instant.

The invariant of that instant: whatever was on the disk in the old file is on the disk in the new one. So no sync ends in
between, and what another process has written is copied and synced before.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock, RLock

from llmasos.kernel.edge import slots
from llmasos.kernel.edge.master import overwrite
from llmasos.kernel.edge.slots import ABOVE, FREE, IMAGE, SLOT_BYTES, Slot
from llmasos.syscalls.atomic_file import make_directory, read_at, sync_directory, write_all, write_at
from llmasos.syscalls.errno import Errno, SyscallError

Anew = Callable[[Slot], Slot | None]  # makes of an entry that which a new file is to have
_PIECE = SLOT_BYTES << 9  # bytes of the file that are looked through at once
_WASTE = 1 << 16  # bytes of overwritten slots below which a file is left as it is
_TRIES = 2  # to write a key, where what is read then is something else
_ASTRAY = "what is read is not what was written"
_TURNS = 8  # of catching up with other processes, before they have to wait


@contextmanager
def told(path: Path) -> Iterator[None]:
    """What the disk says, as SyscallError EIO."""
    try:
        yield
    except OSError as error:
        raise Errno.EIO(
            f"the keys in {path} cannot be used: {error.strerror}; mend that, name another place ([seal] directory), or "
            "boot without encryption (--plain)"
        ) from None


class SlotFile:
    """All methods raise OSError where the disk does, and SyscallError EINVAL: it is another file."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it."""
        self.path = path
        self.above: dict[bytes, Slot] = {}  # those that wrap others
        self._own = RLock()
        self._descriptor = -1
        self._at: dict[bytes, int] = {}  # where each is in the file, by name: there may be a hundred thousand
        self._images = 0  # of image files, which are for ever more and seldom wanted: they are looked for in the file
        self._read_to = 0
        self._free = 0  # bytes of slots that were overwritten
        self._writes = self._synced = 0  # how many there were, and how many of them are on the disk
        self._named = True  # the file's name is on the disk
        self._failed = False  # a sync did, so that it is not known what is on the disk: only a new file helps
        self._foreign = 0  # slots that other processes have written
        self._syncing = Lock()
        self._rewriting = Lock()
        with self.held():
            pass

    # --- slots, while the file is held ------------------------------------------------------------------------------

    def __contains__(self, name: bytes) -> bool:
        return name in self._at

    def slot(self, name: bytes) -> Slot | None:
        """The entry of that name as it is in the file; None: there is none, or not any more."""
        with self._own:
            if (at := self._at.get(name)) is None and self._images:
                at = self._found(name)
            slot = self._slot_at(at) if at is not None else None
            return slot if slot is not None and slot.name == name else None

    def _found(self, name: bytes) -> int | None:
        """Where the latest entry of that name is, by looking through the file from its end."""
        end = self._read_to
        while end:
            start = (end - 1) // _PIECE * _PIECE
            for at in slots.places(read_at(self._descriptor, end - start, start), name):
                if (slot := self._slot_at(start + at)) is not None and slot.name == name:
                    return start + at
            end = start
        return None

    def append(self, slot: Slot) -> None:
        slot.at = self._read_to
        packed = slot.packed()
        self._put_at_end(packed, slot.at)
        self._read_to += len(packed)
        self._know(slot)
        self._writes += 1

    def _put_at_end(self, data: bytes, at: int) -> None:
        """Write behind what is known, and look whether it is there: without a key all is lost that was ever written under
        it. What went astray is cut off, since nobody needs what is there, and no copy of a key is to be left."""
        for _ in range(_TRIES):
            try:
                write_at(self._descriptor, data, at)
                if read_at(self._descriptor, len(data), at) == data:
                    return
            except OSError:
                os.ftruncate(self._descriptor, at)
                raise
            os.ftruncate(self._descriptor, at)
        raise OSError(errno.EIO, _ASTRAY)

    def erase(self, slot: Slot) -> None:
        """Overwrite an entry, unless something else is in its place by now."""
        if (found := self._slot_at(slot.at)) is None or (found.name, found.nonce) != (slot.name, slot.nonce):
            return
        zeros = bytes(SLOT_BYTES * slot.slots)
        write_at(self._descriptor, zeros, slot.at)
        if read_at(self._descriptor, len(zeros), slot.at) != zeros:
            raise OSError(errno.EIO, "a key that was overwritten is still there")
        if self._at.get(slot.name) == slot.at:  # else it has been written anew
            del self._at[slot.name]
            self.above.pop(slot.name, None)
        self._free += SLOT_BYTES * slot.slots
        self._writes += 1

    def _slot_at(self, at: int) -> Slot | None:
        data = read_at(self._descriptor, SLOT_BYTES, at)
        if len(data) < SLOT_BYTES:
            return None
        if (size := slots.length(data)) > SLOT_BYTES:
            data += read_at(self._descriptor, size - SLOT_BYTES, at + SLOT_BYTES)
        return slots.parsed(data, 0, at)

    def _know(self, slot: Slot) -> None:
        if slot.kind == IMAGE:
            self._images += 1
            return
        self._at[slot.name] = slot.at
        if slot.kind in ABOVE:
            self.above[slot.name] = slot

    # --- the whole file ---------------------------------------------------------------------------------------------

    def all(self) -> list[Slot]:
        """All entries. The file is not held while they are taken out of it."""
        with self.held():
            data = self._data()
        return list(slots.latest(data).values())

    def sync(self) -> None:
        """Bring to the disk what was written before the call, by whatever thread. Raises OSError only."""
        try:
            with self._syncing:
                self._sync()
        except SyscallError as error:
            raise OSError(errno.EIO, error.reason) from None

    def rewrite(self, anew: Anew, first: Sequence[Slot] = ()) -> None:
        """Put a file with the `first` entries and what `anew` makes of those here in the place of this one, which is
        overwritten."""
        with self._rewriting:
            while (old := self._rewritten(anew, first)) is None:
                pass
            try:
                self.sync()
                overwrite(old)
            finally:
                os.close(old)

    def tidy(self) -> None:
        """Write the file anew without what was overwritten, if that is most of it."""
        with self.held():
            wasted = self._free > max(_WASTE, self._read_to // 2)
        if wasted:
            self.rewrite(lambda slot: slot)

    def remove(self) -> None:
        """Overwrite and remove the file: nothing under its keys is to be read again."""
        with self.held():
            overwrite(self._descriptor)
            self.path.unlink(missing_ok=True)
            self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _data(self) -> bytes:
        return read_at(self._descriptor, self._read_to, 0)

    def _sync(self) -> None:
        with self._own:
            if self._descriptor < 0:
                return
            if self._failed or os.fstat(self._descriptor).st_nlink == 0:
                with self.held():
                    pass
            writes, named, descriptor = self._writes, self._named, os.dup(self._descriptor)
        try:
            if self._synced < writes:
                os.fdatasync(descriptor)
            if not named:
                sync_directory(self.path.parent)
            self._synced, self._named = max(self._synced, writes), True
        except OSError:
            self._failed = True
            with self.held():
                pass
        finally:
            os.close(descriptor)

    # --- the file is held -------------------------------------------------------------------------------------------

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the file for this process and thread alone, and know all that is in it."""
        with self._own:
            if self._descriptor < 0:
                self._open()
            while True:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
                state = os.fstat(self._descriptor)
                if state.st_nlink:
                    break
                self._follow(state.st_size)
            try:
                self._read(state.st_size)
                if self._failed:
                    self._replace(list(slots.latest(self._data()).values()))
                yield
            finally:
                if self._descriptor >= 0:
                    fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _follow(self, size: int) -> None:
        """The file, which is held, has lost its name: another process has put a new one in its place and overwritten it,
        or somebody has removed it. What it has is then put where the name leads, so that no key is lost."""
        self._read(size)
        data = self._data()
        whole = slots.is_head(data)
        entries = list(slots.latest(data).values()) if whole else []
        try:
            new = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            if not whole:
                raise Errno.EIO(f"the keys in {self.path} were overwritten and removed by another process") from None
            make_directory(self.path.parent)
            self._replace(entries)
            return
        old, self._descriptor = self._descriptor, new
        self._forget_file()
        try:
            fcntl.flock(new, fcntl.LOCK_EX)
            self._read(os.fstat(new).st_size)
            known = slots.latest(self._data())
            for slot in entries:
                if slot.name not in known:
                    self.append(slot)
            self._flush()
        except BaseException:
            self._descriptor = old
            self._forget_file()
            os.close(new)
            raise
        os.close(old)

    def _forget_file(self) -> None:
        self._at, self.above, self._read_to, self._free, self._images = {}, {}, 0, 0, 0

    def _flush(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError:
            self._failed = True
            raise
        self._synced = self._writes

    def _open(self) -> None:
        self._forget_file()
        make_directory(self.path.parent)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def _read(self, size: int) -> None:
        """Take in what stands beyond what is known."""
        if self._read_to == 0:
            size = self._begun(size)
            self._read_to = SLOT_BYTES
        if size <= self._read_to:
            return
        data = read_at(self._descriptor, size - self._read_to, self._read_to)
        for at in range(0, len(data) - SLOT_BYTES + 1, SLOT_BYTES):
            if data[at] == FREE:
                self._free += SLOT_BYTES
            elif (slot := slots.parsed(data, at, self._read_to)) is not None:
                self._know(slot)
        self._read_to += len(data) // SLOT_BYTES * SLOT_BYTES
        self._foreign += 1

    def _begun(self, size: int) -> int:
        """Have a head in the file; returns its size then. One without any entry protects nothing: it is begun anew,
        whatever became of its head."""
        start = read_at(self._descriptor, min(size, _PIECE), 0)
        if slots.is_head(start):
            return size
        if size > _PIECE or not slots.is_blank(start):
            raise Errno.EINVAL(f"{self.path} is no file of keys of version {slots.VERSION}; it has not been touched")
        os.ftruncate(self._descriptor, 0)
        sync_directory(self.path.parent)  # its name is on the disk before the first key is used
        self._put_at_end(slots.head(), 0)
        return SLOT_BYTES

    # --- a new file in its place ------------------------------------------------------------------------------------

    def _rewritten(self, anew: Anew, first: Sequence[Slot]) -> int | None:
        """The old file, which is held until it is closed, after a new one has taken its name; None: another process has
        put one there meanwhile."""
        with self.held():
            was, before = os.fstat(self._descriptor).st_ino, self._data()
        new = _New(self.path, anew)
        try:
            new.begin(first)
            new.take(list(slots.latest(before).values()))
            os.fsync(new.descriptor)
            for turn in range(_TURNS + 1):
                with self._syncing:  # until the names are exchanged nothing more is said to be on the disk
                    with self.held():
                        if os.fstat(self._descriptor).st_ino != was:
                            return None
                        writes, foreign, now = self._writes, self._foreign, self._data()
                    new.follow(before, now, sync=True)
                    before = now
                    with self.held():
                        now, still = self._data(), os.fstat(self._descriptor).st_ino == was
                        mine = self._foreign == foreign and not self._erased_by_others(before, now)
                        if still and (mine or turn == _TURNS):
                            new.follow(before, now, sync=not mine)
                            new.check()
                            return self._exchange(new, writes)
        finally:
            new.close()
        return None

    def _erased_by_others(self, before: bytes, now: bytes) -> bool:
        """What this process erases it forgets at once; what others erase it still knows. Of image files it knows neither,
        and takes them for others'."""
        gone = (slots.parsed(before, at, 0) for at in slots.differences(before, now) if at < len(before))
        return any(one is not None and (one.kind == IMAGE or self._at.get(one.name) == one.at) for one in gone)

    def _exchange(self, new: _New, writes: int) -> int:
        """The new file, which has all that this one has, gets its name. `writes` of them are on the disk."""
        os.replace(new.path, self.path)
        old, self._descriptor = self._descriptor, new.taken()
        self._at, self.above, self._read_to, self._free = new.places, new.above, new.end, new.free
        self._images = new.images
        self._named, self._synced = False, min(self._synced, writes)
        return old

    def _replace(self, entries: list[Slot]) -> None:
        """Put a file with these slots in the place of this one, which is overwritten, while it is held: the disk has
        failed, or the file was removed."""
        beside = self.path.with_name(self.path.name + ".again")
        new = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(new, fcntl.LOCK_EX)
            write_all(new, data := b"".join([slots.head(), *(slot.packed() for slot in entries)]))
            os.fsync(new)
            _same(new, data)
            os.replace(beside, self.path)
            sync_directory(self.path.parent)
        except OSError:
            os.close(new)
            beside.unlink(missing_ok=True)
            raise
        old, self._descriptor = self._descriptor, new
        self._forget_file()
        self._synced, self._named, self._failed = self._writes, True, False
        try:
            overwrite(old)
        finally:
            os.close(old)
        self._read(os.fstat(new).st_size)


def _same(descriptor: int, data: bytes | bytearray) -> None:
    for at in range(0, len(data), _PIECE):
        if read_at(descriptor, _PIECE, at) != data[at : at + _PIECE]:
            raise OSError(errno.EIO, _ASTRAY)


class _New:
    """A file that is to take the place of another. Of all processes one writes it; others wait for that, holding
    nothing."""

    def __init__(self, path: Path, anew: Anew) -> None:
        self.path, self._anew = path.with_name(path.name + ".new"), anew
        while True:
            self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            fcntl.flock(self.descriptor, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self.descriptor), os.stat(self.path)):
                    break  # else whoever has written it has given it the name of the other
            os.close(self.descriptor)
        self.places: dict[bytes, int] = {}
        self.above: dict[bytes, Slot] = {}
        self.end = self.free = self.images = 0
        self._wrote = bytearray()  # what it is to be
        self._made: dict[bytes, Slot] = {}  # what was made, by the name of that of which it was

    def begin(self, first: Sequence[Slot]) -> None:
        os.ftruncate(self.descriptor, 0)
        write_at(self.descriptor, slots.head(), 0)
        self._wrote[:] = slots.head()
        self.end = SLOT_BYTES
        self._put(first)

    def take(self, entries: Sequence[Slot]) -> None:
        """Have what is made of these entries."""
        made = [(slot.name, one) for slot in entries if (one := self._anew(slot)) is not None]
        stale = [mine for name, _ in made if (mine := self._made.get(name)) is not None]
        self._put([one for _, one in made])
        for mine in stale:
            self._erase(mine)
        self._made.update(made)

    def follow(self, before: bytes, now: bytes, *, sync: bool) -> None:
        """Do here what was done to the other file between these two moments."""
        changed = list(slots.differences(before, now))
        gone = [slot for at in changed if at < len(before) and (slot := slots.parsed(before, at, 0)) is not None]
        left = slots.latest(now) if gone else {}
        self.take([slot for at in changed if (slot := slots.parsed(now, at, 0)) is not None])
        for slot in gone:
            if slot.name not in left and (mine := self._made.pop(slot.name, None)) is not None:
                self._erase(mine)
        if changed and sync:
            os.fsync(self.descriptor)

    def check(self) -> None:
        """Raises OSError EIO: what was written is not what is read. The file whose place it is to take is overwritten."""
        _same(self.descriptor, self._wrote)

    def taken(self) -> int:
        """The descriptor, which is the caller's now."""
        descriptor, self.descriptor = self.descriptor, -1
        return descriptor

    def close(self) -> None:
        if self.descriptor >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self.descriptor)

    def _put(self, entries: Sequence[Slot]) -> None:
        start, packed = self.end, []
        for slot in entries:
            slot.at = self.end
            packed.append(slot.packed())
            self.end += len(packed[-1])
            if slot.kind == IMAGE:
                self.images += 1
            else:
                self.places[slot.name] = slot.at
            if slot.kind in ABOVE:
                self.above[slot.name] = slot
        os.lseek(self.descriptor, start, os.SEEK_SET)
        write_all(self.descriptor, data := b"".join(packed))
        self._wrote += data

    def _erase(self, slot: Slot) -> None:
        size = SLOT_BYTES * slot.slots
        write_at(self.descriptor, bytes(size), slot.at)
        self._wrote[slot.at : slot.at + size] = bytes(size)
        self.free += size
        if self.places.get(slot.name) == slot.at:
            del self.places[slot.name]
            self.above.pop(slot.name, None)

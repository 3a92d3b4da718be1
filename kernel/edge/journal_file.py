"""The file of the journal: a header, then frames, each with its length and a checksum.

As in SQLite's write-ahead log, a frame counts if it is whole. If the kernel's death cut the last frame short, reading the
file cuts it off. If the file is damaged before its end, all frames before the damage count, and the file is kept aside as
it is. A file of another version, or of another program, is refused and not touched. Reading is separate from writing, so
that compaction (journal_keeper.py) can read a file that grows. Version 4 differs from 3 in that its frames are encrypted
(journal_seal.py).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import xxhash

from llmasos.kernel.edge.journal_seal import Reader, Seal
from llmasos.kernel.edge.key_store import Store
from llmasos.kernel.edge.keys import Keys
from llmasos.kernel.edge.master import overwrite
from llmasos.kernel.edge.slots import JOURNAL, Slot
from llmasos.kernel.journal.records import BadFrame, Frame, encode
from llmasos.kernel.journal.state import State
from llmasos.syscalls import runtime
from llmasos.syscalls.atomic_file import read_at
from llmasos.syscalls.errno import Errno, SyscallError

NAME = runtime.JOURNAL
VERSION, ENCRYPTED = 3, 4
_HEADER = struct.Struct("<8sI4x")
_MAGIC = b"LLMasOSj"
_FRAME = struct.Struct("<IIQ")  # length, a check of it, a check of the body
KEY_BYTES = 32
_REPLACED = " (another was put in its place)"  # what `seal status` says then
_SLICE = 0.001  # seconds of reading or writing in a thread before others have their turn
_PIECE = 1 << 20


@dataclass(slots=True)
class Found:
    """The state that a file adds up to. `end` is where the last whole frame ends; `trouble` says why nothing counts after
    it; `torn`: only the last write was cut short. `lost`: processes whose keys are gone, which are left out. `journal`:
    where the key of an encrypted one is; `names`: of its processes' keys, by pid."""

    state: State
    end: int
    trouble: str = ""
    torn: bool = False
    lost: set[int] = field(default_factory=set)
    journal: tuple[Store, bytes] | None = None
    names: dict[int, bytes] = field(default_factory=dict)


def framed(body: bytes) -> bytes:
    """A frame as it stands in the file."""
    length = len(body).to_bytes(4, "little")
    return _FRAME.pack(len(body), xxhash.xxh32_intdigest(length), xxhash.xxh64_intdigest(body)) + body


def header(version: int = VERSION) -> bytes:
    return _HEADER.pack(_MAGIC, version)


def read(
    path: Path,
    upto: int | None = None,
    rest: Callable[[], None] = lambda: None,
    keys: Keys | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Found:
    """Read a file, or its first `upto` bytes, which are known to be whole: those of a kernel that runs and has rows of
    processes whose keys are gone (shredded ones, until they are reaped), so these stay. `rest` is called often, and so
    is `progress` with how many bytes of how many have been read.

    Raises SyscallError EINVAL: the file is of another version, or no journal; EIO: it cannot be read; EPERM: it is
    encrypted, and a key is not at hand.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size if upto is None else upto
            head = file.read(_HEADER.size)
            if trouble := _check_header(path, head):
                return Found(State(b""), 0, trouble)
            reader = Reader(keys, encrypted=head == header(ENCRYPTED))
            return _read_frames(file, size, rest, reader, progress, rows=upto is not None)
    except OSError as error:
        raise Errno.EIO(
            f"the journal {path} cannot be read: {error.strerror}; mend that, or boot without it (--no-journal)"
        ) from None


def _check_header(path: Path, found: bytes) -> str:
    """What is wrong with the head of a journal: after a loss of power a file system may have the length of a file, or its
    name alone, without what was written. Raises SyscallError EINVAL: it is of something else."""
    if len(found) < _HEADER.size and any(header(version).startswith(found) for version in (VERSION, ENCRYPTED)):
        return f"{len(found)} of {_HEADER.size} bytes of the head"
    if not any(found):
        return "the head is all zeros"
    magic, version = _HEADER.unpack(found) if len(found) == _HEADER.size else (b"", 0)
    if magic != _MAGIC:
        raise Errno.EINVAL(
            f"{path} is no journal of LLMasOS; it has not been touched: move it away, or name another directory"
        )
    if version not in (VERSION, ENCRYPTED):
        raise Errno.EINVAL(
            f"the journal {path} is of version {version}, {VERSION} and {ENCRYPTED} are known here; it has not been "
            "touched: boot the LLMasOS that wrote it, or move it away and begin anew"
        )
    return ""


def _read_frames(
    file: BinaryIO,
    size: int,
    rest: Callable[[], None],
    reader: Reader,
    progress: Callable[[int, int], None],
    *,
    rows: bool,
) -> Found:
    found = Found(State(b""), _HEADER.size)

    def turn() -> None:
        progress(found.end, size)
        rest()

    try:
        return _read_each(file, size, turn, reader, found)
    finally:
        found.lost, found.journal, found.names = reader.lost, reader.journal, reader.names
        for pid in () if rows else found.lost:
            found.state.processes.pop(pid, None)


def _read_each(file: BinaryIO, size: int, rest: Callable[[], None], reader: Reader, found: Found) -> Found:
    while found.end < size:
        head = file.read(min(_FRAME.size, size - found.end))
        if len(head) < _FRAME.size:
            return _cut(found, torn=True, trouble=f"{len(head)} bytes of a frame's head")
        length, check, digest = _FRAME.unpack(head)
        if xxhash.xxh32_intdigest(length.to_bytes(4, "little")) != check:
            return _cut(found, torn=False, trouble="a frame's length is damaged")
        left = size - found.end - _FRAME.size
        if length > left:
            return _cut(found, torn=True, trouble=f"{left} of {length} bytes of a frame")
        body = file.read(length)
        if xxhash.xxh64_intdigest(body) != digest:
            return _cut(found, torn=length == left, trouble="a frame's checksum is wrong")
        try:
            if (frame := reader.decode(body)) is not None:
                found.state.apply(frame)
        except BadFrame as error:
            return _cut(found, torn=False, trouble=f"a frame makes no sense: {error}")
        found.end += _FRAME.size + length
        rest()
    return found


def _cut(found: Found, *, torn: bool, trouble: str) -> Found:
    found.torn, found.trouble = torn, f"{trouble} at byte {found.end}"
    return found


def polite() -> Callable[[], None]:
    """A function to be called often in a thread: it lets other threads run every millisecond."""
    turn = time.monotonic()

    def rest() -> None:
        nonlocal turn
        if time.monotonic() - turn > _SLICE:
            time.sleep(_SLICE)
            turn = time.monotonic()

    return rest


def write_new(
    path: Path, frames: Iterable[Frame], rest: Callable[[], None] = lambda: None, seal: Seal | None = None
) -> int:
    """Write a file of these frames beside `path`, for `replace`; returns its descriptor, at its end. Raises OSError."""
    new = os.open(_beside(path), os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        for piece in _pieces(frames, rest, seal):
            write_all(new, piece)
    except BaseException:
        drop_new(path, new)
        raise
    return new


def _pieces(frames: Iterable[Frame], rest: Callable[[], None], seal: Seal | None) -> Iterator[bytes]:
    """A segment of their own for the frames; what the kernel writes goes on in its own."""
    segment = seal.segment() if seal is not None else None
    piece = bytearray(header(VERSION if segment is None else ENCRYPTED))
    if segment is not None:
        piece += framed(segment.begin)
    for frame in frames:
        try:
            piece += framed(encode(frame) if segment is None else segment.encode(frame))
        except SyscallError as error:  # no place for a key
            raise OSError(errno.EIO, error.reason) from None
        if len(piece) >= _PIECE:
            yield bytes(piece)
            piece.clear()
        rest()
    if seal is not None:
        seal.store.sync()
        piece += framed(seal.live.begin)
    yield bytes(piece)


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`. Raises OSError; then it is not known how much of it is in the file."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def copy(source: int, start: int, end: int, target: int) -> int:
    """Append a stretch of one file to another; returns `end`. Raises OSError."""
    while start < end:
        piece = os.pread(source, min(_PIECE, end - start), start)
        if not piece:
            raise OSError(errno.EIO, "the journal is shorter than what was written to it")
        write_all(target, piece)
        start += len(piece)
    return end


def replace(path: Path) -> None:
    """Give the file that `write_new` began the name of the journal. Raises OSError."""
    os.replace(_beside(path), path)


def replace_durably(path: Path, new: int) -> None:
    """The same, and file and name are on the disk: from then on syncing the file keeps what it has. Raises OSError."""
    os.fsync(new)
    replace(path)
    sync_directory(path)


def drop_new(path: Path, new: int) -> None:
    """Close and remove a new file that is not wanted any more."""
    os.close(new)
    _beside(path).unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Sync the directory of a file, so that the file's name is on the disk. Raises OSError."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def remove_open_copies(path: Path) -> list[Path]:
    """Overwrite and remove the damaged files that were set aside and are not encrypted. Raises OSError."""
    removed = []
    for aside in sorted(path.parent.glob(f"{path.name}.damaged-*")):
        descriptor = os.open(aside, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if read_at(descriptor, _HEADER.size) == header(ENCRYPTED):
                continue
            overwrite(descriptor)
            aside.unlink()
            removed.append(aside)
        finally:
            os.close(descriptor)
    return removed


# --- a boot ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Opened:
    """A journal that this kernel holds, and notes for the log. `fd` is at the end of `size` bytes."""

    path: Path
    lock: int
    fd: int
    size: int
    state: State
    notes: list[tuple[str, str]]  # level, text
    fresh: bool = False  # the file was made just now
    seal: Seal | None = None  # how it is encrypted

    def hold_again(self) -> None:
        """Make the directory again if it has been removed, and hold that one. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self.lock), self.path.parent.stat()):
                return
        try:
            held = _hold(self.path.parent)
        except SyscallError as error:
            raise OSError(errno.EBUSY, error.reason) from None
        os.dup2(held, self.lock, inheritable=False)  # one lock for both: it belongs to the open file
        os.close(held)

    def write_without(self, pids: set[int]) -> None:
        """Write the journal anew without these processes, of which no kernel runs now, and overwrite what it was. Raises
        SyscallError EIO."""
        for pid in pids:
            self.state.processes.pop(pid, None)
            for program in self.state.programs.values():
                program.answers.forget(pid)
        try:
            new = write_new(self.path, self.state.snapshot(), seal=self.seal)
            replace_durably(self.path, new)
            overwrite(self.fd)
        except OSError as error:
            raise Errno.EIO(f"the journal {self.path} cannot be written anew: {error.strerror}; mend that") from None
        os.close(self.fd)
        self.fd, self.size = new, os.fstat(new).st_size

    def close(self, *, remove: bool = False) -> None:
        """Let go of the journal. `remove` deletes it: nothing is to come back. A fresh journal in which nothing was
        written is deleted too: then the kernel could not be booted. Raises SyscallError EIO: it is still there; OSError.
        It is let go in any case."""
        try:
            self._close(remove=remove)
        finally:
            os.close(self.lock)

    def _close(self, *, remove: bool) -> None:
        if remove or (self.fresh and self.path.exists() and self.path.stat().st_size == self.size):
            self._remove()
        _beside(self.path).unlink(missing_ok=True)

    def _remove(self) -> None:
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise Errno.EIO(
                f"the journal {self.path} cannot be removed: {error.strerror}; what has ended comes back with the next "
                "kernel there, unless you remove it"
            ) from None
        if self.seal is not None:
            with contextlib.suppress(SyscallError):  # then `seal status` shows keys that nothing needs
                self.seal.keys.remove(self.seal.store)


def open_journal(
    directory: Path, keys: Keys | None = None, progress: Callable[[int, int], None] = lambda done, of: None
) -> Opened:
    """Hold the journal of a directory; make one if there is none. A damaged file is put aside. A link in the directory
    leads to the journal of a dead kernel that kept it elsewhere; then that one is opened. It is encrypted as `keys` say
    (None: it is not); one that was made the other way is written anew. `progress`: as of `read`.

    Raises SyscallError: EBUSY: another kernel holds it; EINVAL, EPERM and EIO as `read` does.
    """
    path = directory / NAME
    if path.is_symlink() and path.exists():  # the lock and the new files belong beside the file, not beside the link
        path = path.resolve()
    lock = _hold(path.parent)
    try:
        _beside(path).unlink(missing_ok=True)
        opened = _open(path, lock, keys, progress)
        if keys is not None and keys.plain:  # then it is no surprise to the next kernel that this one is not encrypted
            for store, slot in _kept_keys(keys, path):
                store.retell(slot, f"{slot.text}{_REPLACED}")
        return opened
    except OSError as error:
        os.close(lock)
        raise Errno.EIO(
            f"the journal {path} cannot be written: {error.strerror}; mend that, name another directory, or boot without "
            "it (--no-journal)"
        ) from None
    except BaseException:
        os.close(lock)
        raise


def _open(path: Path, lock: int, keys: Keys | None, progress: Callable[[int, int], None]) -> Opened:
    notes: list[tuple[str, str]] = []
    encrypts = keys is not None and not keys.plain
    if not path.exists():
        seal = Seal(keys, None, {}, os.fspath(path)) if keys is not None and encrypts else None
        fd = write_new(path, State(os.urandom(KEY_BYTES)).snapshot(), seal=seal)
        replace_durably(path, fd)
        return Opened(path, lock, fd, os.fstat(fd).st_size, read(path, keys=keys).state, notes, fresh=True, seal=seal)
    found = read(path, keys=keys, progress=progress)
    if keys is not None and encrypts and found.journal is None and found.end > _HEADER.size:
        _check_open(path, keys)
    seal = Seal(keys, found.journal, found.names, os.fspath(path)) if keys is not None and encrypts else None
    if found.lost:
        pids = ", ".join(map(str, sorted(found.lost)))
        notes.append(("warning", f"journal: the keys of processes {pids} are gone, and what they said with them"))
    if found.trouble and (not found.torn or not found.state.secret):
        return Opened(path, lock, *_mend(path, found, notes, seal), found.state, notes, seal=seal)
    if found.torn:
        notes.append(("warning", f"journal: the last write was cut short ({found.trouble}); cut off"))
    if encrypts != (found.journal is not None):
        return Opened(path, lock, *_turn_over(path, found, notes, seal, keys), found.state, notes, seal=seal)
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    if found.torn:
        os.ftruncate(fd, found.end)
    if seal is not None:
        write_all(fd, begin := framed(seal.live.begin))
        found.end += len(begin)
    return Opened(path, lock, fd, found.end, found.state, notes, seal=seal)


def _turn_over(
    path: Path, found: Found, notes: list[tuple[str, str]], seal: Seal | None, keys: Keys | None
) -> tuple[int, int]:
    """Write a journal that was not encrypted so that it is, or the other way round. What it was before is overwritten."""
    fd = write_new(path, found.state.snapshot(), seal=seal)
    os.fsync(fd)
    old = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        replace(path)
        sync_directory(path)
        if found.journal is None:
            overwrite(old)
        elif keys is not None:
            keys.remove(found.journal[0])
    finally:
        os.close(old)
    now = "is encrypted from here on" if seal is not None else "is not encrypted any more (--plain)"
    notes.append(("info", f"journal: it {now}"))
    return fd, os.fstat(fd).st_size


def _kept_keys(keys: Keys, path: Path) -> list[tuple[Store, Slot]]:
    """The keys of encrypted journals that were there."""
    stores = [keys.store(one.name) for one in keys.stores()]
    return [(store, slot) for store in stores for slot in store.find(JOURNAL) if slot.text == os.fspath(path)]


def _check_open(path: Path, keys: Keys) -> None:
    """A journal is not encrypted. If there are keys of one that was, somebody may have put another in its place, and only
    --plain takes that. Raises SyscallError EPERM."""
    for store, _ in _kept_keys(keys, path):
        raise Errno.EPERM(
            f"the journal {path} is not encrypted, and keys of an encrypted one are in {store.path}: another has been "
            "put in its place. Bring the encrypted one back; or move this one away and begin anew; or, if you know that "
            "it is yours, boot once with --plain, which goes on with it"
        )


def _hold(directory: Path) -> int:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Errno.EIO(
            f"the directory {directory} of the journal cannot be used: {error.strerror}; name another, or boot without "
            "a journal (--no-journal)"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise Errno.EBUSY(
            f"another kernel keeps its journal in {directory}; name another directory for this one"
        ) from None
    except OSError as error:
        os.close(lock)
        raise Errno.EIO(
            f"the directory {directory} of the journal cannot be held by one kernel alone: {error.strerror}; name another"
        ) from None
    return lock


def _mend(path: Path, found: Found, notes: list[tuple[str, str]], seal: Seal | None) -> tuple[int, int]:
    """Put a damaged file aside and go on with a new one of what could be read. The old one loses its name last."""
    found.state.secret = found.state.secret or os.urandom(KEY_BYTES)
    aside = next(name for n in range(1, 1 << 20) if not (name := path.with_name(f"{path.name}.damaged-{n}")).exists())
    size = path.stat().st_size
    fd = write_new(path, found.state.snapshot(), seal=seal)
    # Where there are no hard links the file is moved, and for an instant there is no journal.
    with contextlib.suppress(OSError):
        os.link(path, aside)
    if not aside.exists():
        path.rename(aside)
    replace_durably(path, fd)
    notes.append(
        (
            "error",
            f"journal: damaged: {found.trouble} of {size}; what stands before it counts, the file is kept as {aside}",
        )
    )
    return fd, os.fstat(fd).st_size

"""Files that are whole or not there at all, however their writer ends.

A file is written without a name where the system can do that (Linux's O_TMPFILE), else beside its name, and gets the name
by rename, which replaces what had it in one step (as QEMU, git and most databases do it). What a writer that was killed
has left is removed by the next one in the same directory: a lock that dies with its holder tells it from what is being
written.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX, _SUFFIX = ".llmasos-", ".part"


@contextmanager
def replacing(
    path: str | os.PathLike[str], *, mode: int = 0o600, durable: bool = False, new: bool = False
) -> Iterator[int]:
    """A descriptor to write a new file to, which takes the name `path` when the block ends; what raises in it leaves what
    had the name before, and nothing else. `durable`: file and name are on the disk then. `new`: nothing is replaced.
    Raises OSError; FileExistsError: `new`, and something has the name."""
    directory, name = os.path.split(os.fspath(path))
    directory = directory or os.curdir
    _sweep(directory)
    beside = os.path.join(directory, f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}")
    descriptor = _unnamed(directory, mode)
    named = descriptor is None
    if descriptor is None:
        descriptor = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with suppress(OSError):  # a file system without locks: then nobody removes what was left either
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
        if durable:
            os.fsync(descriptor)
        if not named:
            _name(descriptor, directory, os.path.basename(beside))
            named = True
        if new and _linked(beside, os.path.join(directory, name)):
            os.unlink(beside)
        else:
            os.replace(beside, os.path.join(directory, name))
        named = False
        if durable:
            sync_directory(directory)
    finally:
        if named:
            with suppress(OSError):
                os.unlink(beside)
        os.close(descriptor)


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[int]:
    """A descriptor for reading; a path that turns out to be a fifo or a device is not waited for. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_all(descriptor: int, *buffers: bytes | memoryview) -> int:
    """Write all of the buffers, however many calls that takes; returns how many bytes. Raises OSError."""
    left = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
    size = sum(map(len, left))
    while left:
        done = os.writev(descriptor, left)
        if done == 0:
            raise OSError(errno.EIO, "nothing more is written")
        while left and done >= len(left[0]):
            done -= len(left.pop(0))
        if left:
            left[0] = left[0][done:]
    return size


def write_at(descriptor: int, data: bytes, at: int) -> None:
    """Write all of the data at a place, however many calls that takes. Raises OSError."""
    done = 0
    while done < len(data):
        if (count := os.pwrite(descriptor, data[done:], at + done)) == 0:
            raise OSError(errno.EIO, "nothing more is written")
        done += count


def read_at(descriptor: int, size: int, at: int = 0) -> bytes:
    """So many bytes of a file from `at` on, or those up to its end, however many calls that takes. Raises OSError."""
    found = os.pread(descriptor, size, at)
    while len(found) < size and (more := os.pread(descriptor, size - len(found), at + len(found))):
        found += more
    return found


def _linked(beside: str, path: str) -> bool:
    """Give a file a name that nothing has; False: nothing has it, and there are no hard links here. Raises OSError."""
    try:
        os.link(beside, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
        return False
    return True


def _unnamed(directory: str, mode: int) -> int | None:
    """A file without a name, or None where there are no such files."""
    if not hasattr(os, "O_TMPFILE"):
        return None
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        return None


def _name(descriptor: int, directory: str, name: str) -> None:
    """Give a file without a name one in the directory."""
    place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:  # with a descriptor of the directory Python calls linkat, which follows; else link, which does not
        os.link(f"/proc/self/fd/{descriptor}", name, dst_dir_fd=place, follow_symlinks=True)
    finally:
        os.close(place)


def _sweep(directory: str) -> None:
    """Remove what killed writers have left: nobody holds its lock."""
    with os.scandir(directory) as entries:
        left = [e.path for e in entries if e.name.startswith(_PREFIX) and e.name.endswith(_SUFFIX)]
    for path in left:
        with suppress(OSError), opened(path) as descriptor:  # another user's, or gone
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)


def make_directory(path: Path) -> None:
    """Make a directory and those above it; their names are on the disk then. Raises OSError."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        sync_directory(path.parent)


def sync_directory(directory: str | os.PathLike[str]) -> None:
    """Have the names in a directory on the disk. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system where directories need none
            raise
    finally:
        os.close(descriptor)

"""Where files of keys are that a master key wraps: a list of directories beside it.

The master key is found by the configuration, the files that it wraps by the user's state or `[seal] directory`, so one
key may have several directories under it. Whoever gives it up must know all of them: a directory is in the list, on the
disk, before the first file in it is made. Each has a line of its own, its path in JSON, and a second one when it was
removed. A line that a crash cut short is no JSON; nothing was wrapped in that directory yet. Whoever makes or exchanges
the master key holds the list.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmasos.syscalls.atomic_file import make_directory, sync_directory, write_all
from llmasos.syscalls.errno import Errno

_REMOVED = "removed"
FILES = "files"  # the file of image files' keys
_JOURNAL = re.compile(r"[0-9a-f]{16}")


def stores_in(directory: Path) -> list[Path]:
    """The files of slots in a directory; whatever else is in it is somebody's. Raises OSError."""
    return sorted(path for path in directory.iterdir() if path.name == FILES or _JOURNAL.fullmatch(path.name))


class Listed:
    """The list beside a master key. All methods raise SyscallError EIO where the disk does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Path]:
        """The directories, in the order in which they came."""
        try:
            lines = self.path.read_text("ascii", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._error(error) from None
        found: dict[Path, None] = {}
        for line in lines:
            try:
                name = json.loads(line)
            except ValueError:
                continue
            if isinstance(name, str) and os.path.isabs(name):
                found[Path(name)] = None
            elif isinstance(name, dict):
                found.pop(Path(str(name.get(_REMOVED))), None)
        return list(found)

    def note(self, directory: Path) -> None:
        """Have a directory in the list, on the disk. Whoever calls it holds the list until there is a file in it."""
        if directory not in self.read():
            self._add(os.fspath(directory))

    def drop(self, directory: Path) -> None:
        """Remove a directory if nothing is in it any more, and note that, unless the list is on a read-only disk: one too
        many in it is looked for in vain."""
        with self.alone() as writable:
            try:
                directory.rmdir()
            except OSError:
                return  # others are in it
            if writable:
                self._add({_REMOVED: os.fspath(directory)})

    def _add(self, what: object) -> None:
        with self._opened() as descriptor:
            line = b"\n" + json.dumps(what).encode() + b"\n"  # the first ends what a crash cut short
            write_all(descriptor, line)
            os.fsync(descriptor)
            sync_directory(self.path.parent)

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Hold the list: of all kernels and commands with this master key one makes or exchanges it. Gives whether the
        list can be written."""
        with self._opened(only_read=True) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR

    @contextmanager
    def _opened(self, only_read: bool = False) -> Iterator[int]:
        """`only_read`: a list on a read-only disk will do."""
        try:
            flags = os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            try:
                make_directory(self.path.parent)
                descriptor = os.open(self.path, flags | os.O_RDWR | os.O_CREAT, 0o600)
            except OSError as error:
                if not (only_read and error.errno == errno.EROFS and self.path.exists()):
                    raise
                descriptor = os.open(self.path, flags | os.O_RDONLY)
            try:
                yield descriptor
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._error(error) from None

    def _error(self, error: OSError) -> Exception:
        return Errno.EIO(
            f"the list of what the master key wraps, {self.path}, cannot be used: {error.strerror}; mend that, name "
            "another place ([seal] key_file), or boot without encryption (--plain)"
        )

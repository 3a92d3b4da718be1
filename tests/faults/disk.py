"""What a power loss can leave of files: their operations are recorded, and every legal outcome of them is made.

The model of ALICE (Pillai et al., OSDI 2014) and CrashMonkey (Mohan et al., OSDI 2018). Until a file is synced, each page
of each write to it may or may not be on the disk, and its size may be there without its contents, which are zeros then;
until a directory is synced, each name that was made, changed or removed in it may be as before. fsync of a file says
nothing of its name. What POSIX allows is more than what ext4, XFS or btrfs do; whatever outlives it outlives them.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = 4096  # bytes that a disk writes whole; a write may still be cut in the middle of the last one
MOST_NAMES = 5  # pending operations on names whose subsets are all tried; of more, only the beginnings


@dataclass(frozen=True, slots=True)
class Write:
    file: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Cut:
    file: int
    size: int


@dataclass(frozen=True, slots=True)
class Name:
    """`to` names `file` from here on; `gone` is the name that it loses (a rename). `file` None: `to` is removed."""

    to: str
    file: int | None
    gone: str = ""


@dataclass(frozen=True, slots=True)
class Sync:
    """The first `upto` operations are on the disk, as far as they are of this file (or of names in this directory)."""

    file: int | str
    upto: int


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that the outside saw at this moment."""

    what: Any


Op = Write | Cut | Name | Sync | Mark
Tree = dict[str, bytes]
"""The files of a directory, by their names."""


@dataclass
class Disk:
    """Records what this process does to the files of one directory, by way of Python's `os`."""

    root: Path
    base: Tree = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    fault: Callable[[str], None] = lambda call: None
    """Called before each write and sync; what it raises the caller gets."""
    clock: Callable[[], float] = lambda: 0.0
    times: list[float] = field(default_factory=list)  # of the operations
    _files: dict[tuple[int, int], int] = field(default_factory=dict)
    _first: dict[str, int] = field(default_factory=dict)  # files of `base`
    _count: Iterator[int] = field(default_factory=itertools.count)

    def mark(self, what: Any) -> None:
        self._did(Mark(what))

    def _did(self, op: Op) -> None:
        self.ops.append(op)
        self.times.append(self.clock())

    @contextmanager
    def recording(self) -> Iterator[None]:
        for path in self.root.iterdir():
            if path.is_file():
                self.base[path.name] = path.read_bytes()
                self._first[path.name] = self._of(path.stat())
        names = ("open", "write", "writev", "ftruncate", "fsync", "fdatasync", "replace", "rename", "link", "unlink")
        real = {name: getattr(os, name) for name in names}
        for name, call in real.items():
            setattr(os, name, _around(getattr(self, f"_{name}"), call))
        try:
            yield
        finally:
            for name, call in real.items():
                setattr(os, name, call)

    def _of(self, found: os.stat_result, *, new: bool = False) -> int:
        key = found.st_dev, found.st_ino
        if new or key not in self._files:
            self._files[key] = next(self._count)
        return self._files[key]

    def _known(self, fd: int) -> int | None:
        found = os.fstat(fd)
        return self._files.get((found.st_dev, found.st_ino))

    def _inside(self, path: Any, directory: int | None = None) -> str:
        """The name of a path in the directory; empty: it is not there."""
        path = os.fspath(path)
        if directory is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{directory}"), path)
        parent, name = os.path.split(os.path.abspath(path))
        return name if parent == os.fspath(self.root) else ""

    def _open(self, call: Any, path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        unnamed = flags & os.O_TMPFILE == os.O_TMPFILE
        name = "" if unnamed else self._inside(path)
        new = bool(name and flags & os.O_CREAT and not os.path.lexists(path))
        fd: int = call(path, flags, mode, **more)
        if unnamed and os.fspath(path) == os.fspath(self.root):
            self._of(os.fstat(fd), new=True)
        elif new:
            self._did(Name(name, self._of(os.fstat(fd), new=True)))
        elif name and flags & os.O_TRUNC:
            self._did(Cut(self._of(os.fstat(fd)), 0))
        return fd

    def _write(self, call: Any, fd: int, data: Any) -> int:
        if (file := self._known(fd)) is None:
            return int(call(fd, data))
        self.fault("write")
        count = int(call(fd, data))
        self._did(Write(file, os.lseek(fd, 0, os.SEEK_CUR) - count, bytes(memoryview(data).cast("B")[:count])))
        return count

    def _writev(self, call: Any, fd: int, pieces: Any) -> int:
        if (file := self._known(fd)) is None:
            return int(call(fd, pieces))
        self.fault("write")
        count = int(call(fd, pieces))
        data = b"".join(bytes(piece) for piece in pieces)[:count]
        self._did(Write(file, os.lseek(fd, 0, os.SEEK_CUR) - count, data))
        return count

    def _ftruncate(self, call: Any, fd: int, size: int) -> None:
        call(fd, size)
        if (file := self._known(fd)) is not None:
            self._did(Cut(file, size))

    def _fsync(self, call: Any, fd: int) -> None:
        if (file := self._known(fd)) is not None:
            self.fault("sync")
            self._did(Sync(file, len(self.ops)))
        elif os.path.samestat(os.fstat(fd), self.root.stat()):
            self.fault("sync")
            self._did(Sync("", len(self.ops)))
        call(fd)

    _fdatasync = _fsync

    def _replace(self, call: Any, source: Any, target: Any, **more: Any) -> None:
        was, name = self._inside(source), self._inside(target)
        file = self._of(os.lstat(source)) if was else None
        call(source, target, **more)
        if was and name:
            self._did(Name(name, file, was))

    _rename = _replace

    def _link(self, call: Any, source: Any, target: Any, **more: Any) -> None:
        call(source, target, **more)
        if name := self._inside(target, more.get("dst_dir_fd")):
            self._did(Name(name, self._of(os.stat(self.root / name))))

    def _unlink(self, call: Any, path: Any, **more: Any) -> None:
        call(path, **more)
        if name := self._inside(path):
            self._did(Name(name, None))


def _around(method: Any, call: Any) -> Any:
    return lambda *given, **more: method(call, *given, **more)


# --- what a crash can leave ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Done:
    """The operations before a crash, by what is sure of them."""

    names: list[Name] = field(default_factory=list)  # sure
    loose: list[Name] = field(default_factory=list)  # may have happened
    data: dict[int, list[Write | Cut]] = field(default_factory=dict)  # sure, by file
    pages: list[Write | Cut] = field(default_factory=list)  # may have


def _sorted(ops: list[Op]) -> _Done:
    synced: dict[int | str, int] = {}
    for op in ops:
        if isinstance(op, Sync):
            synced[op.file] = max(op.upto, synced.get(op.file, 0))
    done = _Done()
    for number, op in enumerate(ops):
        match op:
            case Name():
                (done.names if number < synced.get("", 0) else done.loose).append(op)
            case Write() | Cut() if number < synced.get(op.file, 0):
                done.data.setdefault(op.file, []).append(op)
            case Write():
                done.pages += _in_pages(op)
            case Cut():
                done.pages.append(op)
    return done


def _in_pages(op: Write) -> list[Write | Cut]:
    """A write as the disk sees it."""
    pieces: list[Write | Cut] = []
    start = op.offset
    end = op.offset + len(op.data)
    while start < end:
        stop = min(end, (start // PAGE + 1) * PAGE)
        pieces.append(Write(op.file, start, op.data[start - op.offset : stop - op.offset]))
        start = stop
    return pieces


def _subsets(loose: list[Name]) -> Iterator[list[Name]]:
    if len(loose) <= MOST_NAMES:
        for mask in range(1 << len(loose)):
            yield [name for bit, name in enumerate(loose) if mask >> bit & 1]
    else:
        for count in range(len(loose) + 1):
            yield loose[:count]


def _outcomes(pages: list[Write | Cut], pick: random.Random, most: int) -> Iterator[list[Write | Cut]]:
    """What may be left of operations on contents that are not sure: nothing, all, all but one, the beginnings, a write
    that was cut short, sizes without contents, and some at random."""
    yield pages
    if not pages:
        return
    yield []
    yield [_zeros(op) for op in pages]
    for at in range(len(pages)):
        op = pages[at]
        if isinstance(op, Write):
            torn = Write(op.file, op.offset, op.data[: len(op.data) // 2])
            yield [*pages[:at], torn]
            yield [*pages[:at], _zeros(op), *pages[at + 1 :]]
            half = Write(op.file, op.offset, op.data[: len(op.data) // 2] + bytes(len(op.data) - len(op.data) // 2))
            yield [*pages[:at], half, *pages[at + 1 :]]
        yield pages[:at]
        yield pages[:at] + pages[at + 1 :]
    for _ in range(most):
        yield [op for op in pages if pick.random() < 0.5]


def _zeros(op: Write | Cut) -> Write | Cut:
    return Write(op.file, op.offset, bytes(len(op.data))) if isinstance(op, Write) else op


def crashes(disk: Disk, at: int, pick: random.Random, most: int = 4) -> Iterator[Tree]:
    """What the directory may look like after a crash behind operation `at`, each way once. `most`: random subsets of
    pages beside the systematic ones."""
    done = _sorted(disk.ops[:at])
    seen: set[int] = set()
    for names in _subsets(done.loose):
        called: dict[str, int] = dict(disk._first)
        for name in (*done.names, *names):
            called.pop(name.gone, None)
            if name.file is None:
                called.pop(name.to, None)
            else:
                called[name.to] = name.file
        wanted = set(called.values())
        for pages in _outcomes([op for op in done.pages if op.file in wanted], pick, most):
            tree = {name: _contents(disk, file, done, pages) for name, file in called.items()}
            if (key := hash(tuple(sorted(tree.items())))) not in seen:
                seen.add(key)
                yield tree


def _contents(disk: Disk, file: int, done: _Done, pages: list[Write | Cut]) -> bytes:
    data = bytearray(next((disk.base[name] for name, number in disk._first.items() if number == file), b""))
    for op in (*done.data.get(file, ()), *(page for page in pages if page.file == file)):
        if isinstance(op, Cut):
            data[:] = data[: op.size].ljust(op.size, b"\0")
        else:
            data[:] = data.ljust(op.offset, b"\0")
            data[op.offset : op.offset + len(op.data)] = op.data
    return bytes(data)


def lay(tree: Tree, directory: Path) -> None:
    """Make a directory look so."""
    directory.mkdir(mode=0o700)
    for name, data in tree.items():
        (directory / name).write_bytes(data)

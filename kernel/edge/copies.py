"""Private copies of the models that users have shown to a shared kernel, by the digest of their bytes.

transformers, safetensors and the native decoder open paths and map files, and a file that is cut while it is mapped
ends the process that reads it (SIGBUS). So what a user shows is copied into the kernel's own tree, once: files lie
under their SHA-256 in `blobs`, and a model is a directory of hard links to them in `models`, under the SHA-256 of its
list of names and digests, which is in `manifests`. The kernel computes all digests from bytes that came by a
descriptor; nobody can name one that he has not shown. Who has shown what is in `shown/UID`, so it outlives the kernel
as its journal does.

Each user is charged for all copies that he has shown, shared or not, and for small ones as for larger: the kernel keeps
something of every file and model, and empty ones would cost nothing. A copy that no process and no image in memory has
is kept, since it may be shown again; it goes when there is need of room, the longest unused first.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from llmasos.syscalls.atomic_file import make_directory, replacing, sync_directory, write_all
from llmasos.syscalls.budgets import COPIES
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import Budget

PLACE = "files"  # beside the journal
_FOLDERS = BLOBS, MODELS, MANIFESTS, SHOWN, SPOOL = "blobs", "models", "manifests", "shown", "spool"
_PIECE = 1 << 20  # bytes read at a time
_REMEMBERED = 16_384  # files that need not be read again
_SPARE = 20  # a twentieth of the disk stays free
LEAST_FILE, LEAST_MODEL = 4 << 20, 64 << 20  # bytes that a file, and a model, counts as at least
_KINDS = (
    (stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a fifo"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"), (stat.S_ISLNK, "a symbolic link"),
)  # fmt: skip
_OPENED = {os.O_RDONLY: "for reading only", os.O_WRONLY: "for writing only"}


class Stamp(NamedTuple):
    """One writing of a file, as the operating system tells it."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int


class Item(NamedTuple):
    """A file of a model."""

    name: str
    digest: str
    size: int


@dataclass(slots=True)
class Copy:
    """A model, or a single file."""

    digest: str
    items: list[Item]
    uids: dict[int, set[str]] = field(default_factory=dict)  # who has shown it, and which of its files was named
    used: float = 0.0
    pins: int = 0  # calls on their way
    size: int = field(init=False)
    charge: int = field(init=False)  # to each who has shown it

    def __post_init__(self) -> None:
        self.size, self.charge = sum(item.size for item in self.items), charge(self.items)


def charge(items: Iterable[Item]) -> int:
    """The bytes that a model of these files counts as."""
    return max(LEAST_MODEL, sum(max(LEAST_FILE, item.size) for item in items))


def looked_at(descriptor: int, flags: int, *, writing: bool = False) -> Stamp:
    """What a descriptor is of, whose file status flags are `flags`. Raises SyscallError EPERM: nothing that may be shown;
    OSError. May block: the file may be on a file system that somebody else serves."""
    if flags & getattr(os, "O_PATH", 0):
        raise Errno.EPERM("it was opened as a path (O_PATH), which gives no right to its contents; open it for reading")
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(state.st_mode)), "something else")
        raise Errno.EPERM(f"it is {kind}, and a regular file was wanted")
    access = flags & os.O_ACCMODE
    if access == (os.O_RDONLY if writing else os.O_WRONLY):
        raise Errno.EPERM(f"it was opened {_OPENED[access]}; open it for {'writing' if writing else 'reading'}")
    if writing and flags & os.O_APPEND:
        raise Errno.EPERM("it was opened for appending; open it for writing")
    return Stamp(state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def read_whole(descriptor: int, stamp: Stamp, into: Path | None) -> str:
    """The SHA-256 of a file, of which a copy is made if `into` names one; that is on the disk then. Raises SyscallError
    EAGAIN: the file has changed meanwhile; OSError."""
    digest, at, out = hashlib.sha256(), 0, -1
    try:
        if into is not None:
            out = os.open(into, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o400)
        while at < stamp.size:
            data = os.pread(descriptor, min(_PIECE, stamp.size - at), at)
            if not data:
                break
            digest.update(data)
            at += len(data)
            if into is not None:
                write_all(out, data)
        if at < stamp.size or _stamp(descriptor) != stamp:
            raise Errno.EAGAIN("it changed while it was read; show it again")
        if into is not None:
            os.fsync(out)
    except BaseException:
        if into is not None:
            into.unlink(missing_ok=True)
        raise
    finally:
        if out >= 0:
            os.close(out)
    return digest.hexdigest()


def _stamp(descriptor: int) -> Stamp:
    state = os.fstat(descriptor)
    return Stamp(state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


class Copies:
    """The copies in a directory of the kernel's own. Methods that touch the disk for long are marked; they may run in a
    thread, all others belong to the kernel's."""

    def __init__(self, place: Path, in_use: Callable[[], set[str]]) -> None:
        """`in_use`: the paths that images in memory and processes have. Raises OSError."""
        self.place, self._in_use = place, in_use
        self._copies: dict[str, Copy] = {}
        self._blobs: Counter[str] = Counter()  # how often each is used: by copies, and by what is being shown
        self._sizes: dict[str, int] = {}
        self._remembered: OrderedDict[tuple[int, Stamp], str] = OrderedDict()
        self._reserved: Counter[int] = Counter()  # bytes of a user that are being copied
        self._coming: Counter[str] = Counter()  # copies that are being linked, or found to be there
        self._paths: dict[int, frozenset[str]] = {}
        self._charges: Counter[int] = Counter()
        self.refused = 0
        for name in _FOLDERS:
            make_directory(place / name)
        self._recall()

    # --- who has shown what ---

    def paths_of(self, uid: int) -> frozenset[str]:
        """The paths of all copies that a user has shown."""
        found = self._paths.get(uid)
        if found is None:
            mine = ((copy, copy.uids[uid]) for copy in self._copies.values() if uid in copy.uids)
            found = self._paths[uid] = frozenset(self.path(copy, first) for copy, firsts in mine for first in firsts)
        return found

    def path(self, copy: Copy, first: str) -> str:
        place = self.place / MODELS / copy.digest
        return os.fspath(place / first if first else place)

    def charge(self, uid: int) -> int:
        return self._charges[uid] + self._reserved[uid]

    def told(self) -> Budget:
        sums = [self.charge(uid) for uid in self._charges.keys() | self._reserved.keys()]
        held = sum(copy.size for copy in self._copies.values())
        return COPIES.told(held, self.refused, max(sums, default=0))

    # --- files ---

    def known(self, uid: int, stamp: Stamp) -> str:
        """The digest of a file that this user has shown, and nobody has touched since; empty: it must be read. (Only for
        the same user: who serves a file system can say of its files what he likes.)"""
        digest = self._remembered.get((uid, stamp), "")
        if digest and digest in self._sizes:
            self._remembered.move_to_end((uid, stamp))
            return digest
        return ""

    def like(self, size: int) -> bool:
        """Whether there is a file of this size, so that one is read before it is copied."""
        return size in self._sizes.values()

    def spool(self) -> Path:
        """A path for what is to be there for a while."""
        return self.place / SPOOL / secrets.token_hex(16)

    def hold(self, digest: str, size: int) -> None:
        """What is being shown has this file, until `release`."""
        self._blobs[digest] += 1
        self._sizes[digest] = size

    def take(self, uid: int, stamp: Stamp, digest: str, copied: Path | None) -> None:
        """A file was read, and copied to a path of `spool` unless it was there already. Raises OSError."""
        if copied is not None:
            blob = self.place / BLOBS / digest
            if blob.exists():
                copied.unlink()
            else:
                copied.rename(blob)
        self.hold(digest, stamp.size)
        self._remembered[uid, stamp] = digest
        while len(self._remembered) > _REMEMBERED:
            self._remembered.popitem(last=False)

    def has(self, digest: str) -> bool:
        return digest in self._sizes

    def release(self, digests: Iterable[str]) -> list[Path]:
        """What was being shown has these no longer. The paths of those that nothing has, which are to be removed."""
        going = []
        for digest in digests:
            self._blobs[digest] -= 1
            if self._blobs[digest] <= 0:
                del self._blobs[digest]
                self._sizes.pop(digest, None)
                going.append(self._put_away(self.place / BLOBS / digest))
        return going

    def _put_away(self, path: Path) -> Path:
        """Out of the way at once; it takes long to remove what is large."""
        away = self.spool()
        with suppress(FileNotFoundError):
            path.rename(away)
        return away

    # --- copies ---

    @contextmanager
    def coming(self, items: list[Item]) -> Iterator[None]:
        """The copy of these files is about to be linked and added, by one user or several: if it is there already, it
        stays until it is added, though nobody may use it."""
        _, digest = _manifest(items)
        self._coming[digest] += 1
        try:
            yield
        finally:
            self._coming[digest] -= 1
            if not self._coming[digest]:
                del self._coming[digest]

    def link(self, items: list[Item]) -> str:
        """Make the directory of files that are held, unless it is there; its digest. Within `coming`. Raises OSError.
        (Syncs.)"""
        manifest, digest = _manifest(items)
        place, coming = self.place / MODELS / digest, self.spool()
        if (self.place / MANIFESTS / digest).exists() and place.exists():
            return digest
        coming.mkdir(mode=0o700)
        try:
            for item in items:
                self._link(item, coming / item.name)
            sync_directory(coming)
            coming.rename(place)
        except BaseException as error:
            shutil.rmtree(coming, ignore_errors=True)
            if not (isinstance(error, OSError) and place.exists()):  # else another call has made it
                raise
        sync_directory(place.parent)
        with replacing(self.place / MANIFESTS / digest, durable=True) as file:
            write_all(file, manifest)
        return digest

    def _link(self, item: Item, name: Path) -> None:
        """Raises OSError."""
        blob = self.place / BLOBS / item.digest
        try:
            os.link(blob, name)
        except OSError as error:
            if error.errno != errno.EMLINK:  # of ext4: 65,000 names; then another file takes its place
                raise
            again = self.spool()
            with open(blob, "rb") as source, open(again, "xb", opener=partial(os.open, mode=0o400)) as target:
                shutil.copyfileobj(source, target, _PIECE)
                target.flush()
                os.fsync(target.fileno())
            again.rename(blob)
            os.link(blob, name)

    def add(self, uid: int, digest: str, items: list[Item], first: str) -> Copy:
        """The copy that was linked is the user's, and pinned, from here on; `note` writes that down."""
        copy = self._copies.get(digest)
        if copy is None:
            copy = self._copies[digest] = Copy(digest, sorted(items))
            self._blobs.update(item.digest for item in items)
        if uid not in copy.uids:
            self._charges[uid] += copy.charge
        copy.uids.setdefault(uid, set()).add(first)
        self._paths.pop(uid, None)
        copy.used, copy.pins = time.time(), copy.pins + 1
        return copy

    def note(self, uid: int, digest: str, firsts: list[str]) -> None:
        """Write down that a user has shown it, now. Raises OSError. (Syncs, if it is new.)"""
        file, data = self.place / SHOWN / str(uid) / digest, msgspec.json.encode(firsts)
        with suppress(OSError):
            if file.read_bytes() == data:
                os.utime(file)
                return
        make_directory(file.parent)
        with replacing(file, durable=True) as descriptor:
            write_all(descriptor, data)

    def _recall(self) -> None:
        """What an earlier kernel had."""
        shutil.rmtree(self.place / SPOOL)
        (self.place / SPOOL).mkdir(mode=0o700)
        for file in (self.place / MANIFESTS).iterdir():
            manifest = file.read_bytes()
            if hashlib.sha256(manifest).hexdigest() == file.name and (self.place / MODELS / file.name).is_dir():
                items = msgspec.json.decode(manifest, type=list[Item])
                self._copies[file.name] = Copy(file.name, items)
                self._blobs.update(item.digest for item in items)
                self._sizes.update((item.digest, item.size) for item in items)
        for directory in (self.place / SHOWN).iterdir():
            uid = int(directory.name)
            for file in directory.iterdir():
                copy = self._copies.get(file.name)
                try:
                    firsts = msgspec.json.decode(file.read_bytes(), type=list[str])
                except msgspec.MsgspecError:  # a name without its contents: the machine died, or the disk is damaged
                    firsts = []
                if copy is None or not firsts:
                    file.unlink()
                    continue
                copy.uids[uid] = set(firsts)
                copy.used = max(copy.used, file.stat().st_mtime)
                self._charges[uid] += copy.charge
        for folder, known in (
            (BLOBS, self._blobs.keys()),
            (MODELS, self._copies.keys()),
            (MANIFESTS, self._copies.keys()),
        ):
            for file in (self.place / folder).iterdir():
                if file.name not in known:
                    _remove(file)

    # --- room ---

    def reserve(self, uid: int, size: int) -> list[Path]:
        """Set room aside for a file of a user, until `unreserve`. Returns what has to be removed for it (`remove`).
        Raises SyscallError EDQUOT: he has too much that is in use, or the disk is full of such; OSError."""
        going = self._within(uid, size)
        disk = os.statvfs(self.place)
        free = (disk.f_bavail - disk.f_blocks // _SPARE) * disk.f_frsize
        while size > free:
            if (copy := self._idle()) is None:
                self.refused += 1
                why = f"it has {size:,} bytes, and {max(0, free):,} are left for copies of files on the kernel's disk"
                raise Errno.EDQUOT(f"{why} ({self.place}); {COPIES.then}")
            free += copy.size
            for one in [*copy.uids, None]:
                going += self._forget(copy, one)
        self._reserved[uid] += size
        return going

    def reserve_model(self, uid: int, items: list[Item]) -> tuple[int, list[Path]]:
        """Have what a model counts as charged to a user who has not shown it before, until `unreserve`: its files may be
        there, and he may have shown them in others. How much that is, and what has to be removed. Raises SyscallError
        EDQUOT."""
        copy = self._copies.get(_manifest(items)[1])
        if copy is not None and uid in copy.uids:
            return 0, []
        size = charge(items)
        going = self._within(uid, size)
        self._reserved[uid] += size
        return size, going

    def _within(self, uid: int, size: int) -> list[Path]:
        """Have a user stay within what he may have with so much more; what has to be removed. Raises SyscallError
        EDQUOT."""
        going: list[Path] = []
        while (held := self.charge(uid)) + size > COPIES.owner:
            if (copy := self._idle(uid)) is None:
                self.refused += 1
                raise COPIES.refuse(f"user {uid}", held, COPIES.owner)
            going += self._forget(copy, uid)
        return going

    def unreserve(self, uid: int, size: int) -> None:
        self._reserved[uid] -= size
        if not self._reserved[uid]:
            del self._reserved[uid]

    def _idle(self, uid: int | None = None) -> Copy | None:
        """The copy (of a user) that nobody uses, and has not been for the longest time."""
        used = self._in_use()
        found = [
            copy
            for copy in self._copies.values()
            if not copy.pins
            and copy.digest not in self._coming
            and (uid is None or uid in copy.uids)
            and not any(self.path(copy, first) in used for firsts in copy.uids.values() for first in firsts)
        ]
        return min(found, key=lambda copy: copy.used, default=None)

    def _forget(self, copy: Copy, uid: int | None) -> list[Path]:
        """The copy is that user's no longer; it goes with its last one (None: it had none). The paths to remove."""
        if uid is not None:
            del copy.uids[uid]
            self._charges[uid] -= copy.charge
            self._paths.pop(uid, None)
            _remove(self.place / SHOWN / str(uid) / copy.digest)
        if copy.uids or self._copies.pop(copy.digest, None) is None:
            return []
        _remove(self.place / MANIFESTS / copy.digest)
        return [self._put_away(self.place / MODELS / copy.digest), *self.release(one.digest for one in copy.items)]


def _manifest(items: Iterable[Item]) -> tuple[bytes, str]:
    """The list of a model's files, and its digest."""
    data = msgspec.json.encode(sorted(items))
    return data, hashlib.sha256(data).hexdigest()


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def remove(paths: Iterable[Path]) -> None:
    """Remove files and directories. (Takes long where they are large.)"""
    for path in paths:
        _remove(path)

"""Keys of what is at rest: master key -> key of each owner -> key of each process, journal and image file.

The master key is elsewhere (master.py). All others are here, wrapped with AES-256-GCM by the one above, in files of
slots: one for the user's image files, one for each journal. A slot can be overwritten, and then what was encrypted under
its key is gone, wherever copies of it went (crypto-shredding). `docs/seal.md` says what that protects, and what it does
not.

A file of slots only grows at its end, under a lock (flock), because two kernels of one user and `llmasos seal` may write
to it. A slot that is to be wrapped anew is written anew, synced, and only then overwritten, so a crash leaves one or
both.
"""

from __future__ import annotations

import errno
import fcntl
import hmac
import os
import secrets
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, RLock
from typing import Protocol

import xxhash
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from llmasos.kernel.edge.locked import KEY_BYTES, Locked
from llmasos.kernel.edge.master import KEY_FILE, Kind, Source, name_of, overwrite, source_of
from llmasos.kernel.edge.stores import FILES, Listed, stores_in
from llmasos.syscalls import runtime
from llmasos.syscalls.atomic_file import make_directory, sync_directory
from llmasos.syscalls.errno import Errno, SyscallError

OWN = ""  # the owner of what belongs to the kernel's user
FREE, OWNER, PROCESS, JOURNAL, IMAGE, TEXT = range(6)
_HEAD = struct.Struct("<8sI4x8s")
_MAGIC = b"LLMasOSk"
_VERSION = 1
_SLOT = struct.Struct("<BxH4x8s8sQ12s48sQ")  # kind, slots of text, name, parent's name, pid, nonce, wrapped key, check
_BYTES = 128  # of a slot, so that one is never in two sectors
_LETTERS = _BYTES - 2  # of text in a slot
_ABOUT = struct.Struct("<B8s8sQ")
_WASTE = 1 << 16  # bytes of overwritten slots below which a file is left as it is


@dataclass(slots=True)
class Slot:
    """An entry of a file: a wrapped key, whose it is and what it is for. `at`: its place in the file, in bytes."""

    kind: int
    name: bytes
    parent: bytes
    pid: int
    nonce: bytes
    wrapped: bytes
    text: str
    at: int

    @property
    def slots(self) -> int:
        return 1 + -(-len(self.text.encode()) // _LETTERS)

    def packed(self) -> bytes:
        text = self.text.encode()
        pieces = [text[at : at + _LETTERS] for at in range(0, len(text), _LETTERS)]
        head = _SLOT.pack(self.kind, len(pieces), self.name, self.parent, self.pid, self.nonce, self.wrapped, 0)
        check = xxhash.xxh3_64_intdigest(head[:-8] + text)
        start = (head[:-8] + struct.pack("<Q", check)).ljust(_BYTES, b"\0")
        return start + b"".join((bytes([TEXT, len(piece)]) + piece).ljust(_BYTES, b"\0") for piece in pieces)


def _wrap(key: bytes | memoryview, kind: int, name: bytes, parent: bytes, pid: int, under: AESGCM) -> tuple[bytes, bytes]:
    nonce = secrets.token_bytes(12)
    return nonce, under.encrypt(nonce, key, _ABOUT.pack(kind, name, parent, pid))


def _unwrap(slot: Slot, under: AESGCM) -> bytes:
    return under.decrypt(slot.nonce, slot.wrapped, _ABOUT.pack(slot.kind, slot.name, slot.parent, slot.pid))


@dataclass(slots=True)
class Owner:
    """An owner's key as it is in use."""

    name: bytes
    key: memoryview
    cipher: AESGCM


class Store:
    """A file of slots. Threads may share it. All methods raise SyscallError EIO where the disk does."""

    def __init__(self, path: Path, masters: Callable[[bool], list[bytes]], locked: Locked) -> None:
        """Open the file, or make it."""
        self.path, self._masters, self._locked = path, masters, locked
        self._own = RLock()
        self._descriptor = -1
        self._slots: dict[bytes, int] = {}  # where each is in the file, by name: there may be a hundred thousand
        self._above: dict[bytes, Slot] = {}  # those of owners
        self._owners: dict[str, Owner] = {}  # by the owner's name, those in use
        self._ciphers: dict[bytes, AESGCM] = {}  # of owners' keys, by the key's name
        self._read_to = 0
        self._free = 0  # bytes of slots that were overwritten
        self._writes = self._synced = 0  # how many there were, and how many of them are on the disk
        self._failed = False  # a sync did, so that it is not known what is on the disk: only a new file helps
        self._syncing = Lock()
        with _told(path), self._held():
            pass

    # --- keys -------------------------------------------------------------------------------------------------------

    def add(self, kind: int, pid: int = 0, owner: str = OWN, text: str = "") -> tuple[bytes, bytes]:
        """A new key: its name, 8 bytes, and the key."""
        key, name = secrets.token_bytes(KEY_BYTES), secrets.token_bytes(8)
        with _told(self.path), self._held():
            above = self._owner(owner)
            nonce, wrapped = _wrap(key, kind, name, above.name, pid, above.cipher)
            self._append(Slot(kind, name, above.name, pid, nonce, wrapped, text, 0))
        return name, key

    def get(self, name: bytes) -> bytes | None:
        """The key of that name; None: it was forgotten, or was never here. Raises EPERM: the master key is not here."""
        with _told(self.path), self._own:
            slot = self._slot(name)
            if slot is None:  # another process may have written here
                with self._held():
                    slot = self._slot(name)
            if slot is None:
                return None
            try:
                return _unwrap(slot, self._cipher(slot.parent))
            except InvalidTag:
                return None  # it is not what was written

    def owner_of(self, name: bytes) -> str | None:
        """Whose key that is; None: there is none of that name."""
        with _told(self.path), self._held():
            above = self._above.get(slot.parent) if (slot := self._slot(name)) is not None else None
            return above.text if above is not None else None

    def find(self, kind: int, pid: int | None = None, owner: str | None = None) -> list[Slot]:
        """Slots of a kind, of a process or of an owner."""
        with _told(self.path), self._held():
            parents = None if owner is None else {slot.name for slot in self._of_owner(owner)}
            return [
                slot
                for slot in self._all()
                if slot.kind == kind and pid in (None, slot.pid) and (parents is None or slot.parent in parents)
            ]

    def forget(self, names: Iterable[bytes], *, sync: bool = True) -> None:
        """Overwrite these keys."""
        with _told(self.path), self._held():
            for name in names:
                if (slot := self._slot(name)) is not None:
                    self._erase(slot)
        if sync:  # not while the file is held: others want new keys meanwhile
            with _told(self.path):
                self.sync()

    def forget_owner(self, owner: str) -> int:
        """Overwrite an owner's key and all below it; returns how many there were."""
        with _told(self.path), self._held():
            above = self._of_owner(owner)
            parents = {slot.name for slot in above}
            gone = [slot for slot in self._all() if slot.parent in parents] + above
            for slot in gone:
                self._erase(slot)
            self._owners.pop(owner, None)
            self._flush()
            return len(gone)

    def sync(self) -> None:
        """Bring to the disk what was written before the call, by whatever thread. Raises OSError."""
        try:
            with self._syncing:
                with self._own:
                    if self._descriptor < 0:
                        return
                    if self._failed or os.fstat(self._descriptor).st_nlink == 0:
                        with self._held():
                            pass
                    writes, descriptor = self._writes, os.dup(self._descriptor)
                try:
                    if self._synced < writes:
                        os.fdatasync(descriptor)
                        self._synced = max(self._synced, writes)
                except OSError:
                    self._failed = True
                    with self._held():
                        pass
                finally:
                    os.close(descriptor)
        except SyscallError as error:
            raise OSError(errno.EIO, error.reason) from None

    def renew(self) -> None:
        """Give every owner a new key under the newest master key, wrap all keys below them anew, and overwrite the old
        file: old blocks of a disk then hold nothing that a key of today opens."""
        with _told(self.path), self._held():
            others = [slot for slot in self._all() if slot.kind != OWNER]
            keys = {slot.name: _unwrap(slot, self._cipher(slot.parent)) for slot in others}
            owners = dict(self._above)
            made: dict[bytes, Owner] = {name: self._new_owner(secrets.token_bytes(8)) for name in owners}
            fresh = [self._wrapped_by_master(made[name], slot.text) for name, slot in owners.items()]
            for slot in others:
                above = made[slot.parent]
                nonce, wrapped = _wrap(keys[slot.name], slot.kind, slot.name, above.name, slot.pid, above.cipher)
                fresh.append(Slot(slot.kind, slot.name, above.name, slot.pid, nonce, wrapped, slot.text, 0))
            self._replace(fresh)

    def wrap_anew(self) -> int:
        """Wrap the owners' keys under the newest master key; returns how many were under another."""
        with _told(self.path), self._held():
            newest = self._newest()
            old = [slot for slot in self._above.values() if slot.parent != name_of(newest)]
            for slot in old:
                key = _unwrap(slot, self._cipher(slot.parent))
                nonce, wrapped = _wrap(key, OWNER, slot.name, name_of(newest), 0, AESGCM(newest))
                self._append(Slot(OWNER, slot.name, name_of(newest), 0, nonce, wrapped, slot.text, 0))
            self._flush()
            for slot in old:
                self._erase(slot)
            self._flush()
            return len(old)

    def tidy(self) -> None:
        """Write the file anew without what was overwritten, if that is most of it."""
        with _told(self.path), self._held():
            if self._free > max(_WASTE, self._read_to // 2):
                self._replace(self._all())

    def remove(self) -> None:
        """Overwrite and remove the file: nothing under its keys is to be read again."""
        with _told(self.path), self._held():
            overwrite(self._descriptor)
            self.path.unlink(missing_ok=True)
            self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    # --- owners -----------------------------------------------------------------------------------------------------

    def _of_owner(self, owner: str) -> list[Slot]:
        return [slot for slot in self._above.values() if slot.text == owner]

    def _owner(self, owner: str) -> Owner:
        known = self._owners.get(owner)
        if known is not None and known.name in self._slots:
            return known
        for slot in self._of_owner(owner):
            key = self._locked.put(_unwrap(slot, self._cipher(slot.parent)))
            self._owners[owner] = Owner(slot.name, key, self._cipher(slot.name))
            return self._owners[owner]
        made = self._owners[owner] = self._new_owner(secrets.token_bytes(8))
        self._append(self._wrapped_by_master(made, owner))
        return made

    def owner_key(self, owner: str = OWN) -> bytes:
        """An owner's key, for what is derived of it."""
        with _told(self.path), self._held():
            return bytes(self._owner(owner).key)

    def _new_owner(self, name: bytes) -> Owner:
        key = self._locked.put(secrets.token_bytes(KEY_BYTES))
        self._ciphers[name] = AESGCM(key)
        return Owner(name, key, self._ciphers[name])

    def _wrapped_by_master(self, owner: Owner, text: str) -> Slot:
        newest = self._newest()
        nonce, wrapped = _wrap(owner.key, OWNER, owner.name, name_of(newest), 0, AESGCM(newest))
        return Slot(OWNER, owner.name, name_of(newest), 0, nonce, wrapped, text, 0)

    def _newest(self) -> bytes:
        return self._masters(True)[0]  # it may have been rotated by another process

    def _cipher(self, parent: bytes) -> AESGCM:
        """What a parent's key wraps with: an owner's, or a master key."""
        if (cipher := self._ciphers.get(parent)) is None:
            if (slot := self._above.get(parent)) is not None:
                try:
                    cipher = AESGCM(_unwrap(slot, self._cipher(slot.parent)))
                except InvalidTag:
                    raise Errno.EIO(f"{self.path} is damaged: a key in it is not what was written") from None
            else:
                key = next((key for key in self._masters(False) if name_of(key) == parent), None)
                if key is None:
                    raise Errno.EPERM(
                        f"the keys in {self.path} are under another master key ({parent.hex()}) than that which is here"
                    )
                return AESGCM(key)
            self._ciphers[parent] = cipher
        return cipher

    # --- the file ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _held(self) -> Iterator[None]:
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
                    self._replace(self._all())
                yield
            finally:
                if self._descriptor >= 0:
                    fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _follow(self, size: int) -> None:
        """The file, which is held, has lost its name: another process has put a new one in its place and overwritten it,
        or somebody has removed it. What it has is then put where the name leads, so that no key is lost."""
        self._read(size)
        whole = os.pread(self._descriptor, len(_MAGIC), 0) == _MAGIC
        slots = self._all() if whole else []
        try:
            new = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            if not whole:
                raise Errno.EIO(f"the keys in {self.path} were overwritten and removed by another process") from None
            make_directory(self.path.parent)
            self._replace(slots)
            return
        old, self._descriptor = self._descriptor, new
        self._forget_file()
        try:
            fcntl.flock(new, fcntl.LOCK_EX)
            self._read(os.fstat(new).st_size)
            for slot in slots:
                if slot.name not in self._slots:
                    self._append(slot)
            self._flush()
        except BaseException:
            self._descriptor = old
            self._forget_file()
            os.close(new)
            raise
        os.close(old)

    def _forget_file(self) -> None:
        self._slots, self._above, self._read_to, self._free = {}, {}, 0, 0

    def _flush(self) -> None:
        """The file is held. Raises OSError."""
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
        if size == 0:  # its name is on the disk before the first key is used
            sync_directory(self.path.parent)
            os.pwrite(self._descriptor, _HEAD.pack(_MAGIC, _VERSION, b"").ljust(_BYTES, b"\0"), 0)
            size = _BYTES
        if self._read_to == 0:
            magic, version, _ = _HEAD.unpack(os.pread(self._descriptor, _HEAD.size, 0))
            if magic != _MAGIC or version != _VERSION:
                raise Errno.EINVAL(f"{self.path} is no file of keys of version {_VERSION}; it has not been touched")
            self._read_to = _BYTES
        if size <= self._read_to:
            return
        data = os.pread(self._descriptor, size - self._read_to, self._read_to)
        for at in range(0, len(data) - _BYTES + 1, _BYTES):
            if data[at] == FREE:
                self._free += _BYTES
            elif (slot := self._parsed(data, at, self._read_to)) is not None:
                self._know(slot)
        self._read_to += len(data) // _BYTES * _BYTES

    def _know(self, slot: Slot) -> None:
        self._slots[slot.name] = slot.at
        if slot.kind == OWNER:
            self._above[slot.name] = slot

    def _slot(self, name: bytes) -> Slot | None:
        """The entry of that name as it is in the file; None: there is none, or not any more."""
        if (at := self._slots.get(name)) is None:
            return None
        data = os.pread(self._descriptor, _BYTES, at)
        if len(data) == _BYTES and (pieces := _SLOT.unpack_from(data)[1]):
            data += os.pread(self._descriptor, _BYTES * pieces, at + _BYTES)
        slot = self._parsed(data, 0, at) if len(data) >= _BYTES else None
        return slot if slot is not None and slot.name == name else None

    def _all(self) -> list[Slot]:
        """All entries."""
        data = os.pread(self._descriptor, self._read_to, 0)
        found = (self._parsed(data, at, 0) for at in range(_BYTES, len(data) - _BYTES + 1, _BYTES))
        return [slot for slot in found if slot is not None and self._slots.get(slot.name) == slot.at]

    def _parsed(self, data: bytes, at: int, start: int) -> Slot | None:
        """The entry at `at` of what is in the file from `start` on; None: none begins there, or it was cut short."""
        kind, pieces, name, parent, pid, nonce, wrapped, check = _SLOT.unpack_from(data, at)
        if kind in (FREE, TEXT):
            return None
        ends = [at + _BYTES * number for number in range(1, pieces + 1)]
        text = b"".join(data[end + 2 : end + 2 + data[end + 1]] for end in ends if end + 1 < len(data))
        if xxhash.xxh3_64_intdigest(data[at : at + _SLOT.size - 8] + text) != check:
            return None
        return Slot(kind, name, parent, pid, nonce, wrapped, text.decode(), start + at)

    def _append(self, slot: Slot) -> None:
        slot.at = self._read_to
        packed = slot.packed()
        if os.pwrite(self._descriptor, packed, slot.at) != len(packed):
            os.ftruncate(self._descriptor, slot.at)
            raise OSError(28, "no space left on device")
        self._read_to += len(packed)
        self._know(slot)
        self._writes += 1

    def _erase(self, slot: Slot) -> None:
        os.pwrite(self._descriptor, bytes(_BYTES * slot.slots), slot.at)
        if self._slots.get(slot.name) == slot.at:  # else it has been written anew
            del self._slots[slot.name]
            self._above.pop(slot.name, None)
        self._free += _BYTES * slot.slots
        self._writes += 1

    def _replace(self, slots: list[Slot]) -> None:
        """Put a file with these slots in the place of this one, which is overwritten."""
        beside = self.path.with_name(self.path.name + ".new")
        new = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(new, fcntl.LOCK_EX)
            data = [_HEAD.pack(_MAGIC, _VERSION, b"").ljust(_BYTES, b"\0"), *(slot.packed() for slot in slots)]
            written = b"".join(data)
            view = memoryview(written)
            while view:
                view = view[os.write(new, view) :]
            os.fsync(new)
            os.replace(beside, self.path)
            sync_directory(self.path.parent)
        except OSError:
            os.close(new)
            beside.unlink(missing_ok=True)
            raise
        old, self._descriptor = self._descriptor, new
        self._forget_file()
        self._synced, self._failed = self._writes, False
        try:
            overwrite(old)
        finally:
            os.close(old)
        self._owners.clear()
        self._read(len(written))


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Errno.EIO(
            f"the keys in {path} cannot be used: {error.strerror}; mend that, name another place ([seal] directory), or "
            "boot without encryption (--plain)"
        ) from None


class Wanted(Protocol):
    """Where keys are, as the configuration says (settings.py)."""

    enabled: bool
    key: Kind
    key_file: str
    key_command: str
    directory: str


def keys_of(wanted: Wanted) -> Keys:
    """The keys as they are configured; nothing is read yet. Raises SyscallError ENOENT: no home is known, and no place is
    named."""
    try:
        config, state = runtime.settings_place(), runtime.state()
    except RuntimeError as error:
        if not (wanted.directory and (wanted.key != "file" or wanted.key_file)):
            raise Errno.ENOENT(
                f"no place for keys: {error}; name some ([seal] key_file and directory), or boot without encryption "
                "(--plain)"
            ) from None
        config = state = Path()
    place = Path(wanted.directory).expanduser() if wanted.directory else state / "keys"
    file = Path(wanted.key_file).expanduser() if wanted.key_file else config / KEY_FILE
    return Keys(source_of(wanted.key, file.absolute(), wanted.key_command), place.absolute(), plain=not wanted.enabled)


class Keys:
    """All keys of the kernel's user, of which the master key is read when it is first needed. `plain`: what is written is
    not encrypted; what was before can still be read."""

    def __init__(self, source: Source, directory: Path, *, plain: bool = False) -> None:
        self.source, self.directory, self.plain = source, directory, plain
        self.listed = Listed(source.listed)
        self.locked = Locked()
        self.troubles: list[str] = []  # why the last rotation has left the old master key
        self._known: list[bytes] = []
        self._stores: dict[str, Store] = {}

    def masters(self, anew: bool = False) -> list[bytes]:
        """The master keys, newest first; read `anew`, or as they are known. The first of all is made here, if its place
        is a file. Raises SyscallError EPERM: it is not at hand, and what to do."""
        if anew or not self._known:
            self._known = self.source.read() or self._make()
        return self._known

    def _make(self) -> list[bytes]:
        held = [place for place in self._directories() if self._holds(place)]
        if held or not self.source.makes:
            under = f"; what is in {', '.join(map(str, held))} is under it" if held else ""
            raise Errno.EPERM(
                f"no master key is there ({self.source.about}){under}: {self.source.missing()}, or boot without "
                "encryption and with another journal (--plain --journal DIR)"
            )
        with self.listed.alone():
            if found := self.source.read():
                return found
            key = secrets.token_bytes(KEY_BYTES)
            self.source.write([key])
            return [key]

    def _directories(self) -> list[Path]:
        """All that have files under the master key, as far as is known."""
        return list(dict.fromkeys([self.directory, *self.listed.read()]))

    def _holds(self, directory: Path) -> bool:
        with _told(directory):
            return directory.exists() and any(path.stat().st_size > _BYTES for path in stores_in(directory))

    def stores(self) -> list[Path]:
        """The files of slots in the directory. Raises SyscallError EIO."""
        with _told(self.directory):
            return stores_in(self.directory) if self.directory.exists() else []

    def store(self, name: str) -> Store:
        """One of them; it is made if it is not there. Raises SyscallError."""
        if name not in self._stores:
            with self.listed.alone():
                self._open(name)
        return self._stores[name]

    def remove(self, store: Store) -> None:
        """Overwrite and remove a file: nothing under its keys is to be read again."""
        self._stores.pop(store.path.name, None)
        store.remove()
        self.listed.drop(self.directory)

    def _open(self, name: str) -> Store:
        self.listed.note(self.directory)
        return self._stores.setdefault(name, Store(self.directory / name, self.masters, self.locked))

    @property
    def files(self) -> Store:
        """The keys of the user's image files."""
        return self.store(FILES)

    def derived(self, purpose: str) -> bytes:
        """A key of the user's for another purpose, 32 bytes, the same in all his kernels until he forgets it; empty if
        nothing is encrypted."""
        return b"" if self.plain else hmac.digest(self.files.owner_key(), b"llmasos " + purpose.encode(), "sha256")

    def rotate(self, new: bytes | None = None) -> tuple[int, list[str]]:
        """Wrap all owners' keys under a new master key, wherever they are, and forget the old ones. Returns how many
        there were, and what could not be done: then the old ones stay. A kernel that runs meanwhile is not disturbed: it
        has its owners' keys."""
        self.masters()
        with self.listed.alone():
            old = self.source.read()
            if new is None and self.source.makes and len(old) == 1:  # more: a rotation was begun
                new = secrets.token_bytes(KEY_BYTES)
            if new is not None:
                self.source.write([new, *old])
            # From here on nobody wraps under the old ones; who has done so is in the list.
            count, self.troubles = 0, []
            for place in self._directories():
                count += self._wrap_anew(place)
            if (new is not None or self.source.makes) and not self.troubles:
                self.source.write([new or old[0]])
            self._known = []
        return count, self.troubles

    def _wrap_anew(self, place: Path) -> int:
        """Wrap the owners' keys of all files in a directory under the newest master key; returns how many there were."""
        count = 0
        try:
            for path in stores_in(place):
                try:
                    if place == self.directory:
                        count += (self._stores.get(path.name) or self._open(path.name)).wrap_anew()
                    else:
                        with closing(Store(path, self.masters, self.locked)) as store:
                            count += store.wrap_anew()
                except SyscallError as error:
                    self.troubles.append(error.reason)
        except OSError as error:
            if place in self.listed.read():  # else nothing was ever there
                self.troubles.append(
                    f"the keys in {place} cannot be reached: {error.strerror}; bring them back, or take the line out of "
                    f"{self.listed.path} if they have gone for good"
                )
        return count

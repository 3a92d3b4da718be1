"""The keys in a file: of owners, and of processes, journals and images under those.

All are under the file's own key, the root, and only that is under the master key. So a kernel needs the master key when
it boots, and not when a new owner comes: a key command may take a minute, and in the middle of an event nothing waits so
long. The root is renewed with the owners' keys whenever something is destroyed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from llmasos.kernel.edge.locked import KEY_BYTES, Locked
from llmasos.kernel.edge.master import name_of
from llmasos.kernel.edge.slot_file import SlotFile, told
from llmasos.kernel.edge.slots import OWNER, ROOT, Slot, wrapping
from llmasos.syscalls.errno import Errno

OWN = ""  # the owner of what belongs to the kernel's user
_NAME_BYTES = 8


@dataclass(slots=True)
class _Key:
    """A key that wraps others, as it is in use."""

    name: bytes
    key: memoryview
    cipher: AESGCM


class Store:
    """Threads may share it. All methods raise SyscallError EIO where the disk does, and EPERM where the master key is
    needed and not at hand."""

    def __init__(self, path: Path, masters: Callable[[bool], list[bytes]], locked: Locked) -> None:
        """Open the file, or make it. `masters` gives the master keys, newest first, as they are known or read anew."""
        self.path, self._masters, self._locked = path, masters, locked
        self._owners: dict[str, _Key] = {}  # by the owner's name
        self._known: dict[bytes, _Key] = {}  # by the key's name
        with told(path):
            self._file = SlotFile(path)

    # --- keys -------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Have the root at hand, so that the master key is not needed any more."""
        with told(self.path), self._file.held():
            self._root()

    def add(self, kind: int, pid: int = 0, owner: str = OWN, text: str = "") -> tuple[bytes, bytes]:
        """A new key: its name, 8 bytes, and the key."""
        key, name = secrets.token_bytes(KEY_BYTES), secrets.token_bytes(_NAME_BYTES)
        with told(self.path), self._file.held():
            above = self._owner(owner)
            self._file.append(wrapping(key, kind, name, above.name, above.cipher, pid, text))
        return name, key

    def get(self, name: bytes) -> bytes | None:
        """The key of that name; None: it was forgotten, or was never here."""
        with told(self.path):
            slot = self._file.slot(name)
            if slot is not None and (known := self._known.get(slot.parent)) is not None:
                return _opened(slot, known)
            with self._file.held():  # another process may have written here
                slot = self._file.slot(name)
                return _opened(slot, self._above(slot.parent)) if slot is not None else None

    def owner_of(self, name: bytes) -> str | None:
        """Whose key that is; None: there is none of that name."""
        with told(self.path), self._file.held():
            slot = self._file.slot(name)
            above = self._file.above.get(slot.parent) if slot is not None else None
            return above.text if above is not None else None

    def owners(self) -> list[str]:
        """All that have a key here."""
        with told(self.path), self._file.held():
            return sorted({slot.text for slot in self._file.above.values() if slot.kind == OWNER})

    def find(self, kind: int, pid: int | None = None, owner: str | None = None) -> list[Slot]:
        """Slots of a kind, of a process or of an owner."""
        with told(self.path):
            entries = self._file.all()
        parents = {slot.name for slot in entries if slot.kind == OWNER and slot.text == owner}
        return [
            slot
            for slot in entries
            if slot.kind == kind and pid in (None, slot.pid) and (owner is None or slot.parent in parents)
        ]

    def forget(self, names: Iterable[bytes], *, sync: bool = True) -> None:
        """Overwrite these keys."""
        with told(self.path):
            with self._file.held():
                for name in names:
                    if (slot := self._file.slot(name)) is not None:
                        self._file.erase(slot)
            if sync:  # not while the file is held: others want new keys meanwhile
                self._file.sync()

    def of_owner(self, owner: str, *kinds: int) -> list[Slot]:
        """Keys of these kinds that are an owner's, or of the tenants of that uid."""
        with told(self.path):
            entries = self._file.all()
        below = f"{owner or os.geteuid()}/"
        parents = {one.name for one in entries if one.kind == OWNER and (one.text == owner or one.text.startswith(below))}
        return [slot for slot in entries if slot.kind in kinds and slot.parent in parents]

    def retell(self, slot: Slot, text: str) -> None:
        """Say something else of a key."""
        with told(self.path):
            with self._file.held():
                self._file.append(replace(slot, text=text))
                self._file.erase(slot)
            self._file.sync()

    def sync(self) -> None:
        """Bring to the disk what was written before the call, by whatever thread. Raises OSError."""
        self._file.sync()

    def tidy(self) -> None:
        """Write the file anew without what was overwritten, if that is most of it."""
        with told(self.path):
            self._file.tidy()

    def remove(self) -> None:
        """Overwrite and remove the file: nothing under its keys is to be read again."""
        with told(self.path):
            self._file.remove()

    def close(self) -> None:
        self._file.close()

    # --- when the keys above change ---------------------------------------------------------------------------------

    def renew(self) -> None:
        """Have a new root under the newest master key and a new key for every owner, wrap all keys below them anew, and
        overwrite the old file: old blocks of a disk then hold nothing that a key of today opens. Others go on."""
        newest = self._masters(True)[0]
        root, made = self._new(), dict[bytes, _Key]()

        def anew(slot: Slot) -> Slot | None:
            if slot.kind == ROOT:
                return None
            try:
                key = slot.key(self._above(slot.parent).cipher)
            except InvalidTag:
                return None  # nobody can open it
            if slot.kind == OWNER:
                owner = made.get(slot.name) or made.setdefault(slot.name, self._new())
                return wrapping(owner.key, OWNER, owner.name, root.name, root.cipher, text=slot.text)
            owner = made.get(slot.parent) or made.setdefault(slot.parent, self._new())
            return wrapping(key, slot.kind, slot.name, owner.name, owner.cipher, slot.pid, slot.text)

        before = list(self._known.values())
        with told(self.path):
            self._file.rewrite(anew, [self._under_master(root, newest)])
            with self._file.held():
                self._owners.clear()
                for key in before:
                    if self._known.pop(key.name, None) is not None and key.name in self._file.above:
                        self._known[key.name] = key  # another process was quicker
                    else:
                        self._locked.drop(key.key)

    def wrap_anew(self) -> int:
        """Wrap under the newest master key what is under another; returns how many keys that were."""
        newest = self._masters(True)[0]
        with told(self.path):
            with self._file.held():
                old = [slot for slot in self._tops() if slot.parent != name_of(newest)]
                for slot in old:
                    key, name = slot.key(self._above(slot.parent).cipher), name_of(newest)
                    self._file.append(wrapping(key, slot.kind, slot.name, name, AESGCM(newest), text=slot.text))
            self._file.sync()
            with self._file.held():
                for slot in old:
                    self._file.erase(slot)
            self._file.sync()
        return len(old)

    def parents(self) -> list[bytes]:
        """The names of the master keys that are needed here."""
        with told(self.path), self._file.held():
            return [slot.parent for slot in self._tops()]

    def _tops(self) -> list[Slot]:
        """What is under a master key: the root, and the owners of a file that has none yet."""
        return [slot for slot in self._file.above.values() if slot.parent not in self._file.above]

    # --- while the file is held -------------------------------------------------------------------------------------

    def _owner(self, owner: str) -> _Key:
        known = self._owners.get(owner)
        if known is not None and known.name in self._file:
            return known
        for slot in self._file.above.values():
            if slot.kind == OWNER and slot.text == owner:
                self._owners[owner] = self._above(slot.name)
                return self._owners[owner]
        root, made = self._root(), self._new()
        self._file.append(wrapping(made.key, OWNER, made.name, root.name, root.cipher, text=owner))
        self._owners[owner] = made
        return made

    def _root(self) -> _Key:
        for slot in self._file.above.values():
            if slot.kind == ROOT:
                return self._above(slot.name)
        made = self._new()
        self._file.append(self._under_master(made, self._masters(True)[0]))  # another process may have rotated it
        return made

    def _under_master(self, root: _Key, master: bytes) -> Slot:
        return wrapping(root.key, ROOT, root.name, name_of(master), AESGCM(master))

    def _new(self) -> _Key:
        return self._use(secrets.token_bytes(_NAME_BYTES), secrets.token_bytes(KEY_BYTES))

    def _use(self, name: bytes, key: bytes) -> _Key:
        locked = self._locked.put(key)
        self._known[name] = made = _Key(name, locked, AESGCM(locked))
        return made

    def _above(self, parent: bytes) -> _Key:
        """A key that wraps others: an owner's, the root, or a master key, which is not kept here."""
        if (known := self._known.get(parent)) is not None:
            return known
        if (slot := self._file.above.get(parent)) is not None:
            try:
                return self._use(parent, slot.key(self._above(slot.parent).cipher))
            except InvalidTag:
                raise Errno.EIO(f"{self.path} is damaged: a key in it is not what was written") from None
        for anew in (False, True):
            for key in self._masters(anew):
                if name_of(key) == parent:
                    return _Key(parent, memoryview(key), AESGCM(key))
        raise Errno.EPERM(
            f"the keys in {self.path} are under another master key ({parent.hex()}) than that which is here"
        )


def _opened(slot: Slot, above: _Key) -> bytes | None:
    """The key in it; None: it is not what was written."""
    try:
        return slot.key(above.cipher)
    except InvalidTag:
        return None

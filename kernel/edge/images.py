"""Keys of process images, put into requests on their way to the drivers.

The core knows nothing of keys, and a driver has none. A file that is written without a passphrase gets a key of its own
among the user's (keys.py), which goes with the request; by the name in the file its reader is told which is needed. What
is asked for without it fails, and is asked again with it: by the edge, not by the core.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections import Counter, OrderedDict
from collections.abc import Collection
from pathlib import Path

from msgspec.structs import replace

from llmasos.drivers.protocol import Export, Exported, Failed, FromDriver, Import, Inspect, Inspected, ToDriver
from llmasos.kernel.edge.journal_seal import Seal
from llmasos.kernel.edge.key_store import OWN, Store
from llmasos.kernel.edge.keys import Keys
from llmasos.kernel.edge.master import overwrite
from llmasos.kernel.edge.slots import IMAGE
from llmasos.syscalls.atomic_file import read_at
from llmasos.syscalls.errno import Errno, SyscallError

_NAME = 8  # bytes of a key's name; in a file it has 16
_PAD = bytes(8)
_KEPT = 4096  # files that were looked at and may yet be read
_TRAVEL = "write it with a passphrase where it can be read (`checkpoint PID FILE --passphrase-file FILE`)"

_SEALED = (
    "its process images under a passphrase: whoever knows that can read them (`llmasos shred FILE` overwrites one)",
)
_PLAIN = (
    "old blocks of the disk: nothing was encrypted (--plain)",
    "its process images under a passphrase, those that an earlier kernel wrote, and copies of all: `llmasos shred FILE`",
)


def remove_image(path: Path) -> str:
    """Overwrite and remove a process image; returns why not, or "": it is not there, or not any more."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return error.strerror or str(error)
    try:
        if read_at(descriptor, len(MAGIC)) != MAGIC:
            return "another file has its name now"
        overwrite(descriptor)
        path.unlink()
    except OSError as error:
        return error.strerror or str(error)
    finally:
        os.close(descriptor)
    return ""


MAGIC = b"LLMasPI\0"  # of a process image (drivers/checkpoint_file.py)
Request = tuple[str, int]  # a device and a number


class Images:
    """The files under way. `keys`: none are to be had, and `why`."""

    def __init__(self, keys: Keys | None, why: str = "", journal: Seal | None = None) -> None:
        """`journal`: the processes are those of that journal, whatever kernel goes on with them."""
        self._keys, self._why = keys, why
        # Tells processes of this kernel from those of others.
        self._line = journal.line if journal is not None else secrets.token_bytes(8)
        self._plain: dict[int, set[str]] = {}  # files that were not encrypted, by pid
        self._shown: Counter[int] = Counter()  # and went into files that users have opened
        self._asked: dict[Request, Inspect] = {}
        self._locked: dict[Request, bytes] = {}  # the names of the keys that were sent
        self._written: dict[Request, bytes] = {}
        self._names: OrderedDict[bytes, bytes] = OrderedDict()  # of keys, by the file's id

    def outgoing(self, device: str, message: ToDriver, *, shown: bool = False) -> ToDriver | Failed:
        """The message as it is to be sent; or the answer to it, if there is no key. `shown`: what is written goes on into
        a file that a user has opened, and the kernel does not know its name."""
        if isinstance(message, Export) and message.path and not message.key:
            return self._export(device, message, shown)
        if isinstance(message, Inspect):
            self._asked[device, message.ref] = message
        elif isinstance(message, Import) and (name := self._names.get(message.id)) is not None:
            found = self._key(name, OWN)  # it was shown to whoever asks when the file was looked at
            return message if isinstance(found, str) else replace(message, seal=found)
        return message

    def incoming(self, device: str, message: FromDriver) -> FromDriver | Inspect:
        """What the core is to get; or what the driver is to be asked again."""
        if isinstance(message, Failed):
            asked = self._asked.pop((device, message.ref), None)
            if (name := self._written.pop((device, message.ref), None)) is not None:
                self._files.forget([name], sync=False)
            if asked is not None and message.sealed:
                found = self._key(message.sealed, asked.owner)
                if isinstance(found, str):
                    return replace(message, reason=f"{asked.path}: {found}")
                self._locked[device, message.ref] = message.sealed
                return replace(asked, seal=found)
            self._locked.pop((device, message.ref), None)
        elif isinstance(message, Inspected):
            self._asked.pop((device, message.ref), None)
            if (name := self._locked.pop((device, message.ref), None)) is not None:
                self._names[message.id] = name
                while len(self._names) > _KEPT:
                    self._names.popitem(last=False)
        return message

    def kept(self, device: str, message: Exported) -> Store | None:
        """The keys that must be on the disk before the core hears that a file was written; None: it need not wait."""
        return self._files if self._written.pop((device, message.ref), None) is not None else None

    def died(self, device: str) -> None:
        """What a driver was asked is not answered any more."""
        for some in (self._asked, self._locked, self._written):
            for request in [one for one in some if one[0] == device]:
                del some[request]

    def number(self, pid: int) -> int:
        """A process's number among all that the user's kernels ever have."""
        return int.from_bytes(hashlib.sha256(self._line + pid.to_bytes(8, "little")).digest()[:8], "little")

    def forget(self, pids: Collection[int], owner: str | None = None) -> tuple[list[str], list[str]]:
        """Forget the keys of the files that were written of processes, and of all of an `owner`, and overwrite those that
        were not encrypted. Returns what is gone, and what could not be reached. Raises SyscallError."""
        gone, left = list[str](), list[str]()
        if count := sum(self._shown.pop(pid, 0) for pid in pids):
            left.append(f"{count} process images in files of their user's, not encrypted (`llmasos shred FILE`)")
        for path in sorted({path for pid in pids for path in self._plain.pop(pid, ())}):
            if why := remove_image(Path(path)):
                left.append(f"{path}: {why}")
            else:
                gone.append(f"{path}, which was not encrypted: overwritten and removed")
        if self._keys is None or self._keys.plain:
            return gone, [*left, *_PLAIN]
        numbers = {self.number(pid) for pid in pids}
        slots = self._files.of_owner(owner, IMAGE) if owner is not None else []
        slots += [slot for slot in self._files.find(IMAGE) if slot.pid in numbers]
        if slots or owner is not None:
            self._files.forget([slot.name for slot in slots])
            self._keys.renew(self._files)
        if owner is not None:
            gone.append("the key of the owner, under which no image of it can be read any more")
        slots = list({slot.name: slot for slot in slots}.values())
        gone += [f"the key of its process image {slot.text}, and of all copies of it" for slot in slots]
        left += [f"the old master key, which stays until this is mended: {text}" for text in self._keys.troubles]
        return gone, [*left, *_SEALED]

    def sure(self, place: Path) -> bool:
        """Whether the master key lies outside the disk of `place`, and the old one is forgotten if it is ours."""
        keys = self._keys
        return keys is not None and not keys.plain and not keys.troubles and keys.source.apart(place)

    @property
    def _files(self) -> Store:
        if self._keys is None:
            raise Errno.EPERM(self._why)
        return self._keys.files

    def _export(self, device: str, message: Export, shown: bool) -> Export | Failed:
        if self._keys is not None and self._keys.plain:
            if shown:
                self._shown[message.ctx] += 1
            else:
                self._plain.setdefault(message.ctx, set()).add(message.path)
            return message
        text = os.path.basename(message.path) if shown else message.path
        try:
            name, key = self._files.add(IMAGE, self.number(message.ctx), message.owner, text)
        except SyscallError as error:
            return Failed(message.ref, error.errno, f"{message.path} cannot be encrypted: {error.reason}; or {_TRAVEL}")
        self._written[device, message.ref] = name
        return replace(message, seal=name + _PAD + key)

    def _key(self, name: bytes, asks: str) -> bytes | str:
        """The key of that name as a driver gets it, or why there is none for who asks: those of others do not exist."""
        try:
            owner = self._files.owner_of(name[:_NAME])
            mine = owner is not None and (asks in (OWN, owner) or owner.startswith(f"{asks}/"))
            key = self._files.get(name[:_NAME]) if mine else None
        except SyscallError as error:
            return f"it is encrypted under a key of the kernel's user: {error.reason}"
        if key is None:
            return (
                f"it is encrypted under a key ({name[:_NAME].hex()}) that is not among yours: another user's or another "
                f"machine's, or one that was forgotten (shred); {_TRAVEL}"
            )
        return name + key

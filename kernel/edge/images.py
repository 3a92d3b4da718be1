"""Keys of process images, put into requests on their way to the drivers.

The core knows nothing of keys, and a driver has none. A file that is written without a passphrase gets a key of its own
among the user's (keys.py), which goes with the request; by the name in the file its reader is told which is needed. What
is asked for without it fails, and is asked again with it: by the edge, not by the core.
"""

from __future__ import annotations

from collections import OrderedDict

from msgspec.structs import replace

from llmasos.drivers.protocol import Export, Exported, Failed, FromDriver, Import, Inspect, Inspected, ToDriver
from llmasos.kernel.edge.keys import IMAGE, Keys, Store
from llmasos.syscalls.errno import Errno, SyscallError

_NAME = 8  # bytes of a key's name; in a file it has 16
_PAD = bytes(8)
_KEPT = 4096  # files that were looked at and may yet be read
_TRAVEL = "write it with a passphrase where it can be read (`checkpoint PID FILE --passphrase`)"

Request = tuple[str, int]  # a device and a number


class Images:
    """The files under way. `keys`: none are to be had, and `why`."""

    def __init__(self, keys: Keys | None, why: str = "") -> None:
        self._keys, self._why = keys, why
        self._asked: dict[Request, Inspect] = {}
        self._locked: dict[Request, bytes] = {}  # the names of the keys that were sent
        self._written: dict[Request, bytes] = {}
        self._names: OrderedDict[bytes, bytes] = OrderedDict()  # of keys, by the file's id

    def outgoing(self, device: str, message: ToDriver) -> ToDriver | Failed:
        """The message as it is to be sent; or the answer to it, if there is no key."""
        if isinstance(message, Export) and message.path and not message.key:
            return self._export(device, message)
        if isinstance(message, Inspect):
            self._asked[device, message.ref] = message
        elif isinstance(message, Import) and (name := self._names.get(message.id)) is not None:
            found = self._key(name)
            return message if isinstance(found, str) else replace(message, seal=found)
        return message

    def incoming(self, device: str, message: FromDriver) -> FromDriver | Inspect:
        """What the core is to get; or what the driver is to be asked again."""
        if isinstance(message, Failed):
            asked = self._asked.pop((device, message.ref), None)
            if (name := self._written.pop((device, message.ref), None)) is not None:
                self._files.forget([name], sync=False)
            if asked is not None and message.sealed:
                found = self._key(message.sealed)
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

    @property
    def _files(self) -> Store:
        if self._keys is None:
            raise Errno.EPERM(self._why)
        return self._keys.files

    def _export(self, device: str, message: Export) -> Export | Failed:
        if self._keys is not None and self._keys.plain:
            return message
        try:
            name, key = self._files.add(IMAGE, message.ctx, text=message.path)
        except SyscallError as error:
            return Failed(message.ref, error.errno, f"{message.path} cannot be encrypted: {error.reason}; or {_TRAVEL}")
        self._written[device, message.ref] = name
        return replace(message, seal=name + _PAD + key)

    def _key(self, name: bytes) -> bytes | str:
        """The key of that name as a driver gets it, or why there is none."""
        try:
            key = self._files.get(name[:_NAME])
        except SyscallError as error:
            return f"it is encrypted under a key of the kernel's user: {error.reason}"
        if key is None:
            return (
                f"it is encrypted under a key ({name[:_NAME].hex()}) that is not among yours: another user's or another "
                f"machine's, or one that was forgotten (shred); {_TRAVEL}"
            )
        return name + key

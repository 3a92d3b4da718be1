"""Process images, where all drivers agree: the head of the file, and when to trust its KV.

The kernel's part of the head passes through unread. The driver's part is the fingerprint of the KV: names with values,
one for each thing that could make other bits. A driver takes KV back only if every value is the same. Whoever can write a
file can write these values too, with KV that nobody has computed. So a driver says how much of the KV a kernel of its own
user vouches for (`Inspected.sound`): the kernel gives no other KV a name, or every process whose context begins alike
would get it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from llmasos.drivers import checkpoint_file, parcel
from llmasos.drivers.checkpoint_file import Reader, Tick
from llmasos.drivers.protocol import BLOCK_TOKENS, Export, Exported, Import, Imported, Inspect, Inspected
from llmasos.drivers.seals import Buffer
from llmasos.syscalls.errno import Errno, SyscallError

_SHOWN = 12  # characters of a value, in a reason


class _Head(msgspec.Struct, array_like=True, frozen=True):
    kernel: bytes
    tokens: int  # whose KV the parts hold
    fingerprint: dict[str, str]
    sound: int = 0  # leading tokens whose KV was computed by the kernel's own drivers


def save(
    request: Export,
    fingerprint: Mapping[str, str],
    part_bytes: int,
    parts: Sequence[Buffer],
    reason: str,
    tick: Tick,
) -> Exported:
    """Write the file, or the parcel. `parts` are the KV of the context's first blocks; `reason` says why there are fewer
    than were asked for."""
    tokens = min(request.tokens, len(parts) * BLOCK_TOKENS)
    head = msgspec.msgpack.encode(_Head(request.head, tokens, dict(fingerprint), request.sound))
    why = reason if tokens < request.tokens else ""
    if request.path:
        size = checkpoint_file.write(request.path, head, part_bytes, parts, request.key, tick, request.seal)
        return Exported(request.ref, size, tokens, why)
    try:
        with parcel.made() as (descriptor, path):
            size = checkpoint_file.fill(descriptor, head, part_bytes, parts, request.key, tick)
            with Reader(path, request.key) as file:
                name = file.id
    except OSError as error:
        raise SyscallError(Errno.EIO, f"no memory for {request.tokens} tokens of KV: {error.strerror}") from None
    return Exported(request.ref, size, tokens, why, path, name)


def inspect(request: Inspect) -> Inspected:
    """Read the head of a file, and have its parts read ahead."""
    with Reader(request.path, request.key, request.seal) as file:
        head = _head(file)
        file.fetch()
        return Inspected(request.ref, file.id, head.kernel, head.tokens, max(0, head.sound) if file.vouched else 0)


def _head(file: Reader) -> _Head:
    try:
        head = msgspec.msgpack.decode(file.head, type=_Head)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise SyscallError(Errno.EIO, f"{file.path} is damaged: its head cannot be read: {error}") from None
    if not 0 <= head.tokens <= file.parts * BLOCK_TOKENS:
        raise SyscallError(Errno.EIO, f"{file.path} is damaged: it has no KV for {head.tokens} tokens")
    return head


def mistrust(file: Reader, request: Import, fingerprint: Mapping[str, str], part_bytes: int) -> str:
    """Why the KV of a file is not to be used for a request, or ""."""
    if file.id != request.id:
        return "another file has its name now"
    if not file.mine and not file.encrypted:
        return "the file is another user's, and nothing vouches for its KV; encrypt it with a passphrase"
    theirs = _head(file).fingerprint
    names = sorted(name for name in {*theirs, *fingerprint} if theirs.get(name) != fingerprint.get(name))
    if names:
        found = (f"{name} was {_short(theirs.get(name))}, is {_short(fingerprint.get(name))}" for name in names)
        return f"its KV is not what would be computed here: {'; '.join(found)}"
    if file.part_bytes != part_bytes:
        return f"its blocks have {file.part_bytes} bytes, here they have {part_bytes}"
    return ""


def _short(value: str | None) -> str:
    if value is None:
        return "not given"
    return value if len(value) <= 4 * _SHOWN else value[:_SHOWN] + "..."


def imported(request: Import, failures: Sequence[str], file: Reader | None) -> Imported:
    """The answer to a request; `failures` has a reason for each block that could not be read, and "" for the others."""
    good = next((number for number, failure in enumerate(failures) if failure), len(failures))
    tokens = min(request.tokens, (request.first + good) * BLOCK_TOKENS)
    if good == len(failures):
        return Imported(request.ref, tokens)
    flaw = f" ({file.flaw})" if file is not None and file.flaw else ""
    return Imported(request.ref, tokens, f"block {request.first + good} is damaged: {failures[good]}{flaw}")


def nothing_imported(request: Import, reason: str) -> Imported:
    """The answer where nothing is read."""
    return Imported(request.ref, min(request.tokens, request.first * BLOCK_TOKENS), reason)

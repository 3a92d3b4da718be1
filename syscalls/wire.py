"""Frames <-> records: the messages between a program and the kernel.

A request is one frame, msgpack of `[version, seq, call number, arguments]`; the tokens of one of 64 KiB or more may be
packed (parts.py). A reply is `[version, seq, errno, result or reason]`, followed by the journal's position if the
program attached so (`seen`). `seq` is the caller's: any number from 0 to 2**63 - 1 that it does not have in flight. Like
Linux's syscall entry, this is the place that trusts nothing: it checks
every argument against its declared type and limits (table.py), and answers every fault with an errno and a reason. Call
number 0 takes back the call whose seq is its one argument, and is itself not answered. It differs from JSON-RPC in being
binary, typed and bounded.
"""

from __future__ import annotations

import enum
import re
import typing
from array import array
from collections.abc import Generator
from contextlib import suppress
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec

from llmasos.syscalls import constraint, limits, parts
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import LogRecord
from llmasos.syscalls.table import BY_RECORD, CANCEL, TABLE, Call, Entry, Exec, Feed, Spawn

R = TypeVar("R")
Frame = bytes | bytearray
MAX_SEQ = (1 << 63) - 1
Seq = Annotated[int, msgspec.Meta(ge=0, le=MAX_SEQ)]
_PLACED = re.compile(r"(.*) - at `\$((?:\[(?:\d+|\.\.\.)\])+)`", re.DOTALL)
_LOOKED_AT = 1 << 16  # bytes of arguments in which a fault is looked for: empty lists take 56 bytes of memory each
SHOWN = 8  # elements of a list, and
SHOWN_TEXT = 60  # characters of a string that `describe` shows


class Request(NamedTuple):
    """A decoded request: `call`, or, if that is None, the taking back of call `cancels`."""

    seq: int
    call: Call[Any] | None
    cancels: int = 0


class RefusedFrame(SyscallError):
    """A frame that is no valid request. `seq` is its sequence number if that could be read, else 0."""

    def __init__(self, seq: int, errno: Errno, reason: str) -> None:
        super().__init__(errno, reason)
        self.seq = seq

    def __reduce__(self) -> tuple[type[RefusedFrame], tuple[int, Errno, str]]:  # type: ignore[override]  # object's may be a str
        return type(self), (self.seq, self.errno, self.reason)


class _Envelope(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    version: int
    seq: Seq
    code: int  # the call number of a request, the errno of a reply
    body: msgspec.Raw


class _Answer(_Envelope, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    position: Seq = 0


_encode = msgspec.msgpack.Encoder().encode
_envelope = msgspec.msgpack.Decoder(_Envelope).decode
_answer = msgspec.msgpack.Decoder(_Answer).decode
_loose = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_any = msgspec.msgpack.Decoder().decode
_reason = msgspec.msgpack.Decoder(str).decode
_cancel = msgspec.msgpack.Decoder(tuple[Seq]).decode
_arguments = {number: msgspec.msgpack.Decoder(entry.record).decode for number, entry in TABLE.items()}
# Of the calls that take tokens: which argument they are.
_TOKENS = {BY_RECORD[call].number: call.__struct_fields__.index("tokens") for call in (Spawn, Exec, Feed)}
_results = {entry.record: msgspec.msgpack.Decoder(entry.result).decode for entry in TABLE.values()}

# msgspec raises these for bytes that are no msgpack: RecursionError for endless nesting, UnicodeError for broken text.
_BROKEN = (msgspec.DecodeError, UnicodeError, RecursionError, OverflowError)
# And these for values that no message can carry: integers beyond 64 bits, halves of surrogate pairs, other types.
_UNENCODABLE = (OverflowError, ValueError, TypeError)


def _beyond(value: Any) -> list[str]:
    """Where in a value an integer has more than 64 bits: the names of fields, the numbers of elements."""
    if isinstance(value, msgspec.Struct):
        parts = [(name, getattr(value, name)) for name in value.__struct_fields__]
    elif isinstance(value, list | tuple):
        parts = [(str(at), one) for at, one in enumerate(value)]
    else:
        return []
    for name, one in parts:
        if isinstance(one, int) and not -(1 << 63) <= one < 1 << 64:
            return [name]
        if found := _beyond(one):
            return [name, *found]
    return []


def encode_request(seq: int, call: Call[Any]) -> bytes:
    """The frame of a request. Raises SyscallError: EMSGSIZE for a frame that the kernel would refuse, EINVAL for what is
    no system call."""
    entry = BY_RECORD.get(type(call))
    if entry is None:
        raise SyscallError(
            Errno.EINVAL, f"{type(call).__name__} is no system call; use a record of llmasos.syscalls.table"
        )
    try:
        frame = _encode((limits.PROTOCOL_VERSION, seq, entry.number, _packed(call)))
    except OverflowError:
        where = ".".join(_beyond(call)) or "a number"
        raise SyscallError(Errno.EINVAL, f"{entry.name}: {where}: at most 64 bits; the number has more") from None
    except UnicodeEncodeError as error:
        raise SyscallError(Errno.EINVAL, f"{entry.name}: {no_text(error)}") from None
    except _UNENCODABLE as error:
        raise SyscallError(Errno.EINVAL, f"{entry.name}: {error}") from None
    if len(frame) > limits.MAX_REQUEST_BYTES:
        raise SyscallError(Errno.EMSGSIZE, too_long(len(frame)))
    return frame


def _packed(call: Call[Any]) -> Call[Any]:
    """A call as it is sent: many tokens go packed, unless something is wrong with them, which the kernel is to say."""
    if isinstance(call, Spawn | Exec | Feed) and call.tokens is not None and len(call.tokens) >= parts.PACKED:
        with suppress(OverflowError, TypeError):
            return msgspec.structs.replace(call, tokens=parts.packed(call.tokens))
    return call


def no_text(error: UnicodeEncodeError) -> str:
    """Why a text cannot be carried, in words."""
    code = ord(error.object[error.start])
    shown = error.object[:40].encode("utf-8", "backslashreplace").decode()
    what = f"the byte 0x{code - 0xDC00:02X}, which is no UTF-8" if 0xDC80 <= code <= 0xDCFF else "half a surrogate pair"
    return f"'{printable(shown)}' is no text: its character {error.start} is {what}; write it in UTF-8"


def encode_cancel(seq: int, cancels: int) -> bytes:
    return _encode((limits.PROTOCOL_VERSION, seq, CANCEL, (cancels,)))


def decode_request(frame: Frame) -> Request:
    """The request in a frame. Raises RefusedFrame, with the seq, errno and reason to answer."""
    if len(frame) > limits.MAX_REQUEST_BYTES:
        raise RefusedFrame(0, Errno.EMSGSIZE, too_long(len(frame)))
    try:
        version, seq, number, body = _fields(_envelope(frame))
    except _BROKEN as error:
        raise _diagnose(frame, error) from None
    if version != limits.PROTOCOL_VERSION:
        raise RefusedFrame(seq, Errno.EPROTO, _other_version(version))
    if number == CANCEL:
        try:
            return Request(seq, None, _cancel(body)[0])
        except _BROKEN as error:
            raise RefusedFrame(seq, Errno.EINVAL, f"cancel: {_sentence(error)}") from None
    decode = _arguments.get(number)
    if decode is None:
        raise RefusedFrame(seq, Errno.ENOSYS, f"there is no system call {number}; the highest is {max(TABLE)}")
    try:
        return Request(seq, decode(body))
    except _BROKEN as error:
        entry = TABLE[number]
        reason = f"{entry.name}: {_named(_sentence(error), entry, body)}"
        raise RefusedFrame(seq, Errno.EINVAL, reason) from None


def decode_in_parts(frame: Frame) -> Generator[None, None, Request]:
    """As `decode_request`, with a stop after each part of a long frame: no part takes longer than some tenths of a
    millisecond. Tokens come as `parts.Packed`."""
    if len(frame) < parts.LONG:
        return decode_request(frame)
    if len(frame) > limits.MAX_REQUEST_BYTES:
        raise RefusedFrame(seq_of(frame[:24]), Errno.EMSGSIZE, too_long(len(frame)))
    left = [parts.MAX_VALUES]
    if frame[:1] != b"\x94":
        raise _diagnose(frame, msgspec.DecodeError("it is no array of 4"))
    try:
        at = 1
        for _ in range(3):  # numbers, or the frame is refused
            at = yield from parts.skipped(frame, at, left)
        version, seq, number, _ = _fields(_envelope(frame[:at] + b"\xc0"))
    except (*_BROKEN, parts.Faulty) as error:
        raise _diagnose(frame, error) from None
    entry = TABLE.get(number)
    if version != limits.PROTOCOL_VERSION or entry is None:  # nothing of it is needed to say so
        return decode_request(frame[:at] + b"\xc0")
    place, short, tokens = _TOKENS.get(number, -1), bytearray(), None
    argument = -1
    try:
        count, at = parts.header(frame, at)
        if count > (most := len(entry.record.__struct_fields__)):
            raise parts.Faulty(f"Expected `array` of at most length {most}, got {count}")
        short += parts.array_of(count)
        for argument in range(count):
            begin = at
            if argument == place:
                tokens, at = yield from parts.taken(frame, at)
            if at == begin:
                at = yield from parts.skipped(frame, at, left)
                short += memoryview(frame)[begin:at]
            else:
                short += b"\x90"
        if at != len(frame):
            raise parts.Faulty("MessagePack data is malformed: trailing characters")
        argument = -1
        call = _arguments[number](short)
    except (*_BROKEN, parts.Faulty) as error:
        said = _sentence(error)
        if argument >= 0:
            said = (
                said.replace(" - at `$", f" - at `$[{argument}]")
                if " - at `$" in said
                else f"{said} - at `$[{argument}]`"
            )
        raise RefusedFrame(seq, Errno.EINVAL, f"{entry.name}: {_named(said, entry, short)}") from None
    if tokens is not None:
        msgspec.structs.force_setattr(call, "tokens", tokens)
    return Request(seq, call)


def seq_of(prefix: Frame) -> int:
    """The sequence number of a request of which only the first bytes are known; 0 if they tell none."""
    kinds = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
    if len(prefix) < 12 or prefix[0] != 0x94 or prefix[1] != limits.PROTOCOL_VERSION:
        return 0
    if prefix[2] < 0x80:
        return prefix[2]
    seq = int.from_bytes(prefix[3 : 3 + kinds.get(prefix[2], 0)], "big")
    return seq if seq <= MAX_SEQ else 0


def taken(call: Call[R]) -> Call[R]:
    """A call as the kernel gets it, without a wire. Raises SyscallError for what is no call, or none that the kernel
    takes."""
    given: Any = call
    if isinstance(given, type) and (entry := BY_RECORD.get(given)) is not None:
        raise Errno.EINVAL(f"{given.__name__} is the class of a call; make one: {given.__name__}(...), man {entry.name}")
    try:
        decoded: Call[R] | None = decode_request(encode_request(0, call)).call
    except RefusedFrame as error:
        raise SyscallError(error.errno, error.reason) from None
    if decoded is None:
        raise AssertionError("a call takes none back")
    return decoded


def encode_reply(seq: int, errno: Errno, value: Any, position: int = 0) -> bytes:
    """The frame of a reply. `value` is the result if errno is OK, else the reason; `position` that of the journal, if it
    is to be told. A result over MAX_REPLY_BYTES becomes EMSGSIZE, one that cannot be encoded (a number beyond 64 bits,
    say) EIO."""
    try:
        reply = (limits.PROTOCOL_VERSION, seq, int(errno), value)
        frame = _encode((*reply, position) if position else reply)
    except _UNENCODABLE as error:
        if errno is not Errno.OK:
            return encode_reply(seq, errno, printable(str(value), one_line=True), position)
        return encode_reply(seq, Errno.EIO, f"the result cannot be sent: {error}", position)
    if len(frame) > limits.MAX_REPLY_BYTES:
        reason = f"the result has {len(frame)} bytes, at most {limits.MAX_REPLY_BYTES} are possible; ask for less"
        return _encode((limits.PROTOCOL_VERSION, seq, int(Errno.EMSGSIZE), reason))
    return frame


class Reply(NamedTuple):
    """A reply whose result is still encoded: `result(reply, call)` reads it. `position`: how far the journal had come; 0:
    it does not say."""

    seq: int
    errno: Errno
    body: msgspec.Raw
    position: int = 0


def decode_reply(frame: bytes) -> Reply:
    """The reply in a frame. Raises SyscallError EPROTO for a frame that no kernel of this version sends."""
    try:
        envelope = _answer(frame)
        version, seq, errno, body = _fields(envelope)
        if version == limits.PROTOCOL_VERSION:
            return Reply(seq, Errno(errno) if errno else Errno.OK, body, envelope.position)
    except (*_BROKEN, ValueError) as error:
        raise SyscallError(Errno.EPROTO, f"the kernel sent no valid reply: {error}") from None
    raise SyscallError(Errno.EPROTO, _other_version(version))


def result(reply: Reply, call: Call[R]) -> R:
    """The result in a reply; raises the SyscallError that the kernel answered with."""
    try:
        if reply.errno is not Errno.OK:
            raise SyscallError(reply.errno, reason(reply))
        value: R = _results[type(call)](reply.body)
    except _BROKEN as error:
        name = BY_RECORD[type(call)].name
        raise SyscallError(Errno.EPROTO, f"{name}: the kernel sent another result: {error}") from None
    return value


def reason(reply: Reply) -> str:
    """Why a call failed."""
    try:
        return _reason(reply.body)
    except _BROKEN as error:
        raise SyscallError(Errno.EPROTO, f"the kernel sent {reply.errno.name} with no reason: {error}") from None


def describe(call: Call[Any], *, content: bool = True) -> str:
    """A call as strace shows it: `fork(pid=3, count=2)`. Arguments with their default are left out. Without `content` it
    tells nothing of what stands in a log: of a list only its length."""
    entry: Entry = BY_RECORD[type(call)]
    shown = []
    for field in msgspec.structs.fields(entry.record):
        value = getattr(call, field.name)
        default = field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        if value != default:
            shown.append(f"{field.name}={describe_value(value, content=content)}")
    return f"{entry.name}({', '.join(shown)})"


def describe_value(value: Any, *, content: bool = True) -> str:
    """An argument or result, shortened: a long list to its first elements and its length; without `content` to its
    length."""
    match value:
        case LogRecord():
            return f"LogRecord(position={value.position}, {len(value.data)} bytes)"
        case msgspec.Struct():
            fields = [(f.name, getattr(value, f.name)) for f in msgspec.structs.fields(value)]
            inner = ", ".join(f"{name}={describe_value(v, content=content)}" for name, v in fields)
            return f"{type(value).__name__}({inner})"
        case [bytes(), *_]:  # records; their sizes may be shown
            sizes = ", ".join(f"{len(blob)} bytes" for blob in value[:SHOWN])
            return f"[{sizes}]" if len(value) <= SHOWN else f"[{sizes}, ... {len(value)} in all]"
        case list() | array() if value and not content:
            return f"[{len(value)} in all]"
        case list() | array():
            inner = ", ".join(describe_value(element) for element in value[:SHOWN])
            return f"[{inner}]" if len(value) <= SHOWN else f"[{inner}, ... {len(value)} in all]"
        case dict():
            inner = ", ".join(f"{key}: {describe_value(v, content=content)}" for key, v in list(value.items())[:SHOWN])
            return f"{{{inner}}}" if len(value) <= SHOWN else f"{{{inner}, ... {len(value)} in all}}"
        case bytes():
            return "(secret)"
        case Errno() | int() | float() | None:
            return getattr(value, "name", None) or str(value)
        case str() if not isinstance(value, enum.Enum):
            return repr(value if len(value) <= SHOWN_TEXT else value[:SHOWN_TEXT] + "...")
        case _:
            return str(value)


def describe_outcome(errno: Errno, value: Any, *, content: bool = True) -> str:
    """What follows `=` in strace: the result, or the errno and its reason (which may name tokens)."""
    if errno is Errno.OK:
        return describe_value(value, content=content)
    return f"-{errno.name} ({value})" if content else f"-{errno.name}"


def too_long(size: int) -> str:
    return f"the request has {size} bytes, at most {limits.MAX_REQUEST_BYTES} are possible; feed tokens in parts"


def _fields(envelope: _Envelope) -> tuple[int, int, int, msgspec.Raw]:
    return envelope.version, envelope.seq, envelope.code, envelope.body


def _other_version(version: int) -> str:
    return (
        f"protocol version {version} was found, {limits.PROTOCOL_VERSION} is spoken here; "
        "use client and kernel of the same release"
    )


def _sentence(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "the arguments are nested too deeply"
    return str(error)


def _named(said: str, entry: Entry, body: msgspec.Raw | bytearray) -> str:
    """msgspec's sentence about the arguments of a call as one for people: `limits.pages: 0 or more, found -3`."""
    placed = _PLACED.fullmatch(said)
    if placed is None:
        return constraint.sentence(said, None, ...)
    try:
        value = _any(body) if memoryview(body).nbytes <= _LOOKED_AT else ...
    except _BROKEN:  # what follows the fault is broken too
        value = ...
    place, annotation, value = _place(placed[2][1:-1].split("]["), entry.record, value)
    return f"{place}: {constraint.sentence(placed[1], annotation, value)}"


def _place(positions: list[str], annotation: Any, value: Any) -> tuple[str, Any, Any]:
    """The place in a value of the declared type to which `positions` lead (`$[6][2]` is the third field of the seventh
    argument): names of fields and numbers of list elements, and the type and the value that are there."""
    place = ""
    for position in positions:
        record = _record_in(annotation)
        if record is not None and position.isdigit():
            field = msgspec.structs.fields(record)[int(position)]
            place += f".{field.name}"
            annotation = field.type
        else:
            place += f"[{position}]"
            annotation = None if record is not None else _element(annotation)
        known = isinstance(value, list) and position.isdigit() and int(position) < len(value)
        value = value[int(position)] if known else ...
    return place.removeprefix("."), annotation, value


def _record_in(annotation: Any) -> type[msgspec.Struct] | None:
    """The record type in `Record`, `Record | None`, `Annotated[Record, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation
    if typing.get_origin(annotation) in (list, dict):
        return None
    return next(filter(None, map(_record_in, typing.get_args(annotation))), None)


def _element(annotation: Any) -> Any:
    """The type of a list's elements; the list may be annotated or optional. None: it is no list."""
    if typing.get_origin(annotation) in (list, dict):
        return typing.get_args(annotation)[-1]
    return next(filter(None, map(_element, typing.get_args(annotation))), None)


def _diagnose(frame: Frame, error: Exception) -> RefusedFrame:
    """Read what can be read of a frame that is no request: another version may have another shape."""
    seq = 0
    try:
        fields = _loose(frame) if len(frame) <= _LOOKED_AT else []
        if len(fields) > 1 and isinstance(found := _any(fields[1]), int) and 0 <= found <= MAX_SEQ:
            seq = int(found)
        if fields and type(version := _any(fields[0])) is int and version != limits.PROTOCOL_VERSION:
            return RefusedFrame(seq, Errno.EPROTO, _other_version(version))
    except _BROKEN:
        pass
    wanted = "a request is one msgpack frame [version, seq, call number, [arguments]]"
    return RefusedFrame(seq, Errno.EINVAL, f"{wanted}: {_sentence(error)}")

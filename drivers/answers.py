"""Answers: one message for each request, whatever the device raised."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TypeVar

import msgspec

from llmasos.drivers.checkpoint_refusals import Locked
from llmasos.drivers.protocol import (
    FAILURES,
    MAX_TEXT,
    Drop,
    DropWeights,
    Export,
    Exported,
    Failed,
    FromDriver,
    Import,
    Imported,
    Inspect,
    Load,
    Note,
    Probe,
    Probed,
    Step,
    StepDone,
    Unload,
    Wipe,
    decode_from_driver,
    encode,
)
from llmasos.modelfiles.files import Broken
from llmasos.syscalls.errno import Errno, SyscallError

TRACEBACK_LINES = 6  # of an unexpected error that go to the kernel log

Work = Probe | Load | DropWeights | Unload | Step | Drop | Wipe | Export | Inspect | Import
R = TypeVar("R")


def attempt(request: Work, act: Callable[[], R], tell: Callable[[str], None]) -> R | Failed:
    """The result of `act` for a request, or its failure. `tell` gets the end of an unexpected error's traceback."""
    ref = 0 if isinstance(request, Drop) else request.ref
    name = type(request).__name__.lower()
    try:
        return act()
    except SyscallError as error:
        sealed = error.name if isinstance(error, Locked) else b""
        reason = error.reason or f"{name}: {error.errno.name}"
        if error.errno not in FAILURES:  # of something within the driver; the request knows no such failure
            return Failed(ref, Errno.EIO, f"{name}: {error.errno.name}: {reason}")
        return Failed(ref, error.errno, reason, isinstance(error, Broken), sealed)
    except MemoryError as error:
        return Failed(ref, Errno.ENOMEM, f"{name}: out of memory {error}".rstrip())
    except Exception as error:  # whatever it is, the request is answered
        tell(last_lines(traceback.format_exc()))
        return Failed(ref, Errno.EIO, f"{name}: {type(error).__name__}: {error}")


def last_lines(trace: str) -> str:
    return "\n".join(trace.strip().splitlines()[-TRACEBACK_LINES:])


def encoded(message: FromDriver) -> bytes:
    """A message as bytes. An answer that cannot be encoded (an integer beyond 64 bits, half a surrogate pair) becomes the
    request's failure, and so does one that the kernel would not take; a line for the log is escaped; text that is longer
    than the kernel takes is cut."""
    message = _cut(message)
    try:
        body = encode(message)
        if isinstance(message, Probed):  # what it says of a model are a stranger's words
            decode_from_driver(body)
        return body
    except (OverflowError, ValueError, TypeError) as error:  # and msgspec.DecodeError
        if isinstance(message, Note):
            return encode(_cut(Note(message.level, message.text.encode(errors="backslashreplace").decode())))
        if (ref := getattr(message, "ref", None)) is None:
            raise
        if isinstance(message, Failed):
            reason = message.reason.encode(errors="backslashreplace").decode()
            return encode(_cut(msgspec.structs.replace(message, reason=reason)))
        what = f"the driver's answer ({type(message).__name__}) cannot be sent: {error}"
        return encode(Failed(ref, Errno.EIO, what))


def _cut(message: FromDriver) -> FromDriver:
    """The message with no text longer than MAX_TEXT."""
    match message:
        case StepDone(results=results) if any(len(result.error) > MAX_TEXT for result in results):
            cut = [msgspec.structs.replace(result, error=_short(result.error)) for result in results]
            return msgspec.structs.replace(message, results=cut)
        case Failed(reason=text) | Exported(reason=text) | Imported(reason=text) if len(text) > MAX_TEXT:
            return msgspec.structs.replace(message, reason=_short(text))
        case Note(text=text) if len(text) > MAX_TEXT:
            return msgspec.structs.replace(message, text=_short(text))
    return message


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"

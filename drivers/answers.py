"""Answers: one message for each request, whatever the device raised."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TypeVar

import msgspec

from llmasos.drivers.checkpoint_refusals import Locked
from llmasos.drivers.protocol import (
    Drop,
    DropWeights,
    Export,
    Failed,
    FromDriver,
    Import,
    Inspect,
    Load,
    Note,
    Probe,
    Step,
    Unload,
    Wipe,
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
        return Failed(ref, error.errno, error.reason, isinstance(error, Broken), sealed)
    except MemoryError as error:
        return Failed(ref, Errno.ENOMEM, f"{name}: out of memory {error}".rstrip())
    except Exception as error:
        tell(last_lines(traceback.format_exc()))
        return Failed(ref, Errno.EIO, f"{name}: {type(error).__name__}: {error}")


def last_lines(trace: str) -> str:
    return "\n".join(trace.strip().splitlines()[-TRACEBACK_LINES:])


def encoded(message: FromDriver) -> bytes:
    """A message as bytes. An answer that cannot be encoded (an integer beyond 64 bits, half a surrogate pair) becomes the
    request's failure; a line for the log is escaped."""
    try:
        return encode(message)
    except (OverflowError, ValueError, TypeError) as error:
        if isinstance(message, Note):
            return encode(Note(message.level, message.text.encode(errors="backslashreplace").decode()))
        if (ref := getattr(message, "ref", None)) is None:
            raise
        if isinstance(message, Failed):
            reason = message.reason.encode(errors="backslashreplace").decode()
            return encode(msgspec.structs.replace(message, reason=reason))
        what = f"the driver's answer ({type(message).__name__}) cannot be sent: {error}"
        return encode(Failed(ref, Errno.EIO, what))

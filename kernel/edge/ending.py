"""How a kernel ends that could not be booted, or could not clean up: with one readable line for each reason.

What the operating system refuses is no error of the kernel's, and a traceback tells a user nothing: the line names the
file, the refusal, the place that asked, and what to do. Any other error ends the kernel with its traceback, and so does
one that comes out of an event of the core, of whatever kind: the core asks nothing of the system, so it is a fault.
"""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import trio

from llmasos.syscalls.errno import SyscallError

_OURS = Path(__file__).resolve().parents[2]
_CORE = _OURS / "kernel" / "core.py"
_DO = {
    errno.EMFILE: "raise `ulimit -n`",
    errno.ENFILE: "end what holds so many files open",
    errno.ENOMEM: "free some memory",
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room on that disk",
}


def every(*steps: Callable[[], object]) -> list[str]:
    """Take all steps of an end, whatever has become of those before; returns what could not be done, a line each."""
    troubles = []
    for step in steps:
        try:
            step()
        except (OSError, SyscallError) as error:
            troubles.append(error.reason if isinstance(error, SyscallError) else _left(error))
    return troubles


def reasons(error: BaseException) -> list[str]:
    """Why it ended, a line each; none: it is another error than one of the operating system's, or a refusal."""
    leaves = list(_leaves(error))
    found = [one for one in leaves if isinstance(one, (OSError, SyscallError))]
    if len(found) < len(leaves) or any(map(_of_core, leaves)):
        return []
    return list(dict.fromkeys(one.reason if isinstance(one, SyscallError) else _line(one) for one in found))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """What the tasks of an event loop have ended with, or the loop itself."""
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    elif isinstance(error, trio.TrioInternalError) and error.__cause__ is not None:
        found = list(_leaves(error.__cause__))
        yield from [one for one in found if isinstance(one, OSError)] or found  # the loop adds errors of its own
    else:
        yield error


def _of_core(error: BaseException) -> bool:
    """Whether it was raised as the core handled an event."""
    codes = (frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(code.co_name == "handle" and Path(code.co_filename).resolve() == _CORE for code in codes)


def _line(error: OSError) -> str:
    subject = f"{name} cannot be used" if (name := _name(error)) else "the system refuses the kernel"
    return f"{subject}: {_said(error)}; {_DO.get(error.errno or 0, 'mend that')}, and boot again"


def _left(error: OSError) -> str:
    name = _name(error)
    return f"{name} is left behind: {_said(error)}; remove it" if name else f"the kernel's end: {_said(error)}"


def _name(error: OSError) -> str:
    return os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""


def _said(error: OSError) -> str:
    code = errno.errorcode.get(error.errno or 0, type(error).__name__)
    return f"{error.strerror or error} ({code}{_place(error)})"


def _place(error: BaseException) -> str:
    """The innermost place of the kernel's own that the error came by."""
    found, step = "", error.__traceback__
    while step is not None:
        file = Path(step.tb_frame.f_code.co_filename)  # of code that has no file, some name
        if file.is_absolute() and (file := file.resolve()).is_relative_to(_OURS):
            file = file.relative_to(_OURS)
            found = f", {file}:{step.tb_lineno}" if ".venv" not in file.parts else found
        step = step.tb_next
    return found

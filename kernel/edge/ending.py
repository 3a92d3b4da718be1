"""How a kernel ends that could not be booted, or could not clean up: with one readable line for each reason.

What the operating system refuses is no error of the kernel's, and a traceback tells a user nothing: the line names the
file, the refusal, the place that asked, and what to do. Any other error ends the kernel with its traceback.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import trio

from llmasos.syscalls.errno import SyscallError

_OURS = Path(__file__).resolve().parents[2]
_DO = {
    errno.EMFILE: "raise `ulimit -n`",
    errno.ENFILE: "end what holds so many files open",
    errno.ENOMEM: "free some memory",
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room on that disk",
}


def every(*steps: Callable[[], object]) -> list[str]:
    """Take all steps, whatever has become of those before; returns what could not be done, a line each."""
    troubles = []
    for step in steps:
        try:
            step()
        except (OSError, SyscallError) as error:
            troubles += reasons(error)
    return troubles


def reasons(error: BaseException) -> list[str]:
    """Why it ended, a line each; none: it is another error than one of the operating system's, or a refusal."""
    leaves = list(dict.fromkeys(_leaves(error)))
    if not all(isinstance(one, (OSError, SyscallError)) for one in leaves):
        return []
    return list(dict.fromkeys(one.reason if isinstance(one, SyscallError) else _line(one) for one in leaves))


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


def _line(error: BaseException) -> str:
    number = error.errno if isinstance(error, OSError) else None
    said = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    name = error.filename if isinstance(error, OSError) else None
    subject = f"{os.fsdecode(name)} cannot be used" if isinstance(name, (str, bytes)) else "the system refuses the kernel"
    code = errno.errorcode.get(number or 0, type(error).__name__)
    return f"{subject}: {said} ({code}{_place(error)}); {_DO.get(number or 0, 'mend that')}, and boot again"


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

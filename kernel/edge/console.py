"""The kernel log for people: on the terminal, or in a file that does not grow without end.

The file has all that the kernel and its interpreter print, since it is their standard output. When it has become long it
gets another name, as logrotate does it, and a new one takes its place.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from llmasos.kernel.events import Log

MOST_BYTES = 4 << 20  # of the file; there is one more of that size, NAME.1
_COLOURS = {"error": "\x1b[31m", "warning": "\x1b[33m"}


def open_log(path: Path) -> None:
    """Let all that this process prints go to the end of a file, 0600. Raises OSError."""
    opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.dup2(opened, 1)
    os.dup2(opened, 2)
    os.close(opened)


def _rotate(path: Path) -> None:
    with suppress(OSError):  # a full disk, say: the file goes on growing, and this is tried again
        if os.fstat(1).st_size > MOST_BYTES:
            os.replace(path, path.with_name(f"{path.name}.1"))
            open_log(path)
        elif not path.exists():  # somebody has removed it
            open_log(path)


def console(*, quiet: bool, log: Path | None = None) -> Callable[[Log], None]:
    """What shows a line: time since boot, level where it matters, text; coloured on a terminal. `log` is the file that
    standard output goes to."""
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def show(line: Log) -> None:
        if quiet and line.level == "info":
            return
        level = "" if line.level == "info" else f"{line.level}: "
        text = f"[{line.at:10.3f}] {level}{line.text}"
        colour = _COLOURS.get(line.level, "") if coloured else ""
        if log is not None:
            _rotate(log)
        # A terminal that is gone or does not read, or a full disk, must not stop the kernel.
        try:
            if select.select([], [sys.stdout], [], 0)[1]:
                print(f"{colour}{text}\x1b[0m" if colour else text, flush=True)
        except (OSError, ValueError):
            pass

    return show

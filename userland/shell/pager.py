"""The pager: what is longer than the screen is read in `$PAGER`, or `less`, as git and man do it.

Without a terminal, and for text that fits, nothing comes between. A pager that cannot be started costs the paging, not
the text; one that is left early (`q`) has seen enough, which is no error.
"""

from __future__ import annotations

import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from llmasos.userland.programs.screen import Screen
from llmasos.userland.programs.table import cells

LESS = "FRX"  # ends at once with what fits, shows colours, leaves the text on the screen


class _Kept(io.StringIO):
    """Text on its way to a terminal."""

    def isatty(self) -> bool:
        return True


@contextmanager
def paged(screen: Screen) -> Iterator[None]:
    """`with paged(screen): ...` prints the body's output at its end, through a pager if it is longer than the screen."""
    command = pager()
    there = screen.terminal and sys.stdin is not None and sys.stdin.isatty()
    if not there or not command or threading.current_thread() is not threading.main_thread():
        yield
        return
    out, width, height = screen.out, screen.width, screen.height
    kept = _Kept()
    screen.out = kept
    try:
        with screen.fixed_width(width):
            yield
    finally:
        screen.out = out
        text = kept.getvalue()
        if _lines(text, width) < height or not _page(command, text):
            screen.write(text, shown=True)


def pager() -> list[str]:
    """The command of the pager: `$PAGER`, else less, else more; empty for none."""
    said = os.environ.get("PAGER")
    if said is not None:
        words = shlex.split(said)
        return [] if words in ([], ["cat"]) else words
    return next(([name] for name in ("less", "more") if shutil.which(name)), [])


def _lines(text: str, width: int) -> int:
    return sum(max(1, -(-cells(line) // width)) for line in _without_colours(text).split("\n"))


def _without_colours(text: str) -> str:
    import re

    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _page(command: list[str], text: str) -> bool:
    environment = {**os.environ}
    environment.setdefault("LESS", LESS)
    try:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, text=True, errors="replace")
    except OSError:
        return False
    assert child.stdin is not None
    # Ctrl-C goes to the whole foreground group: the pager handles it, and this program waits.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _unstoppable():
            with suppress(BrokenPipeError):
                child.stdin.write(text)
            with suppress(BrokenPipeError):
                child.stdin.close()
            child.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    return child.returncode != 127  # a shell that finds no such program


@contextmanager
def _unstoppable() -> Iterator[None]:
    """Within this Ctrl-Z is a key and no signal: a pager that is stopped would leave a shell that waits for it."""
    import termios

    there = sys.stdin.fileno()
    before = termios.tcgetattr(there)
    modes = termios.tcgetattr(there)
    modes[6][termios.VSUSP] = b"\0"
    termios.tcsetattr(there, termios.TCSADRAIN, modes)
    try:
        yield
    finally:
        termios.tcsetattr(there, termios.TCSADRAIN, before)

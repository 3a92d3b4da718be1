"""The terminal of an interactive shell: its modes, and who has it in the foreground.

Between prompts the terminal does not echo: what is typed during an answer waits, unseen, for the next prompt, and so does
what the terminal itself sends. A program of the host that runs in the foreground gets the terminal as the shell found it,
and with it Ctrl-C and Ctrl-Z (tcsetpgrp(3)).
"""

from __future__ import annotations

import os
import signal
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SOON_SECONDS = 1.0  # an answer has begun, and this shell is about to listen


class Suspended(BaseException):
    """Ctrl-Z during a command that can be stopped. As KeyboardInterrupt, it passes all that handles errors."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C that a command has told of already."""


class Terminal:
    """The terminal that is stdin. `with` it, the modes are as before at the end, also when a signal ends the shell."""

    def __init__(self) -> None:
        self._descriptor = sys.stdin.fileno()
        self._found = termios.tcgetattr(self._descriptor)
        self._suspendable = False
        self._pressed = float("-inf")  # when Ctrl-Z came to what cannot be stopped

    def __enter__(self) -> Terminal:
        self._before = {number: signal.signal(number, self._ends) for number in (signal.SIGTERM, signal.SIGHUP)}
        # Ctrl-\ is not meant for the shell. A handler, not SIG_IGN, which programs that are started here would inherit.
        self._before[signal.SIGQUIT] = signal.signal(signal.SIGQUIT, lambda number, frame: None)
        self.quiet()
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ends(self, number: int, frame: FrameType | None) -> None:
        self.restore()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    @contextmanager
    def commanding(self) -> Iterator[None]:
        """Within this, Ctrl-Z does not stop the shell. (At the prompt it does.)"""
        # A handler, not SIG_IGN, which programs that are started here would inherit.
        before = signal.signal(signal.SIGTSTP, self._stopped)
        try:
            yield
        finally:
            signal.signal(signal.SIGTSTP, before)

    def quiet(self) -> None:
        """No echo. Keys are kept as they are typed, so that the next prompt reads them; Ctrl-C and Ctrl-Z stay
        signals."""
        modes = termios.tcgetattr(self._descriptor)
        modes[0] &= ~(termios.ICRNL | termios.IXON)
        modes[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN)
        modes[3] |= termios.ISIG
        self._set(modes)

    def restore(self) -> None:
        """The modes that the shell found."""
        self._set(self._found)

    def _set(self, modes: list[Any]) -> None:
        with _unstopped(), suppress(termios.error):  # the terminal has hung up
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, modes)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Within this a program of the host may have the terminal."""
        self.restore()
        try:
            yield
        finally:
            self.take()

    def give(self, group: int) -> None:
        """Put a process group into the foreground."""
        with _unstopped(), suppress(OSError):  # it has ended already
            os.tcsetpgrp(self._descriptor, group)
            os.killpg(group, signal.SIGCONT)  # it may have been stopped because it was not in the foreground yet

    def take(self) -> None:
        """Have the terminal back, quiet."""
        with _unstopped(), suppress(OSError):
            os.tcsetpgrp(self._descriptor, os.getpgrp())
        self.quiet()

    @contextmanager
    def suspendable(self) -> Iterator[None]:
        """Within this, Ctrl-Z raises Suspended; elsewhere it does nothing, unless this begins at once."""
        self._suspendable = True
        try:
            if time.monotonic() - self._pressed < SOON_SECONDS:
                raise Suspended
            yield
        finally:
            self._suspendable = False
            self._pressed = float("-inf")

    def _stopped(self, number: int, frame: FrameType | None) -> None:
        if self._suspendable:
            self._suspendable = False
            raise Suspended
        self._pressed = time.monotonic()


@contextmanager
def _unstopped() -> Iterator[None]:
    """A shell in the background that sets the terminal is not stopped for it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

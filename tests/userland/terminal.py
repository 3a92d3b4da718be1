"""A terminal to run programs in: a pseudo-terminal whose screen a test reads, as expect(1) does.

The program leads a session of its own with the pseudo-terminal as its controlling terminal, so that Ctrl-C, Ctrl-D and
hang-up do what they do for a person; when the test ends, or is killed, the terminal hangs up and the program with it.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import pyte

WAIT_SECONDS = 120.0  # generous: what is awaited comes, or never does
CTRL_C, CTRL_D, CTRL_L, CTRL_R, CTRL_Z, TAB = "\x03", "\x04", "\x0c", "\x12", "\x1a", "\t"

# The child makes the terminal its own before it becomes the program, and hears its signals, as after a login: also
# where the tests were started with some of them ignored (by nohup, or by a shell's `&`).
_LEAD = (
    "import os, sys, fcntl, signal, termios\n"
    "for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):\n"
    "    signal.signal(number, signal.SIG_DFL)\n"
    "os.setsid()\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "os.execv(sys.argv[1], sys.argv[1:])"
)
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[=>()][0-9A-B]?)")


class Terminal:
    """A program in a terminal, of 100 x 30 unless told otherwise. `screen` is all it has printed, without escape
    sequences: an editor of lines prints only what changes, so tests look for what commands print and not for what is
    typed."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        columns: int = 100,
        rows: int = 30,
    ) -> None:
        self._master, slave = pty.openpty()
        self._size = columns, rows
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        env = {**os.environ, "TERM": "xterm-256color", "PAGER": "cat"}
        for name in ("NO_COLOR", "COLUMNS", "LINES"):  # readline, imported by a worker of xdist, puts the last two there
            env.pop(name, None)
        env.update(environment or {})
        self.process = subprocess.Popen(
            [sys.executable, "-IS", "-c", _LEAD, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env,
            close_fds=True,
        )
        os.close(slave)
        self.raw = b""
        self._seen = 0

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._master)  # hangs up
        try:
            self.process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @property
    def screen(self) -> str:
        return _ESCAPES.sub("", self.raw.decode(errors="replace")).replace("\r", "")

    @property
    def display(self) -> list[str]:
        """The lines that a person sees now, by a terminal emulator (pyte)."""
        screen = pyte.Screen(*self._size)
        pyte.ByteStream(screen).feed(self.raw)
        return [line.rstrip() for line in screen.display]

    def modes(self) -> list[Any]:
        """The settings of the terminal, as tcgetattr gives them."""
        return termios.tcgetattr(self._master)

    @property
    def echoes(self) -> bool:
        """Whether keys are shown by the terminal itself: then a program of the host has it, and no editor of lines."""
        while self._read(0.0):  # a program that changes the settings waits until what it has printed is read
            pass
        return bool(self.modes()[3] & termios.ECHO)

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def enter(self, line: str) -> None:
        """Type a line and press return."""
        self.type(line + "\r")

    def expect(self, pattern: str, seconds: float = WAIT_SECONDS) -> str:
        """Wait until something that matches is printed after the last match, and return it."""
        deadline = time.monotonic() + seconds
        while True:
            found = re.compile(pattern).search(self.screen, self._seen)
            if found is not None:
                self._seen = found.end()
                return found.group()
            left = deadline - time.monotonic()
            if left <= 0 or not self._read(left):
                shown = self.screen[self._seen :][-3000:]
                raise AssertionError(f"{pattern!r} has not appeared; since the last match there was:\n{shown}")

    def shows(self, pattern: str, seconds: float = WAIT_SECONDS) -> None:
        """Wait until a person sees something that matches, however it was drawn."""
        self.until(lambda lines: re.search(pattern, "\n".join(lines)) is not None, repr(pattern), seconds)

    def until(self, holds: Callable[[list[str]], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
        """Wait until something holds of the lines that a person sees."""
        deadline = time.monotonic() + seconds
        while not holds(self.display):
            left = deadline - time.monotonic()
            if left <= 0 or not self._read(left):
                raise AssertionError(f"{what} is not shown; there is:\n" + "\n".join(self.display))

    @property
    def foreground(self) -> int:
        """The process group that has the terminal, and its keys."""
        return os.tcgetpgrp(self._master)

    def quiet(self, seconds: float = 2.0) -> None:
        """Read on until nothing has been printed for some seconds; `expect` then looks at what comes after."""
        while self._read(seconds):
            pass
        self._seen = len(self.screen)

    def wait(self, seconds: float = WAIT_SECONDS) -> int:
        """Wait for the program to end; returns its exit status."""
        deadline = time.monotonic() + seconds
        while self._read(max(0.0, deadline - time.monotonic())):
            pass
        return self.process.wait(max(1.0, deadline - time.monotonic()))

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], seconds)
        if not ready:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: the last program has closed the terminal
            return False
        self.raw += data
        # prompt_toolkit asks a terminal where its cursor is, and a terminal answers.
        for _ in range(data.count(b"\x1b[6n")):
            os.write(self._master, b"\x1b[1;1R")
        return bool(data)

"""A program in a terminal whose screen is what a person would see: pexpect starts it, pyte is the terminal."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import pexpect
import pyte

from tests.booted import PATIENCE


class ScreenOf:
    """`screen` is what the terminal shows now, a line a string. `alternate`: the program has a screen of its own."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], size: tuple[int, int] = (100, 30)) -> None:
        width, height = size
        self._terminal = pyte.Screen(width, height)
        self._stream = pyte.ByteStream(self._terminal)
        self.raw = b""
        env = {**os.environ, "TERM": "xterm-256color", **environment}
        for name in ("NO_COLOR", "COLORFGBG"):
            env.pop(name, None)
        self.child: Any = pexpect.spawn(
            command[0], list(command[1:]), env=env, dimensions=(height, width), timeout=None, preexec_fn=_hears_signals
        )

    def __enter__(self) -> ScreenOf:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.child.close(force=True)

    @property
    def screen(self) -> list[str]:
        return [line.rstrip() for line in self._terminal.display]

    @property
    def text(self) -> str:
        return "\n".join(self.screen)

    @property
    def alternate(self) -> bool:
        on, off = self.raw.rfind(b"\x1b[?1049h"), self.raw.rfind(b"\x1b[?1049l")
        return on > off

    def press(self, keys: str) -> None:
        self.child.send(keys)

    def shows(self, pattern: str) -> str:
        """Wait until the screen shows it; returns the text of the screen."""
        self.until(lambda: re.search(pattern, self.text) is not None, pattern)
        return self.text

    def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < deadline, f"{what!r} is not shown; there is\n{self.text}"
            assert self.read(), f"the program ended before {what!r} was shown; there is\n{self.text}"

    def ended(self) -> int:
        """Wait for the end; the exit status, below zero for a signal."""
        deadline = time.monotonic() + PATIENCE
        while self.read():
            assert time.monotonic() < deadline, f"it has not ended; there is\n{self.text}"
        self.child.wait()
        return -self.child.signalstatus if self.child.signalstatus else int(self.child.exitstatus or 0)

    def kill(self, number: signal.Signals) -> None:
        os.kill(self.child.pid, number)

    def hang_up(self) -> None:
        """The terminal's window is closed."""
        os.close(self.child.child_fd)
        self.child.child_fd = self.child.ptyproc.fd = -1

    def read(self) -> bool:
        """Take what the program has printed. False: it has ended."""
        if self.child.child_fd < 0:
            return False
        try:
            data = self.child.read_nonblocking(65536, timeout=0.1)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        # pyte knows neither questions about modes nor the keyboard protocol of kitty, and would print them.
        self._stream.feed(re.sub(rb"\x1b\[[<>?][0-9;]*[$]?[pu]|\x1b\[>[0-9;]*[a-z]", b"", data))
        for _ in range(data.count(b"\x1b[6n")):
            self.child.send("\x1b[1;1R")
        return True


def _hears_signals() -> None:
    """Also where the tests were started with some ignored."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGTSTP):
        signal.signal(number, signal.SIG_DFL)


def llmasos_on(runtime: os.PathLike[str], *words: str, size: tuple[int, int] = (100, 30)) -> ScreenOf:
    """The command line on a terminal of its own."""
    environment = {
        "LLMASOS_RUNTIME": os.fspath(runtime), "XDG_STATE_HOME": os.fspath(runtime), "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    return ScreenOf([sys.executable, "-m", "llmasos", *words], environment, size)

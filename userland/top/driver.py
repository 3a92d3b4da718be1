"""textual's driver of the terminal, mended in four places: where it writes, how large the terminal is, what happens when
it is gone, and a CONT after a STOP."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from textual.app import App
from textual.drivers.linux_driver import LinuxDriver
from textual.message import Message


class TerminalGone(Message):
    """The window was closed, or the connection was lost: nobody sees the program any more."""


class Terminal(LinuxDriver):
    """Writes to stdout, as the shell and every other verb do; textual's own writes to stderr, which may be a file.

    textual's thread that writes dies of a terminal that is gone, and then whoever draws waits for it for ever. Here what
    is written to such a terminal is dropped, and the app is told.
    """

    def __init__(
        self, app: App[None], *, debug: bool = False, mouse: bool = True, size: tuple[int, int] | None = None
    ) -> None:
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        self._file: Any = _Output(sys.__stdout__ or io.StringIO(), lambda: app.post_message(TerminalGone()))

    def _get_terminal_size(self) -> tuple[int, int]:
        """Columns and lines as the terminal has them. textual believes COLUMNS and LINES first, which programs inherit
        from another terminal and which stay as they are when a window is resized: lines drawn below the last one scroll
        the picture away."""
        try:
            asked = os.get_terminal_size(self.fileno)
        except OSError:
            return super()._get_terminal_size()
        return (asked.columns, asked.lines) if asked.columns and asked.lines else super()._get_terminal_size()

    def resume_application_mode(self) -> None:
        """Take the terminal again. Who was stopped by STOP, not by Ctrl-Z, has it still when CONT comes: textual would
        start a second thread that reads, and wait for the first for ever at the end."""
        if self._key_thread is None or not self._key_thread.is_alive():
            super().resume_application_mode()

    def run_input_thread(self) -> None:
        try:
            super().run_input_thread()
        except OSError:  # EIO
            self._app.post_message(TerminalGone())


class _Output(io.TextIOBase):
    """A file that takes what is written also when it cannot be written. `lost` is called the first time."""

    def __init__(self, file: TextIO, lost: Callable[[], object]) -> None:
        self._inner, self._lost, self._broken = file, lost, False

    def write(self, text: str) -> int:
        return self._try(lambda: self._inner.write(text), len(text))

    def flush(self) -> None:
        self._try(lambda: self._inner.flush() or 0, 0)

    def fileno(self) -> int:
        return self._inner.fileno()

    def isatty(self) -> bool:
        return self._inner.isatty()

    def _try(self, act: Callable[[], int], otherwise: int) -> int:
        if not self._broken:
            try:
                return act()
            except (OSError, ValueError):  # a closed file is a ValueError
                self._broken = True
                self._lost()
        return otherwise

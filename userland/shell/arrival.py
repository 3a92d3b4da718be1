"""How far a model is that a command waits for: one line on the terminal, drawn over and gone when it is there.

The first time that a model is to run in int8 or int4 it is packed, which takes seconds for each gigabyte; it is kept, and
later loads are a read. A person who waits is told what for. Elsewhere than on a terminal nothing is printed: `dmesg` has
it.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

from modelfiles.called import called
from syscalls.errno import SyscallError
from syscalls.printable import printable
from syscalls.records import ModelInfo
from syscalls.table import Models
from userland.programs.figures import bar
from userland.shell.session import Session

QUIET_SECONDS = 1.0  # most models are there before
LOOK_SECONDS = 0.25
_BAR = 20
_PACKED = ("int8", "int4")


class Arrival:
    """`with Arrival(shell): ...` around a call that may have to load a model."""

    def __init__(self, shell: Session) -> None:
        self._shell = shell
        self._drawing = threading.Lock()  # guards what is drawn, and that nothing is after the end
        self._ended = threading.Event()
        self._drawn = False
        self._watch = threading.Thread(target=self._look, name="llmasos-arrival", daemon=True)

    def __enter__(self) -> Arrival:
        if self._shell.screen.terminal:
            self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._drawing:
            self._ended.set()
            self._draw("")

    def _look(self) -> None:
        quiet_until = time.monotonic() + QUIET_SECONDS
        while not self._ended.wait(LOOK_SECONDS):
            if time.monotonic() < quiet_until:
                continue
            try:
                rows = self._shell.glance(Models())
            except SyscallError:
                continue
            loading = [row for row in rows if row.state == "loading"]
            with self._drawing:
                if not self._ended.is_set():
                    self._draw(told(loading[-1]) if loading else "")

    def _draw(self, text: str) -> None:
        screen = self._shell.screen
        if text or self._drawn:
            screen.out.write("\r\x1b[K" + text[: screen.width - 1])
            screen.out.flush()
        self._drawn = bool(text)


def told(model: ModelInfo) -> str:
    """A line about a model on its way."""
    once = ", packed the first time and then kept" if model.dtype in _PACKED else ""
    name = printable(called(model.name), one_line=True)
    return f"{bar(model.progress, _BAR)} {model.progress:4.0%}  loading in {model.dtype}{once}: {name}"

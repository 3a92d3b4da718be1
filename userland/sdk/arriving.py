"""Progress of a model that a program waits for: a driver packs int8 and int4 the first time, which takes seconds for each
gigabyte, and downloads a model of the hub.

`LLM.from_pretrained` reports it as Python's libraries do: on the logger `llmasos` (level INFO), and in one line of stderr
where that is a terminal, which is redrawn and erased at the end, like transformers' bars. The shell has a line of its own
(userland/shell/arrival.py).
"""

from __future__ import annotations

import logging
import shutil
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from llmasos.modelfiles.called import called
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import ModelInfo
from llmasos.syscalls.table import Models
from llmasos.userland.programs.figures import bar
from llmasos.userland.sdk import options
from llmasos.userland.sdk.arguments import Model, model_name
from llmasos.userland.sdk.connection import Connection

QUIET_SECONDS = 1.0  # most models are there before
LOOK_SECONDS = 0.25
LOG_SECONDS = 5.0  # between two messages
GLANCE_SECONDS = 1.0
_BAR = 20
_PACKED = ("int8", "int4")
_log = logging.getLogger("llmasos")


class Arriving:
    """`with Arriving(look, show): ...` around a call that may load a model. A thread calls `look`, which returns the
    model that is loading, or None, and calls `show` with that. At the end `show` is called with None, and never again."""

    def __init__(self, look: Callable[[], ModelInfo | None], show: Callable[[ModelInfo | None], None]) -> None:
        self._look, self._show = look, show
        self._showing = threading.Lock()  # guards what is shown, and that nothing is after the end
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._run, name="llmasos-arrival", daemon=True)

    def __enter__(self) -> Arriving:
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._showing:
            self._ended.set()
            self._show(None)

    def _run(self) -> None:
        quiet_until = time.monotonic() + QUIET_SECONDS
        while not self._ended.wait(LOOK_SECONDS):
            if time.monotonic() < quiet_until:
                continue
            try:
                found = self._look()
            except SyscallError:
                continue
            with self._showing:
                if not self._ended.is_set():
                    self._show(found)


def told(model: ModelInfo) -> str:
    """A line about a loading model."""
    once = ", packed the first time and then kept" if model.dtype in _PACKED else ""
    dtype = f" in {model.dtype}" if model.dtype else ""
    return f"loading{dtype}{once}: {printable(called(model.name), one_line=True)}"


def drawn(model: ModelInfo) -> str:
    """The same with a bar."""
    return f"{bar(model.progress, _BAR)} {model.progress:4.0%}  {told(model)}"


class Teller:
    """Reports a model that is loading; None erases the line."""

    def __init__(self) -> None:
        self._next = 0.0
        self._drawn = False

    def __call__(self, model: ModelInfo | None) -> None:
        if model is not None and (now := time.monotonic()) >= self._next:
            self._next = now + LOG_SECONDS
            _log.info("%s, %.0f%%", told(model), 100 * model.progress)
        if not self._drawn and (model is None or not _is_terminal()):
            return
        text = drawn(model) if model is not None else ""
        sys.stderr.write("\r\x1b[K" + text[: shutil.get_terminal_size().columns - 1])
        sys.stderr.flush()
        self._drawn = bool(text)


def loading(rows: list[ModelInfo], wanted: set[str]) -> ModelInfo | None:
    """The loading model with one of these names or paths; None if there is none."""
    found = [row for row in rows if row.state == "loading" and not wanted.isdisjoint((row.name, row.path))]
    return found[-1] if found else None


def _is_terminal() -> bool:
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()


def arriving(system: Connection, model: Model) -> Arriving:
    """Report on the model that a caller names."""
    name = model_name(model)
    wanted = {name, system.run(options.located(name))}

    def look() -> ModelInfo | None:
        return loading(system.kernel(Models(), timeout=GLANCE_SECONDS), wanted)

    return Arriving(look, Teller())

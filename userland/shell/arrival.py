"""Progress of a model that a command waits for: one line on the terminal, redrawn, and erased when the model is there.

See userland/sdk/arriving.py. Where there is no terminal nothing is printed; `dmesg` has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llmasos.syscalls.records import ModelInfo
from llmasos.syscalls.table import Models
from llmasos.userland.sdk.arriving import Arriving, drawn
from llmasos.userland.shell.session import Session


@contextmanager
def arrival(shell: Session) -> Iterator[None]:
    """`with arrival(shell): ...` around a call that may load a model."""
    screen = shell.screen
    if not screen.terminal:
        yield
        return
    shown = False

    def look() -> ModelInfo | None:
        found = [row for row in shell.glance(Models()) if row.state == "loading"]
        return found[-1] if found else None

    def show(model: ModelInfo | None) -> None:
        nonlocal shown
        if model is None and not shown:
            return
        text = drawn(model) if model is not None else ""
        screen.out.write("\r\x1b[K" + text[: screen.width - 1])
        screen.out.flush()
        shown = bool(text)

    with Arriving(look, show):
        yield

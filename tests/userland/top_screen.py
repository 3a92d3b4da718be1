"""What tests of the full-screen `top` do and see."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from textual.pilot import Pilot

from llmasos.userland.top.app import TopApp
from tests.booted import PATIENCE


async def until(pilot: Pilot[None], holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}\n{shown(pilot.app)}"
        await pilot.pause(0.05)


def shown(app: Any) -> str:
    """What is on the screen."""
    return "\n".join("".join(part.text for part in strip).rstrip() for strip in app.screen._compositor.render_strips())


async def put_on(app: TopApp, pilot: Pilot[None], name: str) -> None:
    """Move the cursor to a process, by its name."""
    await until(pilot, lambda: any(line.name == name for line in app._table.lines), f"{name} is there")
    while app._table.at is None or app._table.at.name != name:  # the order changes meanwhile
        at = [line.name for line in app._table.lines].index(name)
        await pilot.press("down" if at > app._table.cursor else "up")
        await pilot.pause()

"""streams.py, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, TypeVar

from llmasos.syscalls.errno import SyscallError
from llmasos.userland.sdk import notebook

Y = TypeVar("Y")
_showing: set[asyncio.Task[None]] = set()  # asyncio holds tasks weakly


class Talker(Protocol):
    """A process, as far as it matters here."""

    pid: int
    system: Any


class AsyncStream(AsyncGenerator[Y, None]):
    """An asynchronous generator of pieces. `display` of it in a notebook shows its text while that comes, in a task of
    the notebook's own loop, and it is used up then."""

    def __init__(self, inner: AsyncGenerator[Y, None], holds: Talker | None = None) -> None:
        """`holds`: what must not be dropped before the stream is, its process."""
        self._inner, self._holds = inner, holds

    def __anext__(self) -> Any:
        return self._inner.__anext__()

    def asend(self, value: None) -> Any:
        return self._inner.asend(value)

    def athrow(self, kind: Any, value: Any = None, trace: TracebackType | None = None) -> Any:
        return self._inner.athrow(value if value is not None else kind)

    def aclose(self) -> Any:
        return self._inner.aclose()

    def __repr__(self) -> str:
        return (
            "<an answer, which begins when its first piece is asked for: `async for piece in it: print(piece, end='')`>"
        )

    def _ipython_display_(self) -> None:
        """On a terminal IPython's loop stands still between two lines, so that a task of its would show nothing."""
        try:
            loop = asyncio.get_running_loop() if notebook.in_notebook() else None
        except RuntimeError:  # another loop than asyncio's, or none
            loop = None
        if loop is None:
            print(repr(self))
            return
        task = loop.create_task(self._show(notebook.Growing()))
        _showing.add(task)
        task.add_done_callback(_showing.discard)

    async def _show(self, shown: notebook.Growing) -> None:
        with shown, self._heard_here():
            try:
                async for piece in self:
                    shown.add(piece)
            except SyscallError as error:  # nobody awaits this task
                shown.fail(error)

    @contextmanager
    def _heard_here(self) -> Iterator[None]:
        """Let the next question to the process wait for the end of this answer (turns.alone)."""
        process = self._holds
        if process is None:
            yield
            return
        heard = process.system.talking.shown
        heard.add(process.pid)
        try:
            yield
        finally:
            heard.discard(process.pid)

"""What a connection needs of asyncio (loops.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import anyio

from llmasos.syscalls.loops import Found, Undo

T = TypeVar("T")


class AsyncioPlace:
    """A future of the task that waits. A task that is cancelled hears of it a moment later, and until then an answer may
    come."""

    __slots__ = ("_found", "_future")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._future: asyncio.Future[None] = loop.create_future()
        self._found: Found | None = None

    async def wait(self, left: Callable[[Found | None], None]) -> Found:
        try:
            while self._found is None:
                await self._future
        except asyncio.CancelledError:
            left(self._found)
            raise
        return self._found

    def put(self, found: Found) -> None:
        self._found = found
        if not self._future.done():
            with suppress(RuntimeError):  # the loop has ended, and the task with it
                self._future.set_result(None)


class AsyncioLoop:
    """asyncio's loop, or uvloop's. asyncio holds tasks weakly; those in the background are held here until they end."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def place(self) -> AsyncioPlace:
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("another loop runs")
        return AsyncioPlace(self._loop)

    def watch(self, fd: int, look: Callable[[], None]) -> Undo:
        self._loop.add_reader(fd, look)

        def stop() -> None:
            if not self._loop.is_closed():
                self._loop.remove_reader(fd)

        return stop

    def when_writable(self, fd: int, act: Callable[[], None]) -> Undo:
        def stop() -> None:
            if not self._loop.is_closed():
                self._loop.remove_writer(fd)

        def once() -> None:
            stop()
            act()

        self._loop.add_writer(fd, once)
        return stop

    def later(self, seconds: float, act: Callable[[], None]) -> Undo:
        return self._loop.call_later(seconds, act).cancel

    def background(self, run: Callable[[], Awaitable[None]], name: str) -> Undo:
        async def task() -> None:
            await run()

        running = self._loop.create_task(task(), name=name)
        self._tasks.add(running)
        running.add_done_callback(self._tasks.discard)

        def stop() -> None:
            if not self._loop.is_closed():
                running.cancel()

        return stop

    async def undisturbed(self, run: Callable[[], Awaitable[T]]) -> T:
        """asyncio cancels once, and may do so again: by a task of its own, `run` hears of neither."""

        async def task() -> T:
            return await run()

        running = self._loop.create_task(task())
        cancelled: asyncio.CancelledError | None = None
        with anyio.CancelScope(shield=True):  # its scopes would cancel again and again
            while not running.done():
                try:
                    await asyncio.wait([running])
                except asyncio.CancelledError as error:
                    cancelled = error
        if cancelled is not None:
            if not running.cancelled():
                running.exception()  # it has been seen
            raise cancelled
        return running.result()

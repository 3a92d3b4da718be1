"""What a connection needs of trio (loops.py)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import outcome
import trio

from llmasos.syscalls.loops import Found, Undo

T = TypeVar("T")


class TrioPlace:
    """A task that sleeps, or will."""

    __slots__ = ("_found", "_sleeps", "_task")

    def __init__(self) -> None:
        self._task = trio.lowlevel.current_task()
        self._sleeps = False
        self._found: Found | None = None

    async def wait(self, left: Callable[[Found | None], None]) -> Found:
        if self._found is not None:  # the answer came while the call was sent
            await trio.lowlevel.cancel_shielded_checkpoint()
            return self._found

        def abort(_: Callable[[], None]) -> trio.lowlevel.Abort:
            self._sleeps = False
            left(None)
            return trio.lowlevel.Abort.SUCCEEDED

        self._sleeps = True
        found: Found = await trio.lowlevel.wait_task_rescheduled(abort)
        return found

    def put(self, found: Found) -> None:
        if self._sleeps:
            self._sleeps = False
            trio.lowlevel.reschedule(self._task, outcome.Value(found))
        elif self._found is None:
            self._found = found


class TrioLoop:
    """trio's loop. Its system tasks belong to no nursery, whose groups would wrap what the body of an `async with`
    raises."""

    def place(self) -> TrioPlace:
        return TrioPlace()

    def watch(self, fd: int, look: Callable[[], None]) -> Undo:
        scope = trio.CancelScope()

        async def run() -> None:
            with scope, suppress(trio.ClosedResourceError):
                while not scope.cancel_called:  # else the descriptor is closed, or another's
                    await trio.lowlevel.wait_readable(fd)
                    look()

        def stop() -> None:
            with suppress(RuntimeError):  # outside of trio: its tasks have gone
                scope.cancel()
                trio.lowlevel.notify_closing(fd)

        trio.lowlevel.spawn_system_task(run, name=f"watch {fd}")
        return stop

    def when_writable(self, fd: int, act: Callable[[], None]) -> Undo:
        async def run() -> None:
            with suppress(trio.ClosedResourceError):
                await trio.lowlevel.wait_writable(fd)
                act()

        return self.background(run, f"room at {fd}")

    def later(self, seconds: float, act: Callable[[], None]) -> Undo:
        async def run() -> None:
            await trio.sleep(seconds)
            act()

        return self.background(run, "later")

    def background(self, run: Callable[[], Awaitable[None]], name: str) -> Undo:
        scope = trio.CancelScope()

        async def scoped() -> None:
            with scope:
                await run()

        def stop() -> None:
            with suppress(RuntimeError):
                scope.cancel()

        trio.lowlevel.spawn_system_task(scoped, name=name)
        return stop

    async def undisturbed(self, run: Callable[[], Awaitable[T]]) -> T:
        with trio.CancelScope(shield=True):
            return await run()
        raise AssertionError("nobody cancels this scope")

"""The event loops that the asynchronous client runs under: trio's, and asyncio's (uvloop's too).

anyio carries whatever is a task's own: cancel scopes, sleep, threads, groups of tasks. What it does not have is here. A
connection belongs to no task: it lives between those that use it (`await System.connect()` in one cell of a notebook,
a call in the next), so nothing of it may hang on a task group. It watches its sockets by callbacks, which in asyncio
are nobody's task at all, and so cannot be left over when a loop ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import sniffio

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.wire import Reply

T = TypeVar("T")
Undo = Callable[[], None]
Found = Reply | SyscallError


class Place(Protocol):
    """Where one task waits for one answer."""

    async def wait(self, left: Callable[[Found | None], None]) -> Found:
        """The answer. If the task is cancelled meanwhile, calls `left`, which must not wait, with the answer if that
        had just come."""

    def put(self, found: Found) -> None:
        """Wake the task; before it waits or while it does."""


class Loop(Protocol):
    """An event loop that runs. Everything but `Place.wait` is plain and returns at once."""

    def place(self) -> Place:
        """A place for the task that calls. Raises RuntimeError in another loop, or outside of any."""

    def watch(self, fd: int, look: Callable[[], None]) -> Undo:
        """Call `look` while descriptor `fd` is readable, until the function that is returned is called; that comes before
        the descriptor is closed."""

    def when_writable(self, fd: int, act: Callable[[], None]) -> Undo:
        """Call `act` once, when descriptor `fd` is writable, unless the function that is returned is called before; that
        comes before the descriptor is closed."""

    def later(self, seconds: float, act: Callable[[], None]) -> Undo:
        """Call `act` once, unless the function that is returned is called before."""

    def background(self, run: Callable[[], Awaitable[None]], name: str) -> Undo:
        """A task of no group; the function that is returned cancels it. `run` raises nothing."""

    async def undisturbed(self, run: Callable[[], Awaitable[T]]) -> T:
        """Await `run`, whatever is cancelled meanwhile; what was cancelled is so afterwards."""


def running() -> Loop:
    """The loop that runs here. Raises SyscallError ENOTSUP if there is none."""
    try:
        library = sniffio.current_async_library()
    except sniffio.AsyncLibraryNotFoundError:
        library = "none"
    if library == "trio":
        from llmasos.syscalls.loop_trio import TrioLoop

        return TrioLoop()
    if library == "asyncio":
        from llmasos.syscalls.loop_asyncio import AsyncioLoop

        return AsyncioLoop()
    raise SyscallError(
        Errno.ENOTSUP,
        f"the asynchronous face runs under trio and asyncio, found {library}; "
        "`trio.run(main)` or `asyncio.run(main())`, or use the blocking face (`import llmasos`)",
    )


def elsewhere() -> SyscallError:
    return SyscallError(
        Errno.EINVAL,
        "this connection was made in another event loop, or that loop has ended; connect in each loop that uses it",
    )


async def undisturbed(run: Callable[[], Awaitable[T]]) -> T:
    """Await `run`, whatever is cancelled meanwhile."""
    return await running().undisturbed(run)

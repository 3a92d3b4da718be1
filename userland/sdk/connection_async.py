"""How a program of the SDK under an event loop connects: connection.py, awaited."""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio.to_thread
import sniffio

from llmasos.syscalls import calls, client, loops, runtime
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.loops import undisturbed
from llmasos.syscalls.reconnect import RECONNECT_SECONDS
from llmasos.syscalls.table import Call
from llmasos.userland.sdk import script, script_async
from llmasos.userland.sdk.connection import Where, closed, finding, kernel_there, shown
from llmasos.userland.sdk.public import public
from llmasos.userland.sdk.turns import Talking

R = TypeVar("R")
T = TypeVar("T")


class AsyncConnection:
    """A connection for programs under trio or asyncio: `async with System.connect() as system`, or `await
    System.connect()` and `close`."""

    kernel: client.Client
    """What makes its system calls."""

    @public
    def __init__(
        self,
        where: Where,
        boot: bool,
        flags: Sequence[str],
        name: str,
        timeout: float,
        reconnect: float,
        key: str | os.PathLike[str] | None = None,
    ) -> None:
        self.talking = Talking()
        self._where, self._boot, self._flags, self._name = where, boot, flags, name
        self._timeout, self._reconnect, self._key = timeout, reconnect, key
        self._local: ExitStack | None = None  # a private kernel and its directory, once connected
        self._cleanup = AsyncExitStack()

    @classmethod
    @public
    def connect(
        cls,
        where: Where = None,
        *,
        boot: bool = False,
        flags: Sequence[str] = (),
        name: str = "",
        timeout: float = calls.CONNECT_SECONDS,
        reconnect: float = RECONNECT_SECONDS,
        key: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Connect to the kernel of a runtime directory (None: `$LLMASOS_RUNTIME`, else the user's usual one), or of
        `tcp://HOST:PORT` on another machine, with the key in the file `key` (None: the user's own, of `llmasos key new`).

        With `boot`, boots a private kernel where none runs, with the `flags` of `llmasos boot`; that kernel ends with
        this system, or with this OS process, however it ends. `name` is the program's name in the process table. A kernel
        answers within `timeout` seconds, or ETIME is raised. When a kernel with a journal dies, waits `reconnect` seconds
        for the next one; calls and streams then go on where they were. Raises ECONNREFUSED where no kernel runs, EIO if a
        private one does not boot.

        Example:
            async with llmasos.aio.System.connect(place) as here:
                print(len(await here.ps()), "processes")
        """
        seconds = script.seconds(timeout), script.seconds(reconnect, "reconnect")
        return cls(where, boot, flags, name, *seconds, key)

    def __repr__(self) -> str:
        return shown(self, self.kernel if self._local is not None else None)

    def __del__(self) -> None:
        if getattr(self, "_local", None) is not None and not self.kernel.closed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=1)
            if client.in_its_loop(self.kernel):
                self.kernel.close()

    def __await__(self) -> Generator[Any, Any, Self]:
        """Connect without an `async with`; `close` disconnects."""
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        if self._local is not None:
            self.kernel.origin.check()
            if self.kernel.closed:
                raise closed(self.kernel.place)
            return self
        loops.running()  # refuses other kinds of loops before a kernel is booted
        async with AsyncExitStack() as stack:
            local = ExitStack()
            stack.push_async_callback(in_a_thread, local.close)
            place = self._where
            if not runtime.is_remote(place):
                place = await in_a_thread(kernel_there, local, self._where, self._boot, self._flags)
            self.kernel = await stack.enter_async_context(
                client.connect(place, name=self._name, timeout=self._timeout, reconnect=self._reconnect, key=self._key)
            )
            finding(self.kernel)
            self._local, self._cleanup = local, stack.pop_all()
            # As in connection.py: a forgotten private kernel ends in order.
            atexit.register(local.close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End this program and all it spawned but the detached; a private kernel halts. A second call does nothing.

        Example:
            here = await llmasos.aio.System.connect(place)
            await here.close()
        """
        if self._local is not None:
            atexit.unregister(self._local.close)
        await undisturbed(self._cleanup.aclose)

    async def __call__(self, call: Call[R], *, timeout: float | None = None) -> R:
        """Make a system call: `call` is a record of `llmasos.syscalls.table`, and what it returns is in docs/syscalls.md.
        Raises SyscallError; ETIME after `timeout` seconds, when it is taken back.

        Example:
            from llmasos.syscalls.table import Getinfo
            row = await system(Getinfo(agent.pid), timeout=5)
        """
        try:
            return await self.kernel(call, timeout=None if timeout is None else script.seconds(timeout))
        except calls.Overdue as error:
            raise SyscallError(error.errno, error.reason) from None

    @public
    async def run(self, what: script.Script[T], timeout: float | None = None) -> T:
        """Run a script, a generator that yields system calls and is sent their results, to what it returns. After
        `timeout` seconds the script cleans up, and ETIME is raised.

        Example:
            from llmasos.userland.sdk import actions
            ids = await system.run(actions.log_of(agent.pid), timeout=5)
        """
        return await script_async.run(self.kernel, what, timeout)


def from_threads() -> Callable[[Callable[[], object]], None]:
    """What has the event loop of this task do something, for other threads. Nothing happens where the loop has ended."""
    if sniffio.current_async_library() == "trio":
        import trio

        soon: Callable[..., object] = trio.lowlevel.current_trio_token().run_sync_soon
    else:
        import asyncio

        soon = asyncio.get_running_loop().call_soon_threadsafe

    def act(what: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # trio.RunFinishedError is one
            soon(what)

    return act


async def in_a_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Run `work` in a thread, and return when it is done, whatever is cancelled: it may be booting a kernel."""
    return await undisturbed(partial(anyio.to_thread.run_sync, work, *arguments))

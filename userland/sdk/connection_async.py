"""How a trio program of the SDK connects: connection.py, awaited."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Generator, Sequence
from contextlib import AsyncExitStack, ExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

import trio

from llmasos.syscalls import client
from llmasos.syscalls.reconnect import RECONNECT_SECONDS
from llmasos.syscalls.table import Call
from llmasos.userland.sdk import script, script_async
from llmasos.userland.sdk.connection import Where, kernel_there

R = TypeVar("R")
T = TypeVar("T")


class AsyncConnection:
    """A connection for trio programs: `async with System.connect() as system`, or `await System.connect()` and
    `close`."""

    kernel: client.Client
    """What makes its system calls."""

    def __init__(self, where: Where, boot: bool, flags: Sequence[str], name: str, reconnect: float) -> None:
        self.talking: dict[int, Callable[[], bool]] = {}  # processes whose answers this program hears; see turns.alone
        self._where, self._boot, self._flags, self._name = where, boot, flags, name
        self._reconnect = reconnect
        self._local: ExitStack | None = None  # a private kernel and its directory, once connected
        self._cleanup = AsyncExitStack()

    @classmethod
    def connect(
        cls,
        where: Where = None,
        *,
        boot: bool = False,
        flags: Sequence[str] = (),
        name: str = "",
        reconnect: float = RECONNECT_SECONDS,
    ) -> Self:
        """Connect to the kernel of a runtime directory (None: `$LLMASOS_RUNTIME`, else the user's usual one).

        With `boot`, boots a private kernel where none runs, with the `flags` of `llmasos boot`; that kernel ends with
        this system, or with this OS process, however it ends. `name` is the program's name in the process table. When a
        kernel with a journal dies, waits `reconnect` seconds for the next one; calls and streams then go on where they
        were. Raises ECONNREFUSED where no kernel runs, EIO if a private one does not boot.
        """
        return cls(where, boot, flags, name, reconnect)

    def __await__(self) -> Generator[Any, Any, Self]:
        """Connect without an `async with`; `close` disconnects."""
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        if self._local is not None:
            return self
        async with AsyncExitStack() as stack:
            local = ExitStack()
            stack.push_async_callback(trio.to_thread.run_sync, local.close)
            place = await trio.to_thread.run_sync(kernel_there, local, self._where, self._boot, self._flags)
            self.kernel = await stack.enter_async_context(
                client.connect(place, name=self._name, reconnect=self._reconnect)
            )
            self._local, self._cleanup = local, stack.pop_all()
            # As in connection.py: a forgotten private kernel ends in order.
            atexit.register(local.close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End this program and all it spawned but the detached; a private kernel halts. A second call does nothing."""
        if self._local is not None:
            atexit.unregister(self._local.close)
        with trio.CancelScope(shield=True):
            await self._cleanup.aclose()

    async def __call__(self, call: Call[R]) -> R:
        """Make a system call: `call` is a record of `llmasos.syscalls.table`, and what it returns is in docs/syscalls.md.
        Raises SyscallError."""
        return await self.kernel(call)

    async def run(self, what: script.Script[T]) -> T:
        """Run a script, a generator that yields system calls and is sent their results, to what it returns."""
        return await script_async.run(self.kernel, what)

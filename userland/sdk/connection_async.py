"""How a trio program of the SDK is connected: connection.py, awaited."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from types import TracebackType
from typing import Self, TypeVar

import trio

from llmasos.syscalls import client
from llmasos.syscalls.reconnect import RECONNECT_SECONDS
from llmasos.syscalls.table import Call
from llmasos.userland.sdk import script_async
from llmasos.userland.sdk.connection import Where, kernel_there
from llmasos.userland.sdk.script import Script

R = TypeVar("R")
T = TypeVar("T")


class AsyncConnection:
    """A connection for trio programs; made on entering its `async with`."""

    kernel: client.Client

    def __init__(self, where: Where, boot: bool, flags: Sequence[str], name: str, reconnect: float) -> None:
        self._where, self._boot, self._flags, self._name = where, boot, flags, name
        self._reconnect = reconnect
        self._cleanup = AsyncExitStack()
        self.talking: dict[int, Callable[[], bool]] = {}  # processes in a turn; see turns.alone

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
        """What entering connects to; parameters and errors are those of `Connection.connect`."""
        return cls(where, boot, flags, name, reconnect)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            local = ExitStack()
            stack.push_async_callback(trio.to_thread.run_sync, local.close)
            place = await trio.to_thread.run_sync(kernel_there, local, self._where, self._boot, self._flags)
            self.kernel = await stack.enter_async_context(
                client.connect(place, name=self._name, reconnect=self._reconnect)
            )
            self._cleanup = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with trio.CancelScope(shield=True):
            await self._cleanup.aclose()

    async def __call__(self, call: Call[R]) -> R:
        """Make a system call."""
        return await self.kernel(call)

    async def run(self, what: Script[T]) -> T:
        """Run a script of system calls."""
        return await script_async.run(self.kernel, what)

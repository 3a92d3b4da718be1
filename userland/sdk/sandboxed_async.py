"""The asynchronous face of the SDK: Sandboxed, a program that runs confined."""

from __future__ import annotations

from types import TracebackType
from typing import IO, Any, Self

from llmasos.syscalls.errno import Errno
from llmasos.userland.programs.bubblewrap import Child
from llmasos.userland.sdk.connection_async import in_a_thread
from llmasos.userland.sdk.public import public
from llmasos.userland.sdk.script import seconds


class Sandboxed:
    """A program in a sandbox (`System.sandbox`), with whatever it has started there. `with` ends it, and closes its
    pipes."""

    sandbox: int
    """The number by which further grants can be made for it (the field `sandbox` of the call `grant`)."""

    def __init__(self, child: Child, sandbox: int) -> None:
        self._child, self.sandbox = child, sandbox

    def __repr__(self) -> str:
        status = self._child.status
        return f"<Sandboxed {self.pid}, {'running' if status is None else f'ended with {status}'}>"

    @property
    def pid(self) -> int:
        """The OS pid of what holds it."""
        return self._child.pid

    @property
    def status(self) -> int | None:
        """Its exit status, 128 + signal where one ended it; None while it runs."""
        return self._child.status

    @property
    def stdin(self) -> IO[Any] | None:
        """Its input, where that is a pipe."""
        return self._child.process.stdin

    @property
    def stdout(self) -> IO[Any] | None:
        """Its output, likewise."""
        return self._child.process.stdout

    @property
    def stderr(self) -> IO[Any] | None:
        """Its errors, likewise."""
        return self._child.process.stderr

    @public
    async def wait(self, timeout: float | None = None) -> int:
        """Wait until all of it has ended, and return its exit status. Raises ETIME after `timeout` seconds; it goes on.

        Example:
            status = await tool.wait(timeout=60)
        """
        bound = None if timeout is None else seconds(timeout)
        if not await in_a_thread(self._child.wait, bound):
            raise Errno.ETIME(f"the program in the sandbox has not ended within {bound:g} s")
        return self._child.status or 0

    @public
    async def kill(self) -> None:
        """End all of it at once. Harmless if it has ended.

        Example:
            await tool.kill()
        """
        self._child.kill()
        await in_a_thread(self._child.wait)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()
        self._child.close()

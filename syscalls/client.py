"""The asynchronous client: system calls from a trio program.

    async with connect() as kernel:
        pid = await kernel(Spawn(model="tiny"))

This is the libc of LLMasOS: it turns records into frames, finds the caller of each reply, and tells a dead
kernel from a slow one. Many calls may be in flight at once. Cancelling a call takes it back in the kernel too
(a late answer is dropped); a kernel that goes away fails every waiting call with EPIPE. `blocking` offers the
same to programs without trio.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import outcome
import trio

from syscalls import calls, runtime, transport, wire
from syscalls.errno import Errno, SyscallError
from syscalls.records import BootInfo, Right
from syscalls.table import Attach, Call

R = TypeVar("R")


def connect(
    where: str | os.PathLike[str] | None = None,
    *,
    name: str = "",
    rights: Right = Right.ALL,
    timeout: float = calls.CONNECT_SECONDS,
) -> Client:
    """A connection to the kernel of a runtime directory (or `ipc://` endpoint; None: the default), for `async
    with`.

    Entering it attaches the program under `name` with `rights`. Raises SyscallError: ECONNREFUSED at once
    where no kernel runs, ETIME if one runs but does not answer within `timeout` seconds.
    """
    return Client(runtime.locate(where), name, rights, timeout)


class Client:
    """An attached program: calling it with a record of `syscalls.table` makes that system call.

    `boot` is what Attach answered, `pid` the program's own. Once the kernel has gone every call raises EPIPE.
    """

    boot: BootInfo
    pid: int

    def __init__(self, directory: Path, name: str, rights: Right, timeout: float) -> None:
        self.runtime = directory
        self._attach = Attach(name or calls.default_name(), int(rights))
        self._timeout = timeout
        self._calls: calls.Calls[trio.lowlevel.Task] = calls.Calls()
        self._gone: SyscallError | None = None
        self._scope = trio.CancelScope()

    async def __aenter__(self) -> Client:
        deadline = trio.current_time() + self._timeout
        while not calls.kernel_listens(self.runtime):
            if trio.current_time() >= deadline:
                raise calls.silent(self.runtime, self._timeout)
            await trio.sleep(calls.POLL_SECONDS)
        self._socket = transport.dealer()
        self._monitor = self._socket.monitor()
        self._socket.connect(runtime.endpoint(self.runtime))
        # Not in a nursery: its groups would wrap whatever the body of the `async with` raises.
        trio.lowlevel.spawn_system_task(self._run, name=f"connection to {self.runtime}")
        try:
            with trio.move_on_at(deadline):
                self.boot = await self(self._attach)
                self.pid = self.boot.pid
                return self
            raise calls.silent(self.runtime, self._timeout)
        except BaseException:
            self.close()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave: the kernel ends this program's processes (but the detached). Calls in flight fail with
        EPIPE."""
        self._fail(SyscallError(Errno.EPIPE, "this program has closed its connection"))
        self._scope.cancel()
        self._socket.close()

    async def __call__(self, call: Call[R], *, timeout: float | None = None) -> R:
        """Make a system call and return its result.

        Raises SyscallError with the kernel's errno and reason; ETIME if it takes longer than `timeout`
        seconds (the call is then taken back), EPIPE if the kernel goes away, EMSGSIZE for a request that is
        too long.
        """
        if timeout is None:
            return wire.result(await self._exchange(call), call)
        with trio.move_on_after(timeout):
            return wire.result(await self._exchange(call), call)
        raise calls.overdue(call, timeout)

    async def _exchange(self, call: Call[Any]) -> wire.Reply:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._gone is not None:
            raise calls.unanswered(call, self._gone)
        seq, frame = self._calls.begin(call, trio.lowlevel.current_task())
        if not self._socket.send(frame):
            self._calls.take_back(seq)
            raise calls.crowded()

        def take_back(_: Callable[[], None]) -> trio.lowlevel.Abort:
            if (frame := self._calls.take_back(seq)) is not None:
                self._socket.send(frame)
            return trio.lowlevel.Abort.SUCCEEDED

        reply: wire.Reply = await trio.lowlevel.wait_task_rescheduled(take_back)
        return reply

    async def _run(self) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._socket.run, self._deliver)
                nursery.start_soon(self._monitor.run, self._watch)

    def _deliver(self, message: transport.Message) -> None:
        try:
            self._calls.settle(message.body, _wake)
        except SyscallError as error:
            self._fail(error)

    def _watch(self) -> None:
        if any(not link.up for link in self._monitor.drain()):
            self._socket.drain()  # what it still answered
            self._fail(SyscallError(Errno.EPIPE, f"the kernel of {self.runtime} has gone"))

    def _fail(self, why: SyscallError) -> None:
        """Nothing more will come: every waiting call raises this, and every later one."""
        if self._gone is None:
            self._gone = why
            for task, call in self._calls.abandon():
                trio.lowlevel.reschedule(task, outcome.Error(calls.unanswered(call, why)))


def _wake(task: trio.lowlevel.Task, reply: wire.Reply) -> None:
    trio.lowlevel.reschedule(task, outcome.Value(reply))

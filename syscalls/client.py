"""The asynchronous client: system calls from a trio program.

    async with connect() as kernel:
        pid = await kernel(Spawn(model="tiny"))

This is the libc of LLMasOS: it turns records into frames, finds the caller of each reply, and tells a dead kernel from a
slow one. Many calls may be in flight at once. Cancelling a call takes it back in the kernel too, and a late answer is
dropped. A kernel that goes away fails every waiting call with EPIPE, unless it keeps a journal: then calls wait for the
next kernel, which answers them as if nothing had happened (reconnect.py). blocking.py offers the same to programs without
trio.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec
import outcome
import trio

from llmasos.syscalls import calls, runtime, transport, wire, zeromq
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.reconnect import RECONNECT_SECONDS, Notify, Search
from llmasos.syscalls.records import BootInfo, Right
from llmasos.syscalls.table import Attach, Call

R = TypeVar("R")


def connect(
    where: str | os.PathLike[str] | None = None,
    *,
    name: str = "",
    rights: Right = Right.ALL,
    timeout: float = calls.CONNECT_SECONDS,
    reconnect: float = RECONNECT_SECONDS,
) -> Client:
    """A connection to the kernel of a runtime directory (or `ipc://` endpoint; None: the default), for `async with`.

    Entering it attaches the program under `name` with `rights`. Raises SyscallError: ECONNREFUSED at once if no kernel
    runs, ETIME if one runs and does not answer within `timeout` seconds. When a kernel with a journal dies, waits
    `reconnect` seconds for the next one (0: not at all).
    """
    return Client(runtime.locate(where), name, rights, timeout, reconnect)


class Client:
    """An attached program: calling it with a record of `llmasos.syscalls.table` makes that system call.

    `boot` is the result of Attach, `pid` the program's own, `reconnect` the seconds to wait for a next kernel. When the
    kernel has gone for good, every call raises EPIPE. `notify` may be set; see reconnect.Notify. It is called in the
    event loop, and must not wait.
    """

    boot: BootInfo
    pid: int

    def __init__(self, directory: Path, name: str, rights: Right, timeout: float, reconnect: float) -> None:
        self.runtime = directory
        self.notify: Notify | None = None
        self._attach = Attach(name or calls.default_name(), int(rights))
        self._timeout, self.reconnect = timeout, reconnect
        self._calls: calls.Calls[trio.lowlevel.Task] = calls.Calls()
        self._gone: SyscallError | None = None
        self._scope = trio.CancelScope()
        self._up = False  # calls may be sent; if not, they wait for the next kernel

    async def __aenter__(self) -> Client:
        deadline = trio.current_time() + self._timeout
        while not calls.kernel_listens(self.runtime):
            if trio.current_time() >= deadline:
                raise calls.silent(self.runtime, self._timeout)
            await trio.sleep(calls.POLL_SECONDS)
        self._link, self._up = _Link(self.runtime), True
        # Not in a nursery: its groups would wrap whatever the body of the `async with` raises.
        trio.lowlevel.spawn_system_task(self._run, name=f"connection to {self.runtime}")
        try:
            with trio.move_on_at(deadline):
                boot = await self(self._attach)
                self.pid = boot.pid
                self._attached(boot)
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
        """Leave: the kernel ends this program's processes but the detached. Calls in flight fail with EPIPE."""
        self._fail(SyscallError(Errno.EPIPE, "this program has closed its connection"))
        self._scope.cancel()
        self._link.close()

    async def __call__(self, call: Call[R], *, timeout: float | None = None) -> R:
        """Make a system call and return its result.

        Raises SyscallError with the kernel's errno and reason. ETIME: the call took longer than `timeout` seconds, and
        was taken back. EPIPE: the kernel has gone for good. EMSGSIZE: the request is too long.
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
        if self._up:
            self._send(self._link, seq, frame)
        return await self._answer(seq)

    def _send(self, link: _Link, seq: int, frame: bytes) -> None:
        if not link.socket.send(frame):
            self._calls.take_back(seq)
            raise calls.crowded()
        self._calls.sent = max(self._calls.sent, seq)

    async def _answer(self, seq: int) -> wire.Reply:
        def take_back(_: Callable[[], None]) -> trio.lowlevel.Abort:
            if (frame := self._calls.take_back(seq)) is not None and self._up:
                self._link.socket.send(frame)
            return trio.lowlevel.Abort.SUCCEEDED

        reply: wire.Reply = await trio.lowlevel.wait_task_rescheduled(take_back)
        return reply

    async def _run(self) -> None:
        with self._scope:
            try:
                await self._link.run(self._deliver)
                while self._gone is None:
                    await self._go_on()
            except SyscallError as error:
                self._fail(error)

    def _deliver(self, message: transport.Message) -> None:
        try:
            self._calls.answer(message.body, _wake)
        except SyscallError as error:
            self._fail(error)

    # --- when the kernel has died ---

    async def _go_on(self) -> None:
        """The connection is lost: find the next kernel, and return when the connection to that one is lost too. Raises
        EPIPE if there is none."""
        self._up = False
        self._link.close()
        if not self._may_reconnect():
            raise SyscallError(Errno.EPIPE, f"the kernel of {self.runtime} has gone")
        search = Search(self.runtime, self.reconnect, trio.current_time(), self.notify)
        while not self._up and self._gone is None:  # a kernel may die before it has taken this program up
            while not search.found(trio.current_time()):  # noqa: ASYNC110 - there is no event to wait for
                await trio.sleep(calls.POLL_SECONDS)
            link = _Link(self.runtime)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._take_up, link, search)
                    await link.run(self._deliver)
                    nursery.cancel_scope.cancel()
            finally:
                link.close()

    def _may_reconnect(self) -> bool:
        return self.reconnect > 0 and self._attach.ticket != b""

    async def _take_up(self, link: _Link, search: Search) -> None:
        """Show the ticket, send the unanswered calls again, and open the connection to new ones."""
        try:
            seq, frame = self._calls.begin(self._attach, trio.lowlevel.current_task())
            link.socket.send(frame)
            with trio.move_on_at(search.until) as patience:
                boot = search.taken_up(await self._answer(seq), self._attach, self.pid)
                if boot is None:
                    await trio.sleep(calls.POLL_SECONDS)
                    link.close()  # which ends its `run`, and so this
                    await trio.sleep_forever()
            if patience.cancelled_caught:
                raise search.in_vain()
            assert boot is not None
            self._attached(boot)
            for frame in self._calls.left():  # first: a later call may be about the same process
                link.socket.send(frame)
            after, more = 0, True
            while more:
                more = False
                for seq, frame in self._calls.unanswered(after):
                    while link.socket.backlog:  # noqa: ASYNC110 - more would be dropped
                        await trio.sleep(transport.RETRY_SECONDS)
                    link.socket.send(frame)
                    self._calls.sent = max(self._calls.sent, seq)
                    after, more = seq, True
            # No await between finding nothing more to send and this line: from here on, a caller sends its new call
            # itself.
            self._link, self._up = link, True
            for frame in self._calls.left():  # and what callers took back meanwhile
                link.socket.send(frame)
            search.over(self.boot)
        except SyscallError as error:
            self._fail(error)
            self._scope.cancel()

    def _attached(self, boot: BootInfo) -> None:
        self.boot = boot
        self._attach = msgspec.structs.replace(self._attach, ticket=boot.ticket)

    def _fail(self, why: SyscallError) -> None:
        """No answer will arrive any more: every waiting call raises this, and every later one."""
        if self._gone is None:
            self._gone = why
            for task, call in self._calls.abandon():
                trio.lowlevel.reschedule(task, outcome.Error(calls.unanswered(call, why)))


class _Link:
    """One connection to a kernel, from connecting until it is lost."""

    def __init__(self, directory: Path) -> None:
        self.socket = transport.dealer()
        self._monitor = self.socket.monitor()
        self.socket.connect(runtime.endpoint(directory))

    async def run(self, deliver: Callable[[transport.Message], None]) -> None:
        """Deliver what arrives, until the connection is closed, or lost and all of it delivered."""
        async with trio.open_nursery() as nursery:

            def look() -> None:
                if any(not link.up for link in self._monitor.drain()):
                    nursery.start_soon(end)

            async def end() -> None:
                await trio.sleep(zeromq.LAST_WORDS)
                self.socket.drain()
                nursery.cancel_scope.cancel()

            await nursery.start(self.socket.run, deliver)
            nursery.start_soon(self._monitor.run, look)

    def close(self) -> None:
        self.socket.close()


def _wake(task: trio.lowlevel.Task, reply: wire.Reply) -> None:
    trio.lowlevel.reschedule(task, outcome.Value(reply))

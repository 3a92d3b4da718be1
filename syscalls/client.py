"""The asynchronous client: system calls from a program under trio or asyncio (loops.py).

    async with connect() as kernel:
        pid = await kernel(Spawn(model="tiny"))

This is the libc of LLMasOS: it turns records into frames, finds the caller of each reply, and tells a dead kernel from a
slow one. Many calls may be in flight at once. Cancelling a call takes it back in the kernel too, and a late answer is
dropped. A kernel that goes away fails every waiting call with EPIPE, unless it keeps a journal: then calls wait for the
next kernel, which answers them as if nothing had happened (reconnect.py). blocking.py offers the same to programs without
an event loop.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec

from llmasos.syscalls import calls, loops, scarce, wire
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.forked import Origin
from llmasos.syscalls.line import FINISH_SECONDS
from llmasos.syscalls.link import RETRY_SECONDS, Link
from llmasos.syscalls.loops import Found, Place, Undo
from llmasos.syscalls.reconnect import RECONNECT_SECONDS, Notify, Search
from llmasos.syscalls.records import BootInfo, Right
from llmasos.syscalls.remote import Place as Address
from llmasos.syscalls.remote import Remote, directory, located
from llmasos.syscalls.showing import CALLS, TRIES, Attempt, Showing, showing_to
from llmasos.syscalls.table import Attach, Call, Leave

R = TypeVar("R")


def connect(
    where: str | os.PathLike[str] | None = None,
    *,
    name: str = "",
    rights: Right = Right.ALL,
    timeout: float = calls.CONNECT_SECONDS,
    reconnect: float = RECONNECT_SECONDS,
    tenant: str = "",
    ticket: bytes = b"",
    key: str | os.PathLike[str] | None = None,
) -> Client:
    """A connection to the kernel of a runtime directory (or `ipc://` endpoint; None: the default), for `async with`, or
    of `tcp://HOST:PORT`, where this program shows the key in the file `key` (None: the user's own; see `llmasos key`).

    Entering it attaches the program under `name` with `rights`, for a `tenant` of its user if one is named. Raises
    SyscallError: ECONNREFUSED at once if no kernel runs, ETIME if one runs and does not answer within `timeout` seconds.
    When a kernel with a journal dies, waits `reconnect` seconds for the next one (0: not at all). With the `ticket` of a
    connection that ended with ESTALE this is its program, and goes on with what the journal has. EAGAIN: the operating
    system has not the descriptors that a connection takes.
    """
    with scarce.told():
        return Client(located(where, key), name, rights, timeout, reconnect, tenant, ticket)


class Client:
    """An attached program: calling it with a record of `llmasos.syscalls.table` makes that system call.

    `boot` is the result of Attach, `pid` the program's own, `reconnect` the seconds to wait for a next kernel. When the
    kernel has gone for good, every call raises EPIPE. `showing` shows files to a kernel that opens none for its callers
    (None: this one opens them). `notify` may be set; see reconnect.Notify. It is called in the
    event loop, and must not wait.
    """

    boot: BootInfo
    pid: int

    def __init__(
        self,
        place: Address,
        name: str,
        rights: Right,
        timeout: float,
        reconnect: float,
        tenant: str = "",
        ticket: bytes = b"",
    ) -> None:
        self.place = place
        self.showing: Showing | None = None
        self.notify: Notify | None = None
        self._attach = Attach(name or calls.default_name(), int(rights), ticket, tenant, seen=0)
        self._timeout, self.reconnect = timeout, reconnect
        self._calls: calls.Calls[Place] = calls.Calls()
        self._gone: SyscallError | None = None
        self._closed = False
        self._leaves = False  # it has told the kernel so
        self._up = False  # calls may be sent; if not, they wait for the next kernel
        self._impatient: set[Place] = set()  # of calls that do not
        self._search: Undo | None = None

    async def __aenter__(self) -> Client:
        self.origin, self._loop = Origin(), loops.running()
        with scarce.told(), anyio.move_on_after(self._timeout):
            while not await self._enter():  # noqa: ASYNC110 - a refusal is followed by no event
                await anyio.sleep(calls.retry_pause())
            return self
        with scarce.told():
            raise calls.silent(self.place, self._timeout)

    async def _enter(self) -> bool:
        """Connect and attach. False: the connection was refused or lost, as happens when very many programs connect at
        once."""
        while not calls.kernel_listens(self.place):  # noqa: ASYNC110 - nor is a boot
            await anyio.sleep(calls.POLL_SECONDS)
        self._link, self._up = Link(self._loop, calls.endpoint(self.place), self._deliver, self._lost), True
        try:
            boot = await self(self._attach)
        except SyscallError as error:
            self.close()
            if error.errno is not Errno.EPIPE:
                raise
            if self._link.refused is not None:
                raise self._link.refused from None
            self._gone, self._closed = None, False
            return False
        except BaseException:
            self.close()
            raise
        self.pid = boot.pid
        self.showing = showing_to(self.place, self._attach.tenant)
        self._attached(boot)
        return True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._must_leave():
                self._leaves = True
                with anyio.move_on_after(FINISH_SECONDS, shield=True), suppress(SyscallError):
                    await self(Leave(), patient=False)
        finally:
            self.close()

    def _must_leave(self) -> bool:
        """Whether the kernel has to be told that this program leaves."""
        if not self.origin.here or not self._up or self._leaves or self._closed or self._gone is not None:
            return False
        return self._calls.must_leave(self.place, getattr(self, "boot", None))

    def close(self) -> None:
        """Leave: the kernel ends this program's processes but the detached. Calls in flight fail with EPIPE. In a fork of
        the OS process does nothing: the connection is the parent's."""
        if not self.origin.here:
            return
        if self._must_leave():
            self._link.send(self._calls.leave()[1])
        self._closed = True
        self._fail(SyscallError(Errno.EPIPE, "this program has closed its connection"))
        if self._search is not None:
            self._search()
        self._link.close()

    async def __call__(self, call: Call[R], *, timeout: float | None = None, patient: bool = True) -> R:
        """Make a system call and return its result.

        Raises SyscallError with the kernel's errno and reason. ETIME: the call took longer than `timeout` seconds, and
        was taken back. EPIPE: the kernel has gone for good; a call that is not `patient` does not wait for the next
        kernel either. EMSGSIZE: the request is too long. EINVAL: the connection was made before a fork.
        """
        self.origin.check()  # first: asyncio knows no loop in a fork
        if self.showing is not None and type(call) in CALLS:
            return await self._show(self.showing, call, timeout, patient)
        if timeout is None:
            return wire.result(await self._exchange(call, patient), call)
        with anyio.move_on_after(timeout):
            return wire.result(await self._exchange(call, patient), call)
        raise calls.overdue(call, timeout)

    async def _show(self, showing: Showing, call: Call[R], timeout: float | None, patient: bool) -> R:
        """A call that names files, which are shown first; or whose result names some."""
        with anyio.move_on_after(timeout):
            for left in reversed(range(TRIES)):
                attempt = Attempt(showing, call, None)
                try:
                    await anyio.to_thread.run_sync(attempt.run, abandon_on_cancel=True)
                    result = wire.result(await self._exchange(attempt.call, patient), attempt.call)
                    own: R = await anyio.to_thread.run_sync(attempt.done, result)
                    return own
                except SyscallError as error:
                    call = attempt.failed(error, again=left > 0)
                except BaseException:
                    attempt.stop()
                    raise
        raise calls.overdue(call, timeout or 0.0)

    @property
    def runtime(self) -> Path:
        """The kernel's runtime directory. Raises SyscallError ENOTSUP: it is on another machine."""
        return directory(self.place)

    @property
    def closed(self) -> bool:
        """Whether this program has closed it, or it is the parent's."""
        return self._closed or not self.origin.here

    @property
    def away(self) -> bool:
        """Whether calls wait for the next kernel."""
        return self.origin.here and not self._up and self._gone is None

    def __repr__(self) -> str:
        return f"<Client of {self.place}, pid {self.pid}{', closed' if self.closed else ''}>"

    def post(self, call: Call[Any]) -> None:
        """Have the kernel, or the next one, make a call that nobody waits for."""
        self.origin.check()
        if self._gone is None:
            seq, frame = self._calls.begin(call, self._loop.place())
            if self._up:
                self._send(self._link, seq, frame)

    async def _exchange(self, call: Call[Any], patient: bool = True) -> wire.Reply:
        await anyio.lowlevel.checkpoint_if_cancelled()
        if self._gone is not None:
            raise calls.unanswered(call, self._gone)
        try:
            place = self._loop.place()
        except RuntimeError:
            raise loops.elsewhere() from None
        if not patient and not self._up:
            raise calls.unanswered(call, calls.away(self.place))
        seq, frame = self._calls.begin(call, place)
        if self._up:
            self._send(self._link, seq, frame)
        if patient:
            return await self._answer(seq, place, call)
        self._impatient.add(place)
        try:
            return await self._answer(seq, place, call)
        finally:
            self._impatient.discard(place)

    def _send(self, link: Link, seq: int, frame: bytes) -> None:
        if not link.send(frame):
            self._calls.take_back(seq)
            raise calls.crowded()
        self._calls.sent = max(self._calls.sent, seq)

    async def _answer(self, seq: int, place: Place, call: Call[Any]) -> wire.Reply:
        def left(found: Found | None) -> None:
            frame = self._calls.take_back(seq)
            frames = [frame] if frame is not None else []
            if isinstance(found, wire.Reply):
                frames += self._calls.undo(call, found)
            self._tell(frames)

        found = await place.wait(left)
        if isinstance(found, SyscallError):
            left(None)
            raise calls.unanswered(call, found)
        return found

    def _deliver(self, frame: bytes) -> None:
        try:
            self._tell(self._calls.answer(frame, _put))
        except SyscallError as error:
            self._fail(error)

    def _tell(self, frames: list[bytes]) -> None:
        """Send what no task waits for."""
        if self._up:
            for frame in frames:
                self._link.send(frame)

    # --- when the kernel has died ---

    def _lost(self) -> None:
        self._up = False
        if self._gone is not None:
            return
        if self.reconnect > 0 and self._attach.ticket:
            self._search = self._loop.background(self._go_on, f"reconnection to {self.place}")
            for place in self._impatient:
                place.put(calls.away(self.place))
        else:
            self._fail(SyscallError(Errno.EPIPE, f"the kernel of {self.place} has gone"))

    async def _go_on(self) -> None:
        """Find the next kernel, and have it take this program up. If there is none, every call fails."""
        try:
            search = Search(self.place, self.reconnect, anyio.current_time(), self.notify)
            while not self._up and self._gone is None:  # a kernel may die before it has taken this program up
                while not search.found(anyio.current_time()):  # noqa: ASYNC110 - there is no event to wait for
                    await anyio.sleep(calls.POLL_SECONDS)
                await self._taken_up(search)
            if self._up:
                search.over(self.boot)
        except SyscallError as error:
            self._fail(error)
        except BaseException:
            self._fail(SyscallError(Errno.EPIPE, "the event loop of this connection has ended; connect anew"))
            raise

    async def _taken_up(self, search: Search) -> None:
        """Show the ticket, send the unanswered calls again, and open the connection to new ones. Returns early if the
        kernel is not ready, or has gone too."""
        with anyio.CancelScope() as attempt:

            def lost() -> None:
                if self._up:
                    self._lost()
                else:
                    attempt.cancel()

            try:
                link = Link(self._loop, calls.endpoint(self.place), self._deliver, lost)
            except SyscallError as error:  # a moment later there may be a descriptor for it
                search.refused = error
                await anyio.sleep(calls.POLL_SECONDS)
                return
            try:
                boot: BootInfo | None = None
                with anyio.CancelScope(deadline=search.until) as patience:
                    place = self._loop.place()
                    self._attach = msgspec.structs.replace(self._attach, seen=self._calls.seen)
                    seq, frame = self._calls.begin(self._attach, place)
                    link.send(frame)
                    boot = search.taken_up(await self._answer(seq, place, self._attach), self._attach, self.pid)
                    if boot is None:
                        await anyio.sleep(calls.POLL_SECONDS)
                if patience.cancelled_caught and not attempt.cancel_called:
                    if isinstance(self.place, Remote):
                        link.send(self._calls.leave()[1])  # should it be taken up yet
                    raise search.in_vain()
                if boot is None:
                    return
                self._attached(boot)
                for frame in self._calls.left():  # first: a later call may be about the same process
                    link.send(frame)
                after, more = 0, True
                while more:
                    more = False
                    for seq, frame in self._calls.unanswered(after):
                        while link.backlog:  # noqa: ASYNC110 - more would be refused
                            await anyio.sleep(RETRY_SECONDS)
                        self._calls.sent = max(self._calls.sent, seq)
                        link.send(frame)
                        after, more = seq, True
                # No await between finding nothing more to send and this line: from here on, a caller sends its new call
                # itself.
                self._link, self._up = link, True
                for frame in self._calls.left():  # and what callers took back meanwhile
                    link.send(frame)
                self._calls.settled()
            finally:
                if not self._up:
                    search.refused = link.refused
                    link.close()

    def _attached(self, boot: BootInfo) -> None:
        self.boot = boot
        self._attach = msgspec.structs.replace(self._attach, ticket=boot.ticket)

    def _fail(self, why: SyscallError) -> None:
        """No answer will arrive any more: every waiting call raises this, and every later one."""
        if self._gone is None:
            self._gone = why
            for place, _ in self._calls.abandon():
                place.put(why)


def in_its_loop(connection: Client) -> bool:
    """Whether the event loop of a connection runs here, in a task."""
    try:
        connection._loop.place()
    except RuntimeError:
        return False
    return True


def _put(place: Place, reply: wire.Reply) -> None:
    place.put(reply)

"""The blocking client: system calls from plain scripts and threads.

    with connect() as kernel:
        pid = kernel(Spawn(model="tiny"))

Many threads may use one connection, and so one program with one pid. No thread serves it: one of the waiting threads, the
leader, waits on the connection and hands the others their answers (the leader/followers pattern); when it has its own, it
passes the lead on. Ctrl-C during a call takes the call back, and the connection stays usable. After os.fork the child
connects anew; this connection raises EINVAL there.

If the kernel keeps a journal, a thread sleeps until that kernel dies, also while no call is under way. It finds the next
kernel and sends the unanswered calls again (reconnect.py); callers that wait for answers go on waiting meanwhile.
"""

from __future__ import annotations

import os
import socket as sockets
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from llmasos.syscalls import calls, scarce, wire
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.forked import Origin
from llmasos.syscalls.line import Line
from llmasos.syscalls.reconnect import RECONNECT_SECONDS, Notify, Search
from llmasos.syscalls.records import BootInfo, Right
from llmasos.syscalls.remote import Place, Remote, directory, located
from llmasos.syscalls.showing import CALLS, TRIES, Attempt, Showing, showing_to
from llmasos.syscalls.table import Attach, Call
from llmasos.syscalls.turn import Bed, Turn, sleep

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
    """A connection to the kernel of a runtime directory (or `ipc://` endpoint; None: the default), attached under `name`
    (for a `tenant` of the program's user, if one is named); or of `tcp://HOST:PORT`, where this program shows the key in
    the file `key` (None: the user's own; see `llmasos key`).

    Use it in `with`, or `close` it. Raises SyscallError: ECONNREFUSED at once if no kernel runs, ETIME if one runs and
    does not answer within `timeout` seconds. When a kernel with a journal dies, waits `reconnect` seconds for the next
    one (0: not at all). With the `ticket` of a connection that ended with ESTALE this is its program, and goes on with
    what the journal has. EAGAIN: the operating system has not the descriptors that a connection takes.
    """
    with scarce.told():
        return Client(located(where, key), name, rights, timeout, reconnect, tenant, ticket)


class _Waiter:
    """A call in flight, and its answer once that has arrived."""

    __slots__ = ("bed", "reply")

    def __init__(self) -> None:
        self.reply: wire.Reply | None = None
        self.bed: Bed | None = None  # where its thread sleeps while another leads

    def answer(self, reply: wire.Reply) -> None:
        self.reply = reply

    def make_bed(self) -> Bed:
        self.bed = Bed()
        return self.bed


class Client:
    """An attached program: calling it with a record of `llmasos.syscalls.table` makes that system call.

    `boot` is the result of Attach, `pid` the program's own, `reconnect` the seconds to wait for a next kernel. When the
    kernel has gone for good, every call raises EPIPE. `showing` shows files to a kernel that opens none for its callers
    (None: this one opens them). `notify` may be set; see reconnect.Notify. It is called in a thread
    of its own, and must not make calls.
    """

    def __init__(
        self,
        place: Place,
        name: str,
        rights: Right,
        timeout: float,
        reconnect: float = 0.0,
        tenant: str = "",
        ticket: bytes = b"",
    ) -> None:
        self.place = place
        self.showing: Showing | None = None
        self.notify: Notify | None = None
        self.origin = Origin()
        deadline = time.monotonic() + timeout
        _await_kernel(place, deadline, timeout)
        # Guards all below. Taken as it is, by nothing that is Python code: Ctrl-C may come there between taking the lock
        # and the `with`, and then nobody ever lets it go.
        self._lock = threading.RLock()
        self._turn = Turn()  # all are woken when an answer has arrived or the lead is free
        self._line = Line(calls.endpoint(place))
        self._calls: calls.Calls[_Waiter] = calls.Calls()
        self._inbox: deque[bytes] = deque()
        self._leader: _Waiter | None = None
        self._gone: SyscallError | None = None
        self._closed = False
        self.reconnect = reconnect
        self._watch: threading.Thread | None = None
        self._down = False  # the line is lost, and calls wait for the next kernel
        try:
            self._attach = Attach(name or calls.default_name(), int(rights), ticket, tenant, seen=0)
            while not self._enter(deadline, timeout):
                time.sleep(calls.retry_pause())
                _await_kernel(place, deadline, timeout)
                self._line = Line(calls.endpoint(place))
            self.pid = self.boot.pid
            self.showing = showing_to(place, tenant)
            if self.reconnect > 0 and self.boot.ticket:
                self._bell, self._ring = sockets.socketpair()
                self._begin_watch()
        except BaseException:
            self.close()
            raise

    def _begin_watch(self) -> None:
        self._watch = threading.Thread(target=self._keep_up, name="llmasos-reconnect", daemon=True)
        try:
            self._watch.start()
        except RuntimeError as error:
            self._watch = None
            self._bell.close()
            self._ring.close()
            raise Errno.EAGAIN(f"this program gets no thread for its connection: {error}; try again later") from None

    def _enter(self, deadline: float, timeout: float) -> bool:
        """Attach. False: the line was refused or lost, as happens when very many programs connect at once."""
        try:
            self._attached(self._call(self._attach, deadline, calls.silent(self.place, timeout)))
        except SyscallError as error:
            if error.errno is not Errno.EPIPE:
                raise
            if self._line.refused is not None:
                raise self._line.refused from None
            self._line.close()
            self._calls, self._gone = calls.Calls(), None
            return False
        return True

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave: the kernel ends this program's processes but the detached. Calls of other threads fail with EPIPE. In a
        fork does nothing: the connection is the parent's."""
        if not self.origin.here:
            return
        leave = 0  # the call by which this program leaves
        with self._lock:  # again from the beginning, should Ctrl-C have come in the middle of it
            if not self._down and self._gone is None:
                boot = getattr(self, "boot", None)
                if self._calls.must_leave(self.place, boot):
                    seq, frame = self._calls.leave()
                    leave = seq if self._line.send(frame) and boot is not None else 0
            self._closed = True
            self._fail(SyscallError(Errno.EPIPE, "this program has closed its connection"))
        self._await_leader()
        if self._watch is not None:
            with suppress(OSError):  # it is closed already
                self._ring.send(b"!")
            if self._watch is not threading.current_thread():
                self._watch.join()
            self._bell.close()
            self._ring.close()
        try:
            if leave:
                with suppress(SyscallError):
                    self._line.await_answer(leave)
        finally:
            self._line.close()

    def _await_leader(self) -> None:
        """Until nobody leads, and nobody will: the leader waits on descriptors, which must not be closed under it."""
        bed = Bed()
        while True:
            with self._lock:
                if self._leader is None:
                    return
                self._turn.note(bed)
            sleep(bed)

    def __call__(self, call: Call[R], *, timeout: float | None = None, patient: bool = True) -> R:
        """Make a system call and return its result.

        Raises SyscallError with the kernel's errno and reason. ETIME: the call took longer than `timeout` seconds, and
        was taken back. EPIPE: the kernel has gone for good; a call that is not `patient` does not wait for the next
        kernel either. EMSGSIZE: the request is too long. EINVAL: the connection was made before a fork.
        """
        self.origin.check()
        if self.showing is not None and type(call) in CALLS:
            return self._show(self.showing, call, timeout, patient)
        if timeout is None:
            return self._call(call, patient=patient)
        return self._call(call, time.monotonic() + timeout, calls.overdue(call, timeout), patient=patient)

    def _show(self, showing: Showing, call: Call[R], timeout: float | None, patient: bool) -> R:
        """A call that names files, which are shown first; or whose result names some."""
        until = None if timeout is None else time.monotonic() + timeout
        late = None if timeout is None else calls.overdue(call, timeout)
        for left in reversed(range(TRIES)):
            attempt = Attempt(showing, call, until)
            try:
                attempt.run()
                result: R = attempt.done(self._call(attempt.call, until, late, patient=patient))
                return result
            except TimeoutError:
                raise late or calls.silent(self.place, 0.0) from None
            except SyscallError as error:
                call = attempt.failed(error, again=left > 0)
            except BaseException:
                attempt.drop()
                raise
        raise AssertionError("the last try has returned or raised")

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
        return self.origin.here and self._down and self._gone is None

    def __repr__(self) -> str:
        return f"<Client of {self.place}, pid {self.pid}{', closed' if self.closed else ''}>"

    def post(self, call: Call[Any]) -> None:
        """Have the kernel, or the next one, make a call that nobody waits for."""
        self.origin.check()
        with self._lock:
            if self._gone is not None:
                return
            seq, frame = self._calls.begin(call, _Waiter())
            if not self._down:
                if sent := self._line.send(frame):
                    self._calls.sent = seq
                if self._leader is None:  # nobody waits at the line
                    self._line.finish(self._inbox)
                self._collect(None)
                if not sent and not self._down:  # no room; else the next kernel hears of it
                    self._calls.take_back(seq)

    def _call(
        self,
        call: Call[R],
        deadline: float | None = None,
        too_late: SyscallError | None = None,
        *,
        patient: bool = True,
    ) -> R:
        waiter = _Waiter()
        seq, timeout = 0, None
        try:
            with self._lock:
                if self._gone is not None:
                    raise calls.unanswered(call, self._gone)
                seq, frame = self._calls.begin(call, waiter)
                if self._down:
                    pass  # it is sent to the next kernel
                elif self._line.send(frame):
                    self._calls.sent = seq
                else:
                    self._collect(waiter)
                    if not self._down:
                        raise calls.unanswered(call, self._gone) if self._gone else calls.crowded()
            while True:
                with self._lock:
                    if self._leader is waiter and not self._down:  # it has waited
                        self._line.take_some(self._inbox, len(self._calls))
                        self._hand_out(waiter)
                    if waiter.reply is None and self._gone is None and not self._down and self._must_collect():
                        self._collect(waiter)
                    if waiter.reply is not None:
                        self._pass_lead(waiter)
                        return wire.result(waiter.reply, call)
                    if self._gone is not None:
                        raise calls.unanswered(call, self._gone)
                    if deadline is not None and too_late is not None:
                        timeout = deadline - time.monotonic()
                        if timeout <= 0.0:
                            raise too_late
                    if self._down:
                        if not patient:
                            raise calls.unanswered(call, calls.away(self.place))
                        self._pass_lead(waiter)
                    elif self._leader is None:
                        self._leader = waiter
                    bed = self._turn.note(waiter.bed or waiter.make_bed()) if self._leader is not waiter else None
                    line = self._line
                line.wait(timeout) if bed is None else sleep(bed, timeout)
        except BaseException as error:
            with self._lock:
                self._failed(seq, call, waiter, interrupted=not isinstance(error, SyscallError))
            raise

    def _failed(self, seq: int, call: Call[Any], waiter: _Waiter, *, interrupted: bool) -> None:
        """A call is left without its answer, or with one that nobody hears of."""
        self._turn.forget(waiter.bed)
        self._pass_lead(waiter)
        if waiter.reply is None and self._gone is None:
            if interrupted:  # it may have come before what is known here was stored
                seq = seq or self._calls.seq_of(waiter)
                self._calls.sent = max(self._calls.sent, seq)
            self._take_back(seq, waiter)
        elif waiter.reply is not None and interrupted:  # Ctrl-C as the answer came
            self._tell(self._calls.undo(call, waiter.reply))
        if interrupted:  # it may have come before others were given what is theirs
            self._hand_out(waiter)
            self._turn.wake_all()

    def _must_collect(self) -> bool:
        """Whether `wait` would not tell of all that may have arrived."""
        return bool(self._inbox) or not self._line.quiet

    def _pass_lead(self, waiter: _Waiter) -> None:
        if self._leader is waiter:
            self._leader = None
            self._turn.wake_all()

    def _take_back(self, seq: int, waiter: _Waiter) -> None:
        if (frame := self._calls.take_back(seq)) is not None and not self._down:
            self._line.send(frame)
            self._collect(waiter)

    def _collect(self, collector: _Waiter | None) -> None:
        """Take all that has arrived and hand it out; then the line may be waited for. The caller holds `_lock`."""
        connected = self._line.take(self._inbox)
        self._hand_out(collector)
        if connected:
            return
        if self._watch is None:
            self._fail(SyscallError(Errno.EPIPE, f"the kernel of {self.place} has gone"))
        else:
            self._ring.send(b"!")  # first: whatever interrupts this, `_lost` does the rest
            self._down = True

    def _hand_out(self, collector: _Waiter | None) -> None:
        if not self._inbox:
            return
        try:
            while self._inbox:
                frames = self._calls.answer(self._inbox[0], _Waiter.answer)
                self._inbox.popleft()
                self._tell(frames)
        except SyscallError as error:
            self._fail(error)
        self._turn.wake_all()
        if self._leader not in (None, collector):
            self._line.nudge()  # the leader may wait for something that was taken here

    def _tell(self, frames: list[bytes]) -> None:
        """Send what no thread waits for."""
        if frames and not self._down and self._gone is None:
            for frame in frames:
                self._line.send(frame)
            self._line.take(self._inbox)  # sending may have swallowed a wake-up

    def _fail(self, why: SyscallError) -> None:
        self._gone = self._gone or why
        self._inbox.clear()
        self._calls.abandon()
        self._turn.wake_all()
        self._line.nudge()  # also while it is down: who leads may not have heard of that yet

    # --- when the kernel has died: the thread that finds the next one ---

    def _keep_up(self) -> None:
        try:
            while self._gone is None and self._lost():
                search = Search(self.place, self.reconnect, time.monotonic(), self.notify)
                while not self._taken_up(search):
                    pass
                search.over(self.boot)
        except SyscallError as error:
            with self._lock:
                self._fail(error)
        except BaseException as error:
            with self._lock:
                self._fail(
                    SyscallError(Errno.EPIPE, f"the connection cannot be kept up: {type(error).__name__}: {error}")
                )
            raise

    def _lost(self) -> bool:
        """Wait until the line is lost and no thread uses it any more. False: the connection has been closed."""
        while True:
            self._line.wait_for_loss(self._bell.fileno())
            with suppress(BlockingIOError):
                self._bell.recv(4096, sockets.MSG_DONTWAIT)
            with self._lock:
                if self._gone is None and not self._down:
                    self._line.look()
                    self._collect(None)
                if self._gone is not None:
                    return False
                if self._down:
                    self._turn.wake_all()
                    self._line.nudge()
                    break
        self._await_leader()  # while it is down nobody takes the lead
        with self._lock:
            self._line.close()
        return True

    def _taken_up(self, search: Search) -> bool:
        """Find a kernel and have it take this program up with all unanswered calls. False: not yet, or that kernel has
        died too."""
        while not search.found(time.monotonic()):
            self._pause()
        try:
            line = Line(calls.endpoint(self.place))
        except SyscallError as error:  # a moment later there may be a descriptor for it
            search.refused = error
            self._pause()
            return False
        try:
            if self._shown(line, search) and self._sent_again(line):
                return True
        except BaseException:
            line.close()
            raise
        line.close()
        return False

    def _shown(self, line: Line, search: Search) -> bool:
        """Show the ticket. False: not yet, or the connection is lost again."""
        waiter = _Waiter()
        with self._lock:
            self._attach = msgspec.structs.replace(self._attach, seen=self._calls.seen)
            seq, frame = self._calls.begin(self._attach, waiter)
        line.send(frame)
        connected = True
        while connected and waiter.reply is None:
            line.wait(calls.POLL_SECONDS)
            self._check_open()
            connected = self._take_from(line)
            if waiter.reply is None and time.monotonic() >= search.until:
                if isinstance(self.place, Remote):
                    line.send(self._calls.leave()[1])  # should it be taken up yet
                raise search.in_vain()
        if waiter.reply is None:
            search.refused = line.refused
            with self._lock:
                self._calls.take_back(seq)
            return False
        boot = search.taken_up(waiter.reply, self._attach, self.pid)
        if boot is None:
            self._pause()
            return False
        self._attached(boot)
        return True

    def _sent_again(self, line: Line) -> bool:
        """Send all unanswered calls, in order, and open the line to new ones. False: the connection is lost again."""
        after = 0
        with self._lock:  # cancellations first: a later call may be about the same process
            for frame in self._calls.left():
                line.send(frame)
        while True:
            with self._lock:
                self._check_open()
                for seq, frame in self._calls.unanswered(after):
                    if not line.send(frame):
                        break
                    after, self._calls.sent = seq, max(self._calls.sent, seq)
                else:
                    for frame in self._calls.left():  # and what callers took back meanwhile
                        line.send(frame)
                    self._calls.settled()
                    self._line, self._down = line, False
                    self._turn.wake_all()
                    return True
            if not self._take_from(line):
                return False
            time.sleep(calls.POLL_SECONDS)

    def _take_from(self, line: Line) -> bool:
        """Take and hand out what has arrived by a line that is not open to calls yet. False: it is lost."""
        with self._lock:
            line.look()
            connected = line.take(self._inbox)
            self._hand_out(None)
        return connected

    def _pause(self) -> None:
        self._check_open()
        time.sleep(calls.POLL_SECONDS)

    def _check_open(self) -> None:
        if self._gone is not None:
            raise self._gone

    def _attached(self, boot: BootInfo) -> None:
        self.boot = boot
        self._attach = msgspec.structs.replace(self._attach, ticket=boot.ticket)


def _await_kernel(place: Place, deadline: float, timeout: float) -> None:
    """Wait until a kernel listens. Raises SyscallError ECONNREFUSED: none runs; ETIME: none does by `deadline`."""
    while not calls.kernel_listens(place):
        if time.monotonic() >= deadline:
            raise calls.silent(place, timeout)
        time.sleep(calls.POLL_SECONDS)

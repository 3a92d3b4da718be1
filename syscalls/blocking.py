"""The blocking client: the same system calls from plain scripts and threads.

    with connect() as kernel:
        pid = kernel(Spawn(model="tiny"))

One connection, and so one program with one pid, may be used by many threads at once. There is no thread
behind it: of the threads that wait for answers one, the leader, waits on the connection and hands the others
theirs (the leader/followers pattern); when it has its own it passes the lead on. Ctrl-C during a call takes
the call back, and the connection stays usable. After os.fork the child must connect anew.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from syscalls import calls, runtime, wire
from syscalls.errno import Errno, SyscallError
from syscalls.line import Line
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
    """A connection to the kernel of a runtime directory (or `ipc://` endpoint; None: the default), attached
    under `name`.

    Use it in `with`, or `close` it. Raises SyscallError: ECONNREFUSED at once where no kernel runs, ETIME if
    one runs but does not answer within `timeout` seconds.
    """
    return Client(runtime.locate(where), name, rights, timeout)


class _Waiter:
    """A call in flight: its answer, once it has come."""

    __slots__ = ("reply",)

    def __init__(self) -> None:
        self.reply: wire.Reply | None = None

    def answer(self, reply: wire.Reply) -> None:
        self.reply = reply


class Client:
    """An attached program: calling it with a record of `syscalls.table` makes that system call.

    `boot` is what Attach answered, `pid` the program's own. Once the kernel has gone every call raises EPIPE.
    """

    def __init__(self, directory: Path, name: str, rights: Right, timeout: float) -> None:
        self.runtime = directory
        deadline = time.monotonic() + timeout
        while not calls.kernel_listens(directory):
            if time.monotonic() >= deadline:
                raise calls.silent(directory, timeout)
            time.sleep(calls.POLL_SECONDS)
        self._turn = (
            threading.Condition()
        )  # guards all below; notified when an answer or the lead is to be had
        self._line = Line(runtime.endpoint(directory))
        self._calls: calls.Calls[_Waiter] = calls.Calls()
        self._inbox: deque[bytes] = deque()
        self._leader: _Waiter | None = None
        self._gone: SyscallError | None = None
        self._closed = False
        try:
            attach = Attach(name or calls.default_name(), int(rights))
            self.boot: BootInfo = self._call(attach, deadline, calls.silent(directory, timeout))
        except BaseException:
            self.close()
            raise
        self.pid = self.boot.pid

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave: the kernel ends this program's processes (but the detached). Calls of other threads fail
        with EPIPE."""
        with self._turn:
            if self._closed:
                return
            self._closed = True
            self._fail(SyscallError(Errno.EPIPE, "this program has closed its connection"))
            while self._leader is not None:  # it waits on descriptors that would be closed under it
                self._turn.wait()
            self._line.close()

    def __call__(self, call: Call[R], *, timeout: float | None = None) -> R:
        """Make a system call and return its result.

        Raises SyscallError with the kernel's errno and reason; ETIME if it takes longer than `timeout`
        seconds (the call is then taken back), EPIPE if the kernel goes away, EMSGSIZE for a request that is
        too long.
        """
        if timeout is None:
            return self._call(call)
        return self._call(call, time.monotonic() + timeout, calls.overdue(call, timeout))

    def _call(self, call: Call[R], deadline: float | None = None, too_late: SyscallError | None = None) -> R:
        waiter = _Waiter()
        seq, timeout = 0, None
        try:
            with self._turn:
                if self._gone is not None:
                    raise calls.unanswered(call, self._gone)
                seq, frame = self._calls.begin(call, waiter)
                if not self._line.send(frame):
                    self._collect(waiter)
                    raise calls.unanswered(call, self._gone) if self._gone else calls.crowded()
            while True:
                with self._turn:
                    if self._leader is waiter:  # it has waited
                        self._line.take_some(self._inbox, len(self._calls))
                        self._hand_out(waiter)
                    if waiter.reply is None and self._gone is None:
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
                    if self._leader is None:
                        self._leader = waiter
                    elif self._leader is not waiter:
                        self._turn.wait(timeout)
                        continue
                self._line.wait(timeout)
        except BaseException:
            with self._turn:
                self._pass_lead(waiter)
                if waiter.reply is None and self._gone is None:
                    self._take_back(seq, waiter)
            raise

    def _pass_lead(self, waiter: _Waiter) -> None:
        if self._leader is waiter:
            self._leader = None
            self._turn.notify_all()

    def _take_back(self, seq: int, waiter: _Waiter) -> None:
        if (frame := self._calls.take_back(seq)) is not None:
            self._line.send(frame)
            self._collect(waiter)

    def _collect(self, collector: _Waiter) -> None:
        """Take and hand out all that has come; then the line may be waited for. The caller holds `_turn`."""
        connected = self._line.take(self._inbox)
        self._hand_out(collector)
        if not connected:
            self._fail(SyscallError(Errno.EPIPE, f"the kernel of {self.runtime} has gone"))

    def _hand_out(self, collector: _Waiter) -> None:
        if not self._inbox:
            return
        try:
            while self._inbox:
                self._calls.settle(self._inbox[0], _Waiter.answer)
                self._inbox.popleft()
        except SyscallError as error:
            self._fail(error)
        self._turn.notify_all()
        if self._leader not in (None, collector):
            self._line.nudge()  # what it waits for may have been taken here

    def _fail(self, why: SyscallError) -> None:
        self._gone = self._gone or why
        self._inbox.clear()
        self._calls.abandon()
        self._turn.notify_all()
        self._line.nudge()

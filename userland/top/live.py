"""A running kernel, as `top` looks at it: a thread that takes a sample every interval, and does what the person asks for.

A thread and the blocking client, not `llmasos.aio`: a call may wait half a minute for the next kernel after one died, and
neither the picture nor its end is to wait for it; and a program that shows itself to be slow should not hold up its own
measure. All calls are made in that one thread, one at a time, so `top` is never two programs to the kernel.

Between samples there are no calls. While the person pauses there are none at all, nor while the terminal has stopped the
program (Ctrl-Z); that another window covers it no terminal tells. If a sample takes long, because the table is long or
the kernel busy, the next one comes later: sampling takes a tenth of the time at most.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.reconnect import Notify
from llmasos.syscalls.records import BootInfo, TraceEvent
from llmasos.syscalls.table import Call, Trace
from llmasos.userland.top.model import History, Picture
from llmasos.userland.top.record import Writer
from llmasos.userland.top.sample import take

PATIENCE = 5.0  # seconds that a call of `top` may take
SILENT = 3.0  # seconds without an answer after which that is told
_SHARE = 10  # a sample that takes a second has the next one wait ten
_TRACE_SECONDS = 0.25  # between two looks at the trace: the kernel keeps the last events only
_MOST_EVENTS = 100_000  # between two samples

R = TypeVar("R")


class Client(Protocol):
    """What `top` wants of a connection to a kernel: a `llmasos.syscalls.blocking.Client` has it."""

    notify: Notify | None
    reconnect: float
    pid: int

    @property
    def away(self) -> bool: ...

    def __call__(self, call: Call[R], /, *, timeout: float | None = None, patient: bool = True) -> R: ...


@dataclass(frozen=True)
class Taken:
    """A sample was taken."""

    picture: Picture
    events: tuple[TraceEvent, ...] = ()
    lost: int = 0


@dataclass(frozen=True)
class Trouble:
    """No sample can be taken, and why; empty: it can be again."""

    why: str


@dataclass(frozen=True)
class Done:
    """What the person asked for was done, in words, or `refused`."""

    said: str
    refused: bool = False


News = Taken | Trouble | Done


@dataclass(frozen=True)
class Wish:
    """Calls that the person asked for. `said` is what is told when all of them are answered."""

    calls: tuple[Call[Any], ...]
    said: str


_DEAD = "nothing was sent: the kernel has died"


class Live:
    """The thread. `again` makes a connection to the kernel that runs there now, once the old one has gone for good."""

    def __init__(
        self,
        kernel: Client,
        seconds: float,
        writer: Writer | None = None,
        again: Callable[[], Client] | None = None,
    ) -> None:
        self.kernel = kernel
        self.seconds = seconds
        self.paused = False
        self.tracing = False  # the kernel's trace is read, too
        self._tell: Callable[[News], object] = lambda _: None
        self._writer = writer
        self._again = again
        self._history = History()
        self._asked: queue.SimpleQueue[tuple[Wish, int] | None] = queue.SimpleQueue()
        self._ends = threading.Event()
        self._down = False
        self._kernels = 1  # how many there have been: a wish is for the one that the person saw
        self._since: float | None = None  # when the first call was made that has no answer
        self._taken: float | None = None  # when the last sample was
        self._troubled, self._told = False, ""
        self._trace_next = -1
        self._events: list[TraceEvent] = []
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name="llmasos-top", daemon=True)
        self._former = kernel.notify

    # --- for the other threads ---

    def start(self, tell: Callable[[News], object]) -> None:
        """Begin. `tell` is called in the thread, with what is new."""
        self._tell = tell
        self.kernel.notify = self._notify
        self._thread.start()

    def stop(self, seconds: float = 1.0) -> None:
        """End the thread. One that waits for a dead kernel ends by itself, within PATIENCE. What the program was told of
        that kernel goes where it went before."""
        self._ends.set()
        self._asked.put(None)
        self._thread.join(seconds)
        self.kernel.notify = self._former
        if self._down and self._former is not None:
            self._former(None)

    def ask(self, wish: Wish) -> None:
        """Have calls made, and a sample taken after them. They are for the kernel that is shown, and none other."""
        if self._down or self.kernel.away:
            self._tell(Done(_DEAD, refused=True))
        else:
            self._asked.put((wish, self._kernels))

    def stale(self, now: float, why: str) -> str:
        """Why what is shown is not how it is at `now`, in words, where the thread has told `why`; empty: it is. It makes
        no call and waits for nothing: it sees also that the thread hangs in a call, and that the line is lost while
        the connection cannot tell yet what became of the kernel."""
        since, taken = self._since, self._taken
        if self._down or self.kernel.away:
            why = why or "the connection to the kernel is lost; waiting for the next one"
        elif since is not None and now - since >= SILENT:
            why = f"the kernel has not answered for {now - since:.0f} s"
        return f"{why}; this is how it was {now - taken:.0f} s ago" if why and taken is not None else why

    def wake(self) -> None:
        """Take a sample now, or see that the pause is over."""
        self._asked.put(None)

    # --- in the thread ---

    def _run(self) -> None:
        try:
            while not self._ends.is_set():
                began = time.monotonic()
                taken = self._sample()
                took = time.monotonic() - began
                self._wait(began + max(self.seconds, _SHARE * took) if taken else began + took + self.seconds)
        finally:
            if self._writer is not None:
                self._writer.close()

    def _sample(self) -> bool:
        """Whether one was taken."""
        try:
            sample = take(self._patient)
            self._read_trace()
        except SyscallError as error:
            self._failed(error)
            return False
        self._taken = time.monotonic()
        events, lost = tuple(self._events), self._lost
        self._events, self._lost = [], 0
        if self._troubled and not self._down:  # it may have died after its last answer
            self._troubled = False
            self._tell(Trouble(""))
        if self._writer is not None:
            try:
                self._writer.add(sample, events, lost)
            except SyscallError as error:
                self._writer.close()
                self._writer = None
                self._tell(Done(str(error), refused=True))
        self._tell(Taken(self._history.add(sample), events, lost))
        return True

    def _failed(self, error: SyscallError) -> None:
        if self._ends.is_set() or (self._down and error.errno is Errno.ETIME):
            return  # it was told already that the kernel has died
        why = str(error) if error.errno is not Errno.ETIME else "the kernel does not answer; it is asked again and again"
        if error.errno is Errno.EPIPE and self._again is not None:
            why = f"{error.reason.partition(': ')[2] or error.reason}; the next one is shown as soon as it runs"
            self._take_up()
        self._trouble(why)

    def _take_up(self) -> None:
        """Look for another kernel where the old one was."""
        assert self._again is not None
        try:
            kernel = self._again()
        except SyscallError:
            return
        self.kernel, self._down, self._trace_next = kernel, False, -1
        self._kernels += 1
        self._former = kernel.notify
        kernel.notify = self._notify
        self._asked.put(None)

    def _trouble(self, why: str) -> None:
        if why != self._told or not self._troubled:
            self._troubled, self._told = True, why
            self._tell(Trouble(why))

    def _notify(self, boot: BootInfo | None) -> None:
        """Runs in the connection's own thread, which must make no calls."""
        self._down = boot is None
        if boot is None:
            self._trouble(
                f"the kernel has died; waiting up to {self.kernel.reconnect:g} s for the next one (`llmasos boot`)"
            )
        else:
            self._kernels += 1
            self._trace_next = -1
            self._asked.put(None)

    def _wait(self, until: float) -> None:
        """Until the next sample is due, or something is asked for that wants one at once."""
        while not self._ends.is_set():
            left = None if self.paused else until - time.monotonic()
            if left is not None and left <= 0:
                return
            reads = self._reads_trace() and not self.paused
            try:
                wish = self._asked.get(timeout=min(left, _TRACE_SECONDS) if reads and left is not None else left)
            except queue.Empty:
                if reads:
                    try:
                        self._read_trace()
                    except SyscallError as error:
                        self._failed(error)
                        return
                continue
            if wish is not None:
                self._do(*wish)
                return
            if not self.paused:
                return

    def _do(self, wish: Wish, kernel: int) -> None:
        if kernel != self._kernels:
            self._tell(Done(_DEAD, refused=True))
            return
        failed: list[SyscallError] = []
        for call in wish.calls:
            try:
                self._call(call, patient=False)
            except SyscallError as error:
                failed.append(error)
        if not failed:
            self._tell(Done(wish.said))
        elif len(wish.calls) == 1:
            self._tell(Done(str(failed[0]), refused=True))
        else:
            self._tell(Done(f"{len(failed)} of {len(wish.calls)} were refused, the first with {failed[0]}", refused=True))

    def _patient(self, call: Call[R], /) -> R:
        return self._call(call, patient=True)

    def _call(self, call: Call[R], /, *, patient: bool) -> R:
        self._since = self._since or time.monotonic()
        try:
            result = self.kernel(call, timeout=PATIENCE, patient=patient)
        except SyscallError as error:
            if error.errno is not Errno.ETIME:
                self._since = None
            raise
        self._since = None
        return result

    def _reads_trace(self) -> bool:
        return self.tracing or self._writer is not None

    def _read_trace(self) -> None:
        if not self._reads_trace():
            self._trace_next = -1
            return
        while True:
            result = self._patient(Trace(start=self._trace_next))
            if self._trace_next >= 0:
                self._lost += result.lost
            self._trace_next = result.next
            self._events += _others(result.events, self.kernel.pid)
            if len(self._events) > _MOST_EVENTS:
                self._lost += len(self._events) - _MOST_EVENTS
                del self._events[:-_MOST_EVENTS]
            if not result.events or len(result.events) < Trace().limit:
                return


def _others(events: Sequence[TraceEvent], mine: int) -> list[TraceEvent]:
    """The events but for what `top` itself asks."""
    return [event for event in events if event.pid != mine]

"""The thread in which a driver reads models, so that it can be given up.

The thread does one request after the other. A disk or server that does not answer holds its reader in the operating
system, where nothing can end it. So the driver's loop may give up a request whose thread has used no processor time for
long: another thread goes on with the next request, and the result of the old thread is thrown away. (A thread that waits
for threads it has started wakes for each of their pieces, and so uses some processor time.) A request that is cancelled
ends at its next sign of progress.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from os import PRIO_PROCESS, setpriority

from llmasos.drivers.protocol import Load, Probe
from llmasos.syscalls.errno import Errno, SyscallError

STILL_SECONDS = 30.0  # without processor time; the kernel takes a driver for hung only after longer
_NICE = 5  # of this thread, and of those it starts: steps come first

Request = Probe | Load
Report = Callable[[float], None]


@dataclass(slots=True, eq=False)
class _Turn:
    """A request being done."""

    request: Request
    clock: int | None  # of its thread's processor time
    used: float = 0.0  # of it, when last looked at
    since: float = field(default_factory=time.monotonic)  # it has used no more
    over: bool = False  # given up: its thread may not finish it
    unwanted: bool = False


class Reader:
    """`act(request, report)` does a request; `finish(request, outcome)` gets what it returned, unless the request was
    given up. The thread calls both; `act` raises nothing."""

    def __init__(
        self,
        act: Callable[[Request, Report], object],
        finish: Callable[[Request, object], None],
        told: Callable[[int, float], None],
    ) -> None:
        """`told(ref, fraction)` hears of progress."""
        self._act, self._finish, self._told = act, finish, told
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards the turn
        self._turn: _Turn | None = None
        self._unwanted: set[int] = set()  # refs that have not come to their turn
        self._start()

    def put(self, request: Request) -> None:
        self._requests.put(request)

    def cancel(self, ref: int) -> None:
        """Nobody waits for that request any more. It is answered all the same."""
        with self._lock:
            if self._turn is not None and self._turn.request.ref == ref:
                self._turn.unwanted = True
            else:
                self._unwanted.add(ref)

    def give_up(self, still: float = STILL_SECONDS) -> Request | None:
        """Give up the request whose thread has used no processor time for `still` seconds, if there is one; the caller
        must answer it."""
        with self._lock:
            turn = self._turn
            if turn is None or turn.clock is None:
                return None
            used, now = time.clock_gettime(turn.clock), time.monotonic()
            if used != turn.used:
                turn.used, turn.since = used, now
            if now - turn.since < still:
                return None
            turn.over, self._turn = True, None
        self._start()
        return turn.request

    def _start(self) -> None:
        threading.Thread(target=self._run, name="loads", daemon=True).start()

    def _run(self) -> None:
        clock = None
        if sys.platform == "linux":  # where a thread has a priority and a clock of its own, and hands the first on
            with suppress(OSError):
                setpriority(PRIO_PROCESS, threading.get_native_id(), _NICE)
            clock = time.pthread_getcpuclockid(threading.get_ident())
        while True:
            turn = _Turn(self._requests.get(), clock)
            with self._lock:
                turn.unwanted = turn.request.ref in self._unwanted
                # Refs only grow: requests with smaller ones were over when they were cancelled.
                self._unwanted = {ref for ref in self._unwanted if ref > turn.request.ref}
                self._turn = turn
            outcome = self._act(turn.request, self._reporter(turn))
            with self._lock:
                if turn.over:
                    return
                self._turn = None
            self._finish(turn.request, outcome)

    def _reporter(self, turn: _Turn) -> Report:
        def report(fraction: float) -> None:
            if turn.over or turn.unwanted:
                raise SyscallError(Errno.EINTR, "nobody waits for it any more")
            self._told(turn.request.ref, fraction)

        return report

"""Several jobs at once on threads, under one watcher: a fault in one of them ends all.

As with a nursery of trio, the first error ends the others, and none is left behind. It uses threads because the jobs are
blocking reads, which need no loop. Only the caller's own thread watches (draws, gets Ctrl-C): a job that has progressed
waits until the watcher has seen it, so an exception of the watcher ends the jobs where they are. A job that waits for the
network is woken by cutting its connection.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

JOIN_SECONDS = 3.0  # for stopped jobs; one that is still connecting then ends by itself
_LOOK_SECONDS = 0.1


class Stopped(Exception):
    """The jobs must end: one has failed, or the watcher wants no more of them."""


class Together:
    """Jobs and their watcher; `watch` is called in the thread of `run`."""

    def __init__(self, watch: Callable[[], None]) -> None:
        self._watch = watch
        self._said: queue.SimpleQueue[threading.Event | BaseException | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._lock = threading.Lock()  # guards _cuts
        self._cuts: list[Callable[[], None]] = []

    def run(self, jobs: Sequence[Callable[[], None]], most: int) -> None:
        """Do the jobs, `most` of them at once. Raises the exception of the first that fails, or of `watch`."""
        left = deque(jobs)
        threads = [
            threading.Thread(target=self._work, args=(left,), name="llmasos-fetch", daemon=True)
            for _ in range(min(most, len(left)))
        ]
        try:
            for thread in threads:
                thread.start()
            running = len(threads)
            while running:
                said = self._said.get()
                if isinstance(said, threading.Event):
                    self._watch()
                    said.set()
                    continue
                running -= 1
                if said is not None:
                    raise said
        finally:
            self._stop()
            give_up = time.monotonic() + JOIN_SECONDS
            for thread in threads:
                if thread.ident is not None:
                    thread.join(max(0.0, give_up - time.monotonic()))

    def seen(self) -> None:
        """Called by a job that has progressed; returns when the watcher has seen it. Raises Stopped."""
        self.go_on()
        seen = threading.Event()
        self._said.put(seen)
        while not seen.wait(_LOOK_SECONDS):
            self.go_on()
        self.go_on()

    def go_on(self) -> None:
        """Raise Stopped if the jobs must end."""
        if self._stopped.is_set():
            raise Stopped

    @contextmanager
    def cutting(self, cut: Callable[[], None]) -> Iterator[None]:
        """During the block, stopping calls `cut`, which wakes it. Raises Stopped."""
        with self._lock:
            self._cuts.append(cut)
        try:
            self.go_on()
            yield
        finally:
            with self._lock:
                self._cuts.remove(cut)

    def _stop(self) -> None:
        self._stopped.set()
        with self._lock:
            for cut in self._cuts:
                cut()

    def _work(self, left: deque[Callable[[], None]]) -> None:
        try:
            while not self._stopped.is_set():
                try:
                    job = left.popleft()
                except IndexError:
                    break
                job()
        except BaseException as error:  # the caller of `run` gets it
            self._said.put(error)
        else:
            self._said.put(None)

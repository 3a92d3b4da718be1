"""Streaming: a model whose weights are more than its memory is run with some of its layers in their file.

Every step reads the layers in the same order, so the least recently used layer is always the one needed next (Belady's
example against LRU). So some layers stay for good, and the others, spread evenly among them, pass through a window: while
one is computed the next ones are read ahead, and at the end of a step the first ones of the next step. The file is
mapped; reading ahead means bringing its pages in and mapping them. While the machine has memory for all pages, nothing
else happens: pages in the page cache that are mapped need not be read again, and the system can take them at any time
(major faults show that, and reading ahead begins again). Otherwise a layer is unmapped as soon as it is computed, and the
process never has more of the file than the window. Unmapping and mapping again take as long as computing, so it is done
only then. Where the system cannot be told to read ahead, it reads on demand.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

AHEAD = 2  # layers read ahead
WINDOW = AHEAD + 1  # and the one that is computed
_POLL_SECONDS = 2e-4  # a layer takes a millisecond or more
_POPULATE_READ = 22  # of <linux/mman.h>; since 5.14


def choose(sizes: list[int], room: int) -> list[int]:
    """The layers, of `sizes`, to be streamed for the others and the window to fit into `room` bytes: as few as will do,
    evenly spread. Empty: all fit. Raises MemoryError."""
    for count in range(len(sizes) + 1):
        if 0 < count <= WINDOW:
            continue  # they would all be in the window
        chosen = [(2 * i + 1) * len(sizes) // (2 * count) for i in range(count)]
        if resident(sizes, chosen) <= room:
            return chosen
    least = resident(sizes, list(range(len(sizes))))
    raise MemoryError(f"{room >> 20} MiB for layers; {least >> 20} MiB are the least that a window of them takes")


def resident(sizes: list[int], streamed: list[int]) -> int:
    """Bytes in memory: the layers that stay, and the window."""
    window = sum(sorted((sizes[i] for i in streamed), reverse=True)[:WINDOW])
    return sum(sizes) - sum(sizes[i] for i in streamed) + window


def available() -> int:
    """Bytes of memory that could be had, what the page cache would give back included."""
    return int(psutil.virtual_memory().available)


def _major_faults() -> int:
    """How often this process has waited for a page to be read, its reading ahead included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


@dataclass(frozen=True, slots=True)
class Stretch:
    """A layer in the mapped file: its number, address and size in bytes."""

    layer: int
    address: int
    size: int


class Ahead:
    """Reads ahead for one image, in a thread of its own. The decoder tells `at`, the layer that it computes, and waits
    for layers from `ready` on: it would only read the same in another order."""

    def __init__(
        self, stretches: list[Stretch], layers: int, brought_in: Callable[[int], None] = lambda layer: None
    ) -> None:
        """`brought_in` is told of each layer that was read, before it may be computed."""
        self._brought_in = brought_in
        self._stretches = stretches
        self._size = sum(stretch.size for stretch in stretches)
        self._layers = layers
        self._at = ctypes.c_int64(layers)
        self._ready = ctypes.c_int64(layers)
        self._changed = threading.Condition()
        # Stretches that were read are counted over all steps; steps begin with 1.
        self._step = 0
        self._end = len(stretches)  # read up to here; of no meaning while it is not useful
        self._useful, self._short = True, False
        self._faults = 0
        self._over = False
        self.reads = 0  # layers read ahead so far
        self._advise: Any = None
        self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)
        if sys.platform == "linux":
            self._advise = ctypes.CDLL(None, use_errno=True).madvise
            self._advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
            self._thread.start()
        else:
            self._over = True

    @property
    def at_address(self) -> int:
        """Where the decoder tells the layer that it computes."""
        return ctypes.addressof(self._at)

    @property
    def ready_address(self) -> int:
        """Where the decoder looks how many layers it may compute."""
        return ctypes.addressof(self._ready)

    def begin(self) -> None:
        """A step begins."""
        with self._changed:
            before, self._faults = self._faults, _major_faults()
            self._short = available() < self._size
            useful = self._short or self._step == 0 or self._faults != before
            if useful and not self._useful:
                self._end = 0
            self._useful = useful
            self._step += 1
            self._at.value = 0
            self._tell_ready()
            self._changed.notify()

    def end(self) -> None:
        """It is over, be it done or given up: what comes next is the beginning of another one."""
        self._at.value = self._layers

    def close(self) -> None:
        """End the thread; the mapping may go then."""
        with self._changed:
            self._over = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _tell_ready(self) -> None:
        read = max(0, self._end - self._step * len(self._stretches))
        waits = self._useful and not self._over and read < len(self._stretches)
        self._ready.value = self._stretches[read].layer if waits else self._layers

    def _run(self) -> None:
        try:
            self._read_ahead()
        finally:
            with self._changed:  # whatever has happened: a step that waits reads on demand
                self._over = True
                self._ready.value = self._layers

    def _read_ahead(self) -> None:
        count = len(self._stretches)
        first = count  # what of the file is mapped begins here
        while not self._over:
            with self._changed:
                step, at, useful, short = self._step, self._at.value, self._useful, self._short
                if not useful and not self._over:
                    self._changed.wait()
                    continue
                done = max(step, 1) * count + sum(stretch.layer < at for stretch in self._stretches if step)
                end = self._end = max(self._end, done)
                if end - done > AHEAD and not self._over:
                    self._changed.wait(None if at >= self._layers else _POLL_SECONDS)
            for number in range(max(first, done - count), done if short else 0):
                self._tell(self._stretches[number % count], mmap.MADV_DONTNEED)
            first = max(first, done)
            if end - done <= AHEAD:
                self._tell(self._stretches[end % count], _POPULATE_READ)
                self._brought_in(self._stretches[end % count].layer)
                with self._changed:
                    self.reads += 1
                    self._end = max(self._end, end + 1) if self._end >= end else self._end
                    self._tell_ready()

    def _tell(self, stretch: Stretch, what: int) -> None:
        first = stretch.address // mmap.PAGESIZE * mmap.PAGESIZE
        size = stretch.address + stretch.size - first
        if self._advise(first, size, what) == 0:
            return
        if what == _POPULATE_READ and ctypes.get_errno() == errno.EINVAL:  # an older Linux
            self._advise(first, size, mmap.MADV_WILLNEED)
            return
        if what == _POPULATE_READ:
            raise OSError(ctypes.get_errno(), f"layer {stretch.layer}: {os.strerror(ctypes.get_errno())}")

"""Streaming: a model whose weights are more than its memory is run with some of its layers in their file.

Every step reads the layers in the same order, so of what does not fit the least recently used is always just what is
wanted next (Belady's example against LRU). So some layers stay for good, and the others, spread evenly among them, pass
through a window: while one is computed the next ones are read ahead, at the end of a step the first ones of the next. The
file is mapped; reading ahead is having its pages brought in and mapped, and a layer that is done with is unmapped again,
so that the process never has more than the window of it. Where the system cannot be told so, it reads on demand.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
import threading
from dataclasses import dataclass
from typing import Any

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
    raise MemoryError(
        f"{room >> 20} MiB for layers; {least >> 20} MiB are the least that a window of them takes"
    )


def resident(sizes: list[int], streamed: list[int]) -> int:
    """Bytes in memory: the layers that stay, and the window."""
    window = sum(sorted((sizes[i] for i in streamed), reverse=True)[:WINDOW])
    return sum(sizes) - sum(sizes[i] for i in streamed) + window


@dataclass(frozen=True, slots=True)
class Stretch:
    """A layer in the mapped file: its number, address and size in bytes."""

    layer: int
    address: int
    size: int


class Ahead:
    """Reads ahead for one image, in a thread of its own, which `at`, the layer that is being computed, keeps in step."""

    def __init__(self, stretches: list[Stretch], layers: int) -> None:
        self._stretches = stretches
        self._layers = layers
        self._at = ctypes.c_int64(layers)
        self._step = 0  # how many have begun
        self._begun = threading.Condition()
        self._closed = False
        self.reads = 0  # layers read ahead so far
        self._advise: Any = None
        self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)
        if sys.platform == "linux":
            self._advise = ctypes.CDLL(None, use_errno=True).madvise
            self._advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
            self._thread.start()

    @property
    def address(self) -> int:
        """Where the decoder writes the layer that is being computed."""
        return ctypes.addressof(self._at)

    def begin(self) -> None:
        """A step begins."""
        with self._begun:
            self._at.value = 0
            self._step += 1
            self._begun.notify()

    def end(self) -> None:
        """It is over, be it done or given up: what comes next is the beginning of another one."""
        self._at.value = self._layers

    def close(self) -> None:
        """End the thread; the mapping may go then."""
        with self._begun:
            self._closed = True
            self._begun.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        count = len(self._stretches)
        first = count  # the first that is mapped, counting on from step to step; `step` numbers begin at 1
        end = first
        while not self._closed:
            step, at = self._step, self._at.value
            done = max(step, 1) * count + sum(stretch.layer < at for stretch in self._stretches if step)
            for number in range(max(first, done - count), done):  # who is overtaken reads on demand
                self._tell(self._stretches[number % count], mmap.MADV_DONTNEED)
            first, end = max(first, done), max(end, done)
            if end - done <= AHEAD:
                self._tell(self._stretches[end % count], _POPULATE_READ)
                self.reads += 1
                end += 1
            else:
                with self._begun:
                    if not self._closed and self._step == step:
                        idle = self._at.value >= self._layers
                        self._begun.wait(None if idle and at >= self._layers else _POLL_SECONDS)

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

"""A lower tier in the host's memory, for frames of a device with memory of its own; pinned, so that copies are direct.

vLLM's CPU offloading keeps blocks in the same way. (The tier in a file is disk_places.py.)
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import torch

from llmasos.drivers.engine.kv import Stretch
from llmasos.drivers.engine.swap import Lost


class HostPlaces:
    """Places whose memory is taken a shelf at a time, when the shelf is first written."""

    shelf = 64

    def __init__(self, slots: int, frame: Stretch) -> None:
        """`frame`: one like those that will be written."""
        self._like = torch.as_tensor(frame)
        self._slots = slots
        self._shelves: dict[int, torch.Tensor] = {}
        self._lock = Lock()
        self._owner: dict[int, int] = {}

    def write(self, ctx: int, slot: int, frames: Stretch) -> None:
        if not 0 <= slot <= slot + len(frames) <= self._slots:
            raise OSError(f"host memory has {self._slots} places, not place {slot} and {len(frames) - 1} more")
        self._owner.update(dict.fromkeys(range(slot, slot + len(frames)), -1))
        self._places(slot, len(frames)).copy_(torch.as_tensor(frames), non_blocking=True)
        self._owner.update(dict.fromkeys(range(slot, slot + len(frames)), ctx))

    def read(self, ctx: int, slot: int, frames: Stretch) -> None:
        for place in range(slot, slot + len(frames)):
            if self._owner.get(place) != ctx:
                raise Lost(f"place {place} of host memory holds nothing of context {ctx}")
        torch.as_tensor(frames).copy_(self._places(slot, len(frames)), non_blocking=True)

    def _places(self, slot: int, count: int) -> torch.Tensor:
        number, start = divmod(slot, self.shelf)
        with self._lock:
            if number not in self._shelves:
                size = min(self.shelf, self._slots - number * self.shelf)
                try:
                    self._shelves[number] = torch.empty(
                        (size, *self._like.shape), dtype=self._like.dtype, pin_memory=self._like.is_cuda
                    )
                except (RuntimeError, MemoryError) as error:
                    raise OSError(f"no host memory for {size} frames: {error}") from None
            return self._shelves[number][start : start + count]

    def forget(self, ctx: int) -> None:
        self._owner = {slot: owner for slot, owner in self._owner.items() if owner != ctx}

    def wipe(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self._owner.pop(slot, None)
            if slot // self.shelf in self._shelves:
                self._places(slot, 1).zero_()

    def close(self) -> None:
        self._shelves.clear()
        self._owner.clear()

"""The KV frames of one image: one slab of bytes, frame after frame.

As in vLLM's PagedAttention a frame holds the keys and values of 16 consecutive tokens; unlike there, all
layers of a frame are adjacent, so copy-on-write and swap move one stretch of bytes per frame. Only the engine that
computes with the bytes knows what they mean: the native decoder, or torch (torch_kv.py), which may have them in a GPU.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmasos.drivers.protocol import BLOCK_TOKENS

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}

Stretch = Any
"""Frames one after the other: bytes [n, block_bytes], a numpy array, or a tensor where they are in a GPU."""

# Of an anonymous mapping: its pages are made by the call, not by the first touch of each.
_ALL_AT_ONCE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)


@dataclass(frozen=True)
class KVShape:
    """The shape of one token's KV. `dtype` is one of ITEM_BYTES."""

    layers: int
    heads: int
    head_dim: int
    dtype: str

    @property
    def name(self) -> str:
        """Names this layout of a block; no other has the same name."""
        return f"{self.dtype} {self.layers} layers x 2 x {self.heads} heads x {BLOCK_TOKENS} tokens x {self.head_dim}"

    @property
    def block_bytes(self) -> int:
        return self.layers * 2 * self.heads * BLOCK_TOKENS * self.head_dim * ITEM_BYTES[self.dtype]


class KVSlab:
    """`frames` frames as bytes [frames, block_bytes]; behind them `spare` ones that the kernel does not know of."""

    def __init__(self, shape: KVShape, frames: int, spare: int = 0) -> None:
        self.shape = shape
        self.frames = frames
        self.spare = range(frames, frames + spare)
        # By calloc: frames that no context has had yet take no memory.
        self.raw: Stretch = np.zeros((frames + spare, shape.block_bytes), dtype=np.uint8)

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copy frame src to frame dst for each `(src, dst)`, in order."""
        for src, dst in pairs:
            self.raw[dst] = self.raw[src]

    def wipe(self, frames: Sequence[int]) -> None:
        """Zero frames: what an owner has left there is not for the next one. One that nobody has written yet is left
        alone, since it takes no memory."""
        for frame in frames:
            if self.raw[frame].any():
                self.raw[frame] = 0

    def some(self, first: int, count: int) -> Stretch:
        return self.raw[first : first + count]

    def gather(self, frames: list[int]) -> np.ndarray:
        """A copy of these frames in the CPU's memory, [n, block_bytes]."""
        # The operating system's memory: for its own numpy asks for huge pages, and to make them takes 0.1 s where memory
        # is in pieces.
        size = self.raw.shape[1]
        held = mmap.mmap(-1, max(1, len(frames) * size), flags=_ALL_AT_ONCE)
        copied = np.frombuffer(held, dtype=np.uint8, count=len(frames) * size).reshape(len(frames), size)
        np.take(self.raw, np.array(frames, dtype=np.int64), axis=0, out=copied, mode="clip")
        return copied

    def wait(self) -> None:
        """Wait until copies between a device and the host are done."""


def bytes_of(stretch: Stretch) -> memoryview:
    """The bytes of frames, or a copy of them where they are in a GPU."""
    if not isinstance(stretch, np.ndarray):
        stretch = stretch.cpu().numpy()
    data: memoryview = stretch.reshape(-1).data
    return data


def fill(stretch: Stretch, write: Callable[[memoryview], None]) -> None:
    """Let `write` fill the frames' bytes. If it raises, they are undefined."""
    if isinstance(stretch, np.ndarray):
        write(bytes_of(stretch))
        return
    import torch  # they are in a GPU, so it has been imported

    into = np.empty(tuple(stretch.shape), dtype=np.uint8)
    write(bytes_of(into))
    stretch.copy_(torch.from_numpy(into))

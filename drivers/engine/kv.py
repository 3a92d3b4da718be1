"""The KV frames of one image: one slab, block-major, so that a frame (all layers, K and V) is contiguous.

As in vLLM's PagedAttention a frame holds the keys and values of 16 consecutive tokens; unlike there, all
layers of a frame are adjacent, so copy-on-write and swap move one stretch of bytes per frame. The slab starts zeroed
and slots past a context's end are zeroed when it enters a frame: masked slots take part in attention with weight
0, and 0 times a NaN left behind by somebody else would be NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy
import torch

from drivers.protocol import BLOCK_TOKENS


@dataclass(frozen=True)
class KVShape:
    """What one token's KV is made of."""

    layers: int
    heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """What tells this layout of a block from any other."""
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{dtype} {self.layers} layers x 2 x {self.heads} heads x {BLOCK_TOKENS} tokens x {self.head_dim}"
        )

    @property
    def block_bytes(self) -> int:
        return self.layers * 2 * self.heads * BLOCK_TOKENS * self.head_dim * self.dtype.itemsize


class KVSlab:
    """`frames` frames as one tensor [frames, layers, 2, heads, block_tokens, head_dim]; behind them `spare` ones that the
    kernel knows nothing of."""

    def __init__(self, shape: KVShape, frames: int, device: torch.device, spare: int = 0) -> None:
        self.shape = shape
        self.frames = frames
        self.spare = range(frames, frames + spare)
        form = (frames + spare, shape.layers, 2, shape.heads, BLOCK_TOKENS, shape.head_dim)
        if device.type == "cpu":
            # calloc, which torch.zeros does not use: frames that no context has had yet take no memory.
            untouched = numpy.zeros((frames + spare) * shape.block_bytes, dtype=numpy.uint8)
            self.data = torch.from_numpy(untouched).view(shape.dtype).view(form)
        else:
            self.data = torch.zeros(form, dtype=shape.dtype, device=device)

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copy frame src to frame dst for each `(src, dst)`, in order."""
        for src, dst in pairs:
            self.data[dst].copy_(self.data[src])

    def clear(self, frame: int, offset: int) -> None:
        """Zero a frame's slots from `offset` on."""
        self.data[frame, :, :, :, offset:].zero_()

    # A layer's tokens and half-blocks as rows, so that one index tensor, made once a step, serves every layer:
    # rows of layer l are those of layer 0 seen through a view that starts further on.

    @cached_property
    def token_rows(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Per layer the K and the V slots as [rows, head_dim]; `token_index` numbers the rows."""
        flat = self.data.view(-1, self.shape.head_dim)
        half = self.shape.heads * BLOCK_TOKENS
        return [(flat[2 * i * half :], flat[(2 * i + 1) * half :]) for i in range(self.shape.layers)]

    @cached_property
    def block_rows(self) -> list[torch.Tensor]:
        """Per layer the (frame, K or V, head) stretches as [rows, block_tokens * head_dim]; see `block_index`."""
        flat = self.data.view(-1, BLOCK_TOKENS * self.shape.head_dim)
        return [flat[2 * i * self.shape.heads :] for i in range(self.shape.layers)]

    def token_index(self, frames: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Rows of `token_rows` for tokens at (frame, offset), [tokens] each -> [tokens * heads]."""
        shape = self.shape
        heads = torch.arange(shape.heads) * BLOCK_TOKENS
        first = frames * (shape.layers * 2 * shape.heads * BLOCK_TOKENS) + offsets
        return (first[:, None] + heads).view(-1)

    def block_index(self, table: torch.Tensor) -> torch.Tensor:
        """Rows of `block_rows` for frames [runs, blocks] -> [2 * runs * heads * blocks], K's first."""
        shape = self.shape
        part = (torch.arange(2) * shape.heads)[:, None, None, None]
        heads = torch.arange(shape.heads)[None, None, :, None]
        return (table[None, :, None, :] * (shape.layers * 2 * shape.heads) + part + heads).reshape(-1)

"""KV frames as torch sees them: a slab whose bytes are a tensor [frames, layers, 2, heads, block_tokens, head_dim].

The slab starts zeroed and slots past a context's end are zeroed when it enters a frame: masked slots take part in
attention with weight 0, and 0 times a NaN that another context left there would be NaN.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from llmasos.drivers.engine.kv import KVShape, KVSlab
from llmasos.drivers.protocol import BLOCK_TOKENS


class TorchSlab(KVSlab):
    """A slab on a device; on the CPU `data` is a view of its bytes."""

    def __init__(self, shape: KVShape, frames: int, device: torch.device, spare: int = 0) -> None:
        if device.type == "cpu":
            super().__init__(shape, frames, spare)
            raw = torch.from_numpy(self.raw)
        else:
            self.shape, self.frames, self.spare = shape, frames, range(frames, frames + spare)
            self.raw = raw = torch.zeros((frames + spare, shape.block_bytes), dtype=torch.uint8, device=device)
        self._see(raw)

    @classmethod
    def over(cls, slab: KVSlab) -> TorchSlab:
        """The frames of another slab in the CPU's memory."""
        if isinstance(slab, TorchSlab):
            return slab
        own = cls.__new__(cls)
        own.shape, own.frames, own.spare, own.raw = slab.shape, slab.frames, slab.spare, slab.raw
        own._see(torch.from_numpy(slab.raw))
        return own

    def _see(self, raw: torch.Tensor) -> None:
        shape = self.shape
        self.dtype: torch.dtype = getattr(torch, shape.dtype)
        form = (len(raw), shape.layers, 2, shape.heads, BLOCK_TOKENS, shape.head_dim)
        self.data = raw.view(-1).view(self.dtype).view(form)

    def gather(self, frames: list[int]) -> np.ndarray:
        if isinstance(self.raw, np.ndarray):
            return super().gather(frames)
        picked: np.ndarray = self.raw[torch.tensor(frames, dtype=torch.long, device=self.raw.device)].cpu().numpy()
        return picked

    def wait(self) -> None:
        if self.data.device.type == "cuda":
            torch.cuda.current_stream().synchronize()

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

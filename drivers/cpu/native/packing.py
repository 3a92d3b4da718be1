"""Weights in the order in which the native products read them (native.h), quantised on the way.

8 bits: one scale per output column, the greatest magnitude over 127, as in the torch engine's int8. 4 bits: one scale for
every 32 inputs of a column, as in llama.cpp's Q4_0 and Q4_K, in bfloat16; the scale is chosen among a few so that the
squared error is least, since with 16 values to choose from the greatest magnitude is often not worth keeping exactly.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import suppress

import torch

from drivers.cpu.native.library import GROUP, ITEM, LANES, Matrix

PAGE = 4096  # bytes
_TINY = 1e-30  # in place of the maximum of a column of zeros
_ALIGNMENT = 64  # bytes
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)  # of the scale of a group, tried for the least error
_PIECE = 2048  # columns quantised at a time
# Shared memory, Python's default for an anonymous map, has no huge pages on most systems.
_PRIVATE: dict[str, int] = (
    {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
)


class Arena:
    """One stretch of memory for an image's weights, in huge pages where the system has them: with small ones a third of
    the time of reading goes into finding pages. Reserved at once, taken as it is written.

    Places in it are offsets, so that its bytes mean the same wherever they are; 0 is nobody's, for NULL.
    """

    def __init__(self, size: int) -> None:
        try:
            self._map = mmap.mmap(-1, PAGE + size, **_PRIVATE)
        except OSError as error:
            raise MemoryError(f"no memory for {size >> 20} MiB of weights: {error.strerror}") from None
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a system without them
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        self._size = PAGE + size
        self.base: int = self._bytes.data_ptr()
        self.used = PAGE

    def put(self, tensor: torch.Tensor) -> int:
        """Copy the tensor into the arena; returns its offset."""
        count, offset = tensor.numel() * tensor.itemsize, self.used
        if offset + count > self._size:
            raise MemoryError(f"an arena of {self._size} bytes is too small")
        self._bytes[offset : offset + count].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        self.used += -(-count // _ALIGNMENT) * _ALIGNMENT
        return offset

    def page(self) -> int:
        """Begin a new page; returns its offset."""
        self.used = -(-self.used // PAGE) * PAGE
        return self.used

    def bytes(self, first: int, end: int) -> memoryview:
        """The bytes themselves, writable."""
        return memoryview(self._map)[first:end]


def packed_bytes(columns: int, inputs: int, bits: int) -> int:
    """What a matrix takes in an arena, at most."""
    columns, inputs = -(-columns // ITEM) * ITEM, -(-inputs // GROUP) * GROUP
    return columns * inputs * bits // 8 + columns * (12 + inputs // GROUP * 2) + 4 * _ALIGNMENT


def pack(arena: Arena, weight: torch.Tensor, bias: torch.Tensor | None, bits: int) -> Matrix:
    """`weight` [columns, inputs] and `bias` [columns] of any float type -> 8 or 4 bits in the arena, as offsets."""
    columns, inputs = weight.shape
    unit = 4 if bits == 8 else GROUP
    weight = torch.nn.functional.pad(weight, (0, -inputs % unit, 0, -columns % ITEM))
    rows, wide = weight.shape
    matrix = Matrix(columns=rows, inputs=wide, bits=bits)
    if bits == 8:
        quantised, scale = _quantise8(weight)
        matrix.data = arena.put(quantised.view(rows // LANES, LANES, wide // 4, 4).transpose(1, 2))
        matrix.scale = arena.put(scale)
        matrix.correction = arena.put(-128 * quantised.sum(1, dtype=torch.int32))
    else:
        quantised, scale = _quantise4(weight)
        eight = quantised.view(rows // LANES, LANES, wide // 8, 2, 4)
        matrix.data = arena.put((eight[:, :, :, 0] | eight[:, :, :, 1] << 4).transpose(1, 2))
        matrix.group_scale = arena.put(scale.view(rows // LANES, LANES, wide // GROUP).transpose(1, 2))
    if bias is not None:
        matrix.bias = arena.put(torch.nn.functional.pad(bias.float(), (0, rows - columns)))
    return matrix


def interleave(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Rows of both [intermediate, ...] in turns of 16, padded with zeros, so that a product has both at hand."""
    parts = []
    for tensor in (gate, up):
        padding = (0, 0) * (tensor.dim() - 1) + (0, -len(tensor) % LANES)
        padded = torch.nn.functional.pad(tensor, padding)
        parts.append(padded.view(-1, LANES, *tensor.shape[1:]))
    return torch.stack(parts, 1).flatten(0, 2)


def _pieces(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    for first in range(0, len(weight), _PIECE):
        yield weight[first : first + _PIECE]


def _quantise8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    quantised, scales = [], []
    for piece in _pieces(weight):
        scale = piece.float().abs().amax(1).clamp_min_(_TINY) / 127
        quantised.append(piece.float().div_(scale[:, None]).round_().to(torch.int8))
        scales.append(scale)
    return torch.cat(quantised), torch.cat(scales)


def _quantise4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values 0..15 (uint8, [columns, inputs]) that mean (value - 8) * scale, and scales [columns, groups] in bfloat16."""
    quantised, scales = [], []
    for piece in _pieces(weight):
        groups = piece.float().view(len(piece), -1, GROUP)
        # The value of the greatest magnitude becomes -8, the one end that the other lacks.
        at = groups.abs().argmax(2, keepdim=True)
        full = groups.gather(2, at) / -8
        least = torch.full_like(full, float("inf"))
        best, values = full.to(torch.bfloat16), torch.empty_like(groups, dtype=torch.uint8)
        for shrink in _SHRINKS:
            scale = (full * shrink).to(torch.bfloat16)
            divisor = torch.where(scale == 0, 1.0, scale.float())
            rounded = (groups / divisor).round_().clamp_(-8, 7)
            error = (rounded * scale.float() - groups).square_().sum(2, keepdim=True)
            better = error < least
            least = torch.where(better, error, least)
            best = torch.where(better, scale, best)
            values = torch.where(better, (rounded + 8).to(torch.uint8), values)
        quantised.append(values.flatten(1))
        scales.append(best.flatten(1))
    return torch.cat(quantised), torch.cat(scales)

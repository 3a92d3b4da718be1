"""The items of GGUF tensors: blocks of integers and their scales, as fp32 or as integers.

ggml's block formats: 32 or 256 items of a row share scales. The plain ones are read here, so that a usual start needs no
further import; for all others the `gguf` package has the tables and dequantisers. Values are equal to its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from llmasos.modelfiles.tensors import Columns, Packed
from llmasos.syscalls.errno import Errno, SyscallError

PLAIN = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # kept as they are
PACKED = {"Q8_0": (8, 34), "Q4_0": (4, 18)}  # bits, bytes of a block
_BLOCK = 32
_PIECE = 1 << 22  # items whose scales are examined at a time
_LARGE = 1 << 24  # items: of a larger matrix the integers are read twice instead of held


def float32(kind: str, rows: np.ndarray) -> np.ndarray:
    """The values [rows, items] in fp32 of a tensor's bytes [rows, bytes]. Raises ENOTSUP: there is no dequantiser for
    them."""
    with np.errstate(all="ignore"):  # scales in a file need not be finite, and then its values are not either
        if kind in PACKED:
            scale, values = _parts(kind, rows)
            if kind == "Q4_0":
                values = values.view(np.int8) - np.int8(8)
            found = values.reshape(*scale.shape, _BLOCK).astype(np.float32)
            found *= scale[..., None]
            return found.reshape(len(rows), -1)
        quants, number = _dequantiser(kind)
        return np.asarray(quants.dequantize(np.ascontiguousarray(rows), number), dtype=np.float32)


def known(kind: str) -> bool:
    """Whether `float32` reads it."""
    try:
        return kind in PLAIN or kind in PACKED or _dequantiser(kind) is not None
    except SyscallError:
        return False


def packed(kind: str, rows: np.ndarray) -> Packed | None:
    """The integers of a matrix's bytes [columns, bytes]; None for items that are not stored as such."""
    if kind not in PACKED:
        return None
    scale, values = _parts(kind, rows)
    return Packed(PACKED[kind][0], _BLOCK, values, scale)


def packed_in_pieces(kind: str, shape: tuple[int, ...], read: Callable[[int, int], np.ndarray]) -> Packed | None:
    """The integers of a matrix of this shape; `read(first, end)` gives bytes of its columns."""
    columns, inputs = shape
    if kind not in PACKED or columns * inputs <= _LARGE:
        return packed(kind, read(0, columns))
    scale = np.empty((columns, inputs // _BLOCK), np.float32)
    step = max(1, _PIECE // inputs)
    for first in range(0, columns, step):
        end = min(first + step, columns)
        scale[first:end] = _scales(kind, read(first, end))
    values = Columns((columns, inputs), lambda first, end: _parts(kind, read(first, end))[1])
    return Packed(PACKED[kind][0], _BLOCK, values, scale)


def _scales(kind: str, rows: np.ndarray) -> np.ndarray:
    """[rows, blocks] in fp32."""
    blocks = rows.reshape(len(rows), -1, PACKED[kind][1])
    return np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0].astype(np.float32)


def _parts(kind: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales [rows, blocks] in fp32 and integers [rows, items]: int8, or 0..15 of which 8 is zero."""
    bits, size = PACKED[kind]
    blocks, scale = rows.reshape(len(rows), -1, size), _scales(kind, rows)
    items = np.ascontiguousarray(blocks[..., 2:])
    if bits == 8:
        return scale, items.view(np.int8).reshape(len(rows), -1)
    values = np.concatenate([items & np.uint8(15), items >> np.uint8(4)], axis=-1)  # low halves come first
    return scale, values.reshape(len(rows), -1)


@functools.cache
def _dequantiser(kind: str) -> tuple[Any, Any]:
    """The gguf package's module and its number of the kind."""
    from gguf import GGMLQuantizationType, quants

    number = GGMLQuantizationType.__members__.get(kind)
    if number is None or number not in quants._type_traits:
        raise SyscallError(
            Errno.ENOTSUP,
            f"items of {kind} are not read: the gguf package has no dequantiser for them; take another quantisation of "
            "this model (Q4_K_M, Q8_0)",
        )
    return quants, number

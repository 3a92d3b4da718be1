"""Weights in the order in which the native products read them (native.h), quantised on the way or taken as they are.

fp32 and bf16 are only put in order. 8 bits: one scale per output column, the greatest magnitude over 127, as in the torch
engine's int8. 4 bits: one scale for every 32 inputs of a column, as in llama.cpp's Q4_0 and Q4_K, in bfloat16. Of a few
scales the one with the least squared error is chosen: with 16 values it is often not worth keeping the greatest magnitude
exactly. The integers of a quantised checkpoint keep their own scales and zeros, without loss. Large matrices are packed
in pieces, by a thread for each core: numpy releases the interpreter's lock.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np

from llmasos.drivers.cpu.native.library import BFLOAT16, FLOAT16, FLOAT32, GROUP, ITEM, LANES, OWN, Matrix
from llmasos.modelfiles.tensors import ByRows, Packed, Tensor, bfloat16_to_float32, float32_to_bfloat16
from llmasos.syscalls.errno import Errno, SyscallError

FORMS = ("fp32", "bf16", "int8", "int4")
BITS = {"fp32": 32, "bf16": 16, "int8": 8, "int4": 4}  # of a weight, without its scale
PAGE = 4096  # bytes
_UNIT = {"fp32": 1, "bf16": 2, "int8": 4, "int4": GROUP}  # inputs are padded to a multiple of it
_TINY = np.float32(1e-30)  # in place of the maximum of a column of zeros
_ALIGNMENT = 64  # bytes
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)  # of the scale of a group, tried for the least error
_PIECE = 1 << 18  # weights packed at a time: intermediate values stay in a core's cache
# Shared memory, Python's default for an anonymous map, has no huge pages on most systems.
_PRIVATE: dict[str, int] = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}

Array = np.ndarray[Any, np.dtype[Any]]
Rows = TypeVar("Rows", Array, Tensor, Packed)


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
        self._bytes = np.frombuffer(self._map, dtype=np.uint8)
        self._size = PAGE + size
        self.base: int = self._bytes.ctypes.data
        self.used = PAGE

    def put(self, array: Array) -> int:
        """Copy the array into the arena (bfloat16 as its bits, uint16); returns its offset."""
        offset, room = self.take(array.shape, array.dtype)
        room[...] = array
        return offset

    def take(self, shape: tuple[int, ...], dtype: Any) -> tuple[int, Array]:
        """Room for an array, zeros so far: its offset, and the array itself."""
        items, offset = np.dtype(dtype), self.used
        count = items.itemsize * int(np.prod(shape, dtype=np.int64))
        if offset + count > self._size:
            raise MemoryError(f"an arena of {self._size} bytes is too small")
        self.used += -(-count // _ALIGNMENT) * _ALIGNMENT
        return offset, self._bytes[offset : offset + count].view(items).reshape(shape)

    def page(self) -> int:
        """Begin a new page; returns its offset."""
        self.used = -(-self.used // PAGE) * PAGE
        return self.used

    def bytes(self, first: int, end: int) -> memoryview:
        """The bytes themselves, writable."""
        return memoryview(self._map)[first:end]


MOST_OF_GROUP, USUAL_OF_GROUP = 5, 3  # bytes of a checkpoint's scale and zero: a scale in fp32, or in 16 bits


def packed_bytes(columns: int, inputs: int, form: str, of_group: int = 0) -> int:
    """What a matrix takes in an arena, at most; `of_group` are the bytes of a group's scale and zero where a checkpoint's
    integers are taken as they are (`pack_as_is`)."""
    columns, inputs = _up(columns, ITEM), _up(inputs, GROUP)
    a_group = of_group or (2 if form == "int4" else 0)
    return columns * inputs * BITS[form] // 8 + columns * (12 + inputs // GROUP * a_group) + 5 * _ALIGNMENT


def pack(arena: Arena, weight: ByRows | Array, bias: Array | None, form: str) -> Matrix:
    """`weight` [columns, inputs] (an array is fp32; else F32, BF16 or F16) and `bias` [columns] in one of FORMS in
    the arena, as offsets."""
    tensor = Tensor("F32", weight) if isinstance(weight, np.ndarray) else weight
    columns, inputs = tensor.shape
    rows, wide = _up(columns, ITEM), _up(inputs, _UNIT[form])
    blocks, groups = rows // LANES, wide // GROUP
    matrix = Matrix(columns=rows, inputs=wide, bits=BITS[form])
    words = wide * BITS[form] // 32  # a column's inputs in words of 32 bits, which are moved as wholes
    matrix.data, data = arena.take((blocks, words, LANES), np.uint32)
    if form == "int8":
        matrix.scale, scale = arena.take((rows,), np.float32)
        matrix.correction, correction = arena.take((rows,), np.int32)
    elif form == "int4":
        matrix.group_scale, group_scale = arena.take((blocks, groups, LANES), np.uint16)
        matrix.group_kind = OWN

    def work(first: int, end: int) -> None:
        piece = tensor.rows(first, min(end, columns))
        at = slice(first // LANES, end // LANES)
        values: Array
        if form == "bf16":
            bits = piece.data if piece.kind == "BF16" else float32_to_bfloat16(piece.float32())
            values = _padded(bits, end - first, wide)
        elif form == "fp32":
            values = _padded(piece.float32(), end - first, wide)
        elif form == "int8":
            values, scale[first:end] = _quantise8(_padded(piece.float32(), end - first, wide))
            correction[first:end] = -128 * values.sum(1, dtype=np.int32)
        else:
            quantised, scales = _quantise4(_padded(piece.float32(), end - first, wide))
            values = _halves(quantised)
            group_scale[at] = _by_lanes(scales)
        data[at] = _by_lanes(np.ascontiguousarray(values).view(np.uint32))

    _in_pieces(rows, wide, work)
    matrix.bias = _put_bias(arena, bias, rows)
    return matrix


def pack_as_is(arena: Arena, packed: Packed, bias: Array | None) -> Matrix:
    """The integers of a quantised checkpoint, with their own scales and zeros: no bit is lost. Raises ENOTSUP for groups
    that are neither a multiple of 32 nor the whole column."""
    columns, inputs = packed.values.shape
    whole = packed.scale.shape[1] == 1 and packed.group >= inputs
    if not whole and packed.group % GROUP:
        raise SyscallError(
            Errno.ENOTSUP,
            f"the native forms hold groups of {GROUP}, of a multiple of it and of whole columns, not of {packed.group}",
        )
    zero = packed.zero
    if zero is not None and np.all(zero == (8 if packed.bits == 4 else 0)):
        zero = None
    grouped = packed.bits == 4 or not whole or zero is not None
    rows, wide = _up(columns, ITEM), _up(inputs, GROUP if grouped else 4)
    blocks, groups = rows // LANES, wide // GROUP
    matrix = Matrix(columns=rows, inputs=wide, bits=packed.bits)
    matrix.data, data = arena.take((blocks, wide * packed.bits // 32, LANES), np.uint32)
    if not grouped:
        matrix.scale = arena.put(_padded(packed.scale.astype(np.float32), rows, 1)[:, 0])
        matrix.correction, correction = arena.take((rows,), np.int32)
    else:
        times = groups if whole else packed.group // GROUP

        def by_groups(array: Array) -> Array:
            return _by_lanes(_padded(np.repeat(array, times, axis=1)[:, :groups], rows, groups))

        matrix.group_kind, scale = _exact(packed.scale)
        matrix.group_scale = arena.put(by_groups(scale))
        if zero is not None:
            matrix.group_zero = arena.put(by_groups(zero.astype(np.int8)))

    def work(first: int, end: int) -> None:
        values = _padded(packed.values[first:end], end - first, wide)
        if not grouped:
            correction[first:end] = -128 * values.sum(1, dtype=np.int32)
        if packed.bits == 4:
            values = _halves(values)
        data[first // LANES : end // LANES] = _by_lanes(np.ascontiguousarray(values).view(np.uint32))

    _in_pieces(rows, wide, work)
    matrix.bias = _put_bias(arena, bias, rows)
    return matrix


def interleave(gate: Rows, up: Rows) -> Rows:
    """Rows of both [intermediate, ...] in turns of 16, padded with zeros, so that a product has both at hand."""

    def both(one: Array, other: Array) -> Array:
        blocks = -(-len(one) // LANES)
        turns = np.zeros((blocks, 2, LANES, *one.shape[1:]), one.dtype)
        for i, rows in enumerate((one, other)):
            full = len(rows) // LANES
            turns[:full, i] = rows[: full * LANES].reshape(full, LANES, *one.shape[1:])
            if full < blocks:
                turns[full, i, : len(rows) - full * LANES] = rows[full * LANES :]
        return turns.reshape(-1, *one.shape[1:])

    made: Rows = _combined(both, gate, up)
    return made


def stack(*parts: Rows) -> Rows:
    """Rows of several matrices, one behind the other, as one matrix."""
    made: Rows = _combined(lambda *rows: np.concatenate(rows), *parts)
    return made


def _combined(how: Callable[..., Array], *parts: Any) -> Any:
    """`how` of the parts' arrays. Tensors of several kinds become fp32; packed parts have one form."""
    first = parts[0]
    if isinstance(first, Packed):
        return Packed(**_combined_packed(how, *parts))
    if not isinstance(first, Tensor):
        return how(*parts)
    if len({each.kind for each in parts}) > 1:
        return Tensor("F32", how(*(each.float32() for each in parts)))
    return Tensor(first.kind, how(*(each.data for each in parts)))


def _combined_packed(how: Callable[..., Array], *parts: Any) -> dict[str, Any]:
    bits, group, width = parts[0].bits, parts[0].group, parts[0].scale.shape[1]
    if any((each.bits, each.group, each.scale.shape[1]) != (bits, group, width) for each in parts):
        raise ValueError("packed matrices of several forms cannot be made one")
    values, scale = how(*(np.asarray(each.values) for each in parts)), how(*(each.scale for each in parts))
    zero = None
    if any(each.zero is not None for each in parts):
        plain = np.int8(8 if bits == 4 else 0)
        zero = how(*(np.full(each.scale.shape, plain) if each.zero is None else each.zero for each in parts))
    return {"bits": bits, "group": group, "values": values, "scale": scale, "zero": zero}


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _in_pieces(rows: int, wide: int, work: Callable[[int, int], None]) -> None:
    """Call `work` for ranges of rows, whole items each, until all are done."""
    size = max(ITEM, _PIECE // max(1, wide) // ITEM * ITEM)
    pieces = [(first, min(first + size, rows)) for first in range(0, rows, size)]
    if len(pieces) == 1:
        work(*pieces[0])
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(min(cores, len(pieces))) as threads:
        for _ in threads.map(lambda piece: work(*piece), pieces):
            pass  # what one raised is raised here


def _padded(rows: Array, count: int, wide: int) -> Array:
    if rows.shape == (count, wide):
        return rows
    whole = np.zeros((count, wide), rows.dtype)
    whole[: rows.shape[0], : rows.shape[1]] = rows
    return whole


def _by_lanes(rows: Array) -> Array:
    """[rows, n] -> [rows / LANES, n, LANES]."""
    return rows.reshape(-1, LANES, rows.shape[1]).transpose(0, 2, 1)


def _halves(values: Array) -> Array:
    """Values 0..15, [rows, inputs] -> the low halves for inputs 0..3, the high ones for 4..7 of each eight, in words."""
    words = np.ascontiguousarray(values).view(np.uint32)
    return words[:, 0::2] | words[:, 1::2] << np.uint32(4)


def _put_bias(arena: Arena, bias: Array | None, rows: int) -> int | None:
    if bias is None:
        return None
    offset, room = arena.take((rows,), np.float32)
    room[: len(bias)] = bias
    return offset


def _exact(scale: Array) -> tuple[int, Array]:
    """The smallest kind of float that holds the scales without loss, and the scales in it (bfloat16 as bits)."""
    scale = np.ascontiguousarray(scale, np.float32)
    with np.errstate(over="ignore"):
        short, half = float32_to_bfloat16(scale), scale.astype(np.float16)
        if np.array_equal(bfloat16_to_float32(short), scale):
            return BFLOAT16, short
        if np.array_equal(half.astype(np.float32), scale):
            return FLOAT16, half
    return FLOAT32, scale


def _quantise8(piece: Array) -> tuple[Array, Array]:
    """Values (int8) and scales (fp32) of columns [columns, inputs]."""
    scale = np.maximum(np.maximum(piece.max(1), -piece.min(1)), _TINY) / np.float32(127)
    quantised = piece / scale[:, None]
    with np.errstate(invalid="ignore"):
        return np.rint(quantised, out=quantised).astype(np.int8), scale


def _quantise4(piece: Array) -> tuple[Array, Array]:
    """Values 0..15 (uint8, [columns, inputs]) that mean (value - 8) * scale, and scales [columns, groups] in bfloat16.

    Groups are worked on as columns of [GROUP, groups], so that whatever is done runs through memory in order. Errors are
    summed as torch does on a CPU with AVX-512: halves first, then lane by lane."""
    groups = np.ascontiguousarray(piece.reshape(-1, GROUP).T)
    # The value of the greatest magnitude becomes -8, the one end that the other lacks.
    high, low = groups.max(0), groups.min(0)
    full = np.where(high > -low, high, low)
    tied = np.flatnonzero(~(high > -low) & ~(high < -low))  # the first counts then
    full[tied] = groups[np.abs(groups[:, tied]).argmax(0), tied]
    full /= np.float32(-8)
    least = np.full(full.shape, np.inf, np.float32)
    best, values = float32_to_bfloat16(full), np.zeros(groups.shape, np.int8)
    with np.errstate(all="ignore"):
        for shrink in _SHRINKS:
            short = float32_to_bfloat16(full * np.float32(shrink))
            scale = bfloat16_to_float32(short)
            rounded = groups / np.where(scale == 0, np.float32(1), scale)
            np.clip(np.rint(rounded, out=rounded), -8, 7, out=rounded)
            squares = rounded * scale
            squares -= groups
            squares *= squares
            lanes = squares[: GROUP // 2] + squares[GROUP // 2 :]
            error = lanes[0]
            for lane in lanes[1:]:
                error = error + lane
            better = error < least
            least[better] = error[better]
            best[better] = short[better]
            np.copyto(values, rounded, where=better, casting="unsafe")
    values += 8
    columns = len(piece)
    return values.T.reshape(columns, -1).view(np.uint8), best.reshape(columns, -1)

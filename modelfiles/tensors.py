"""A model's weights as named arrays, read from its files, for engines without torch.

safetensors' own library reads into torch, jax or numpy, and numpy has no bfloat16 and no float8; a header is a few lines
of JSON, so it is read here, every offset against the file's length. The array keeps the meaning of its items:
`Tensor.kind` is safetensors' name of their type, and `float32` gives their values.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llmasos.modelfiles import files, source
from llmasos.modelfiles.spans import Spans
from llmasos.syscalls.errno import Errno, SyscallError

# safetensors' item types that numpy can hold; those without a numpy type are kept as their bits.
ITEMS: dict[str, np.dtype[np.generic]] = {
    name: np.dtype(kind)
    for name, kind in {
        "BOOL": "u1", "U8": "u1", "I8": "i1", "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E8M0": "u1", "I16": "<i2",
        "U16": "<u2", "F16": "<f2", "BF16": "<u2", "I32": "<i4", "U32": "<u4", "F32": "<f4", "I64": "<i8", "U64": "<u8",
        "F64": "<f8",
    }.items()
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """One array. `data` has the shape of the tensor and the items of ITEMS: for BF16 and F8 their bits."""

    kind: str
    data: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def rows(self, first: int, end: int) -> Tensor:
        return Tensor(self.kind, self.data[first:end])

    def float32(self) -> np.ndarray:
        """The values in fp32: a copy, or (for F32) the array itself. Raises ENOTSUP for item types without a value of
        their own."""
        if self.kind == "F32":
            return self.data
        if self.kind == "BF16":
            return bfloat16_to_float32(self.data)
        if self.kind in ("F16", "F64"):
            return self.data.astype(np.float32)
        raise SyscallError(Errno.ENOTSUP, f"a tensor of {self.kind} has no values without its scales")


class ByRows(Protocol):
    """A matrix that is read piece by piece: a vocabulary's is often a third of a model, and all of it in fp32 more than
    the model will ever take."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def rows(self, first: int, end: int) -> Tensor:
        """The rows from `first` to `end`; fewer at the matrix's end. Several threads may call it."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """A `ByRows` whose pieces `read(first, end)` gives."""

    shape: tuple[int, ...]
    read: Callable[[int, int], Tensor]

    def rows(self, first: int, end: int) -> Tensor:
        return self.read(first, min(end, self.shape[0]))


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """fp32 of bfloat16's bits (uint16): exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float32_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Bits (uint16) of the bfloat16 nearest to fp32 values, ties to even, as torch rounds; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


@dataclass(frozen=True, slots=True)
class Columns:
    """Integers [columns, inputs], read when a slice of columns is asked for."""

    shape: tuple[int, int]
    read: Callable[[int, int], np.ndarray]

    def __getitem__(self, columns: slice) -> np.ndarray:
        first, end, _ = columns.indices(self.shape[0])
        return self.read(first, end)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)


@dataclass(frozen=True, slots=True)
class Packed:
    """A quantised matrix [columns, inputs] whose integers the native decoder can hold as they are:
    weight = (values - zero) * scale, where each `group` inputs of a column share a scale and a zero.
    """

    bits: int
    group: int
    values: np.ndarray | Columns  # int8 [columns, inputs] for 8 bits, uint8 (0..15) for 4
    # fp32 [columns, inputs / group], with no more bits than float16 or bfloat16 has unless `group` is the whole column
    scale: np.ndarray
    zero: np.ndarray | None = None  # int8 [columns, inputs / group]; None: 0 for 8 bits, 8 for 4


class Weights(Protocol):
    """The source of a model's weights, whatever its files look like. Names are those of transformers' checkpoints."""

    def names(self) -> Collection[str]: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the weight itself, not of what is stored. Raises EIO if there is no such tensor."""

    def get(self, name: str) -> Tensor:
        """The weight's values: F32, F16 or BF16, dequantised if they are stored otherwise. Raises EIO."""

    def by_rows(self, name: str) -> ByRows:
        """The same values, read when they are asked for if possible. Raises EIO."""

    def packed(self, name: str) -> Packed | None:
        """The weight's integers, if they are stored as such and native forms can hold them."""


class SafetensorsWeights:
    """The tensors of a directory of safetensors files; reads only what is asked for."""

    def __init__(self, directory: Path) -> None:
        """Raises EIO naming a broken file."""
        self._where: dict[str, tuple[Path, source.Entry]] = {}
        self._spans = Spans()
        self.directory = directory
        for file, entries in source.read_headers(directory):
            for name, entry in entries.items():
                self._where[name] = file, entry

    def names(self) -> Collection[str]:
        return self._where.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name)[1].shape

    def kind(self, name: str) -> str:
        """The type of its items. Raises EIO if there is no such tensor, ENOTSUP for an unknown type."""
        file, entry = self._entry(name)
        if entry.kind not in ITEMS:
            raise SyscallError(Errno.ENOTSUP, f"{file}: tensor {name} has items of {entry.kind!r}, which is not known")
        return entry.kind

    def get(self, name: str) -> Tensor:
        shape = self.shape(name)
        return self._part(name, 0, prod(shape), shape)

    def by_rows(self, name: str) -> ByRows:
        shape = self.shape(name)
        a_row = prod(shape[1:])
        return Pieces(shape, lambda first, end: self._part(name, first * a_row, end * a_row, (end - first, *shape[1:])))

    def _part(self, name: str, first: int, end: int, shape: tuple[int, ...]) -> Tensor:
        """Items of a tensor, counted as they lie."""
        kind, (file, entry) = self.kind(name), self._entry(name)
        size = ITEMS[kind].itemsize
        found = self._spans.read(file, entry.offset + first * size, (end - first) * size)
        return Tensor(kind, found.view(ITEMS[kind]).reshape(shape))

    def packed(self, name: str) -> Packed | None:
        return None

    def _entry(self, name: str) -> tuple[Path, source.Entry]:
        try:
            return self._where[name]
        except KeyError:
            raise files.broken(
                f"the weights in {self.directory} have no tensor {name}; download the model again, whole",
            ) from None


Progress = Callable[[float], None]

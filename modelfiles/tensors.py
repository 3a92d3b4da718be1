"""A model's weights as named arrays, mapped from its files, for whoever runs them without torch.

safetensors' own library reads into torch, jax or numpy, and numpy has no bfloat16 and no float8; a header is a few lines
of JSON, so it is read here, every offset against the file's length. What items mean stays with the array: `Tensor.kind`
is safetensors' name of their type, and `float32` is what they say.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from modelfiles import files, source
from syscalls.errno import Errno, SyscallError

# safetensors' item types that numpy can hold; those numpy has no name for are kept as their bits.
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
    """One array. `data` has the shape of the tensor and items as ITEMS says: of BF16 and F8 their bits."""

    kind: str
    data: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def float32(self) -> np.ndarray:
        """The values in fp32: a copy, or (of F32) the array itself. Raises ENOTSUP for kinds that say nothing alone."""
        if self.kind == "F32":
            return self.data
        if self.kind == "BF16":
            return bfloat16_to_float32(self.data)
        if self.kind in ("F16", "F64"):
            return self.data.astype(np.float32)
        raise SyscallError(Errno.ENOTSUP, f"a tensor of {self.kind} has no values without its scales")


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """fp32 of bfloat16's bits (uint16): exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float32_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Bits (uint16) of the bfloat16 nearest to fp32 values, ties to even, as torch rounds; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (
        (bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))) >> np.uint32(16)
    ).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


@dataclass(frozen=True, slots=True)
class Packed:
    """A quantised matrix [columns, inputs] whose integers the native decoder can hold as they are:
    weight = (values - zero) * scale, each `group` inputs of a column sharing a scale and a zero.

    values: int8 [columns, inputs] for 8 bits, uint8 (0..15) for 4; scale: fp32 [columns, inputs / group], with no more
    bits than float16 or bfloat16 has unless `group` is the whole column; zero: int8 [columns, inputs / group], None: 0
    for 8 bits, 8 for 4.
    """

    bits: int
    group: int
    values: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None = None


class Weights(Protocol):
    """Where a model's weights come from, whatever their files look like. Names are those of transformers' checkpoints."""

    def names(self) -> Collection[str]: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the weight itself, not of what is stored. Raises EIO if there is no such tensor."""

    def get(self, name: str) -> Tensor:
        """The weight's values: F32, F16 or BF16, dequantised where they are stored otherwise. Raises EIO."""

    def packed(self, name: str) -> Packed | None:
        """Its integers, where they are stored as such and native forms can hold them."""


class SafetensorsWeights:
    """The tensors of a directory of safetensors files, mapped: what is not looked at is not read."""

    def __init__(self, directory: Path) -> None:
        """Raises EIO naming the file that is broken."""
        self._where: dict[str, tuple[Path, source.Entry]] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        self.directory = directory
        for file, entries in source.read_headers(directory):
            for name, entry in entries.items():
                self._where[name] = file, entry

    def names(self) -> Collection[str]:
        return self._where.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name)[1].shape

    def get(self, name: str) -> Tensor:
        file, entry = self._entry(name)
        if entry.kind not in ITEMS:
            raise SyscallError(
                Errno.ENOTSUP, f"{file}: tensor {name} has items of {entry.kind!r}, which is not known"
            )
        if file not in self._maps:
            with files.open_regular(file) as opened:
                self._maps[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        items = ITEMS[entry.kind]
        count = entry.size // items.itemsize
        flat = (
            np.frombuffer(self._maps[file], dtype=items, count=count, offset=entry.offset)
            if count
            else np.empty(0, items)
        )
        return Tensor(entry.kind, flat.reshape(entry.shape))

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

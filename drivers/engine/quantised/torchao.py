"""torchao, as transformers saves it in safetensors: each weight's kind stands in the file's metadata, as JSON under its
name, and its parts are tensors `LAYER._weight_qdata`, `_weight_scale` and so on.

Int8Tensor and IntxUnpackedToInt8Tensor are integers with scales by block, Float8Tensor is 8-bit floats, Int4Tensor
nibbles in two's complement with scale and zero, both floats, for each group: value * scale + zero. Layouts made for one
accelerator (tile-packed, preshuffled, swizzled scales) are refused by name.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmasos.drivers.engine.quantised import floats, integers
from llmasos.drivers.engine.quantised.fields import Fields, unsupported
from llmasos.drivers.engine.quantised.stored import Affine, Parts, Scaled, Stored, broken
from llmasos.modelfiles import source
from llmasos.modelfiles.files import quoted
from llmasos.modelfiles.tensors import ITEMS, Packed, Tensor

METHOD = "torchao"
_INSTEAD = "quantise the model with Int8WeightOnlyConfig, IntxWeightOnlyConfig or Float8WeightOnlyConfig"
_TYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
_HEADER = 256 << 20  # bytes of a file's header, at most
_NAMES = ("tensor_names", "format")  # of the metadata, that name no tensor


def open_weights(fields: Fields, parts: Parts, directory: Path) -> tuple[dict[str, Stored], str]:
    """The weights that are quantised, and a word for how. Raises ENOTSUP, EIO."""
    fields.finish(
        METHOD,
        ("quant_method", "quant_type", "modules_to_not_convert", "include_input_output_embeddings",
         "untie_embedding_weights", "quant_type_kwargs"),
    )  # fmt: skip
    stored: dict[str, Stored] = {}
    kinds: set[str] = set()
    for file, _ in source.read_headers(directory):
        for name, text in metadata(file).items():
            if name in _NAMES:
                continue
            entry = Fields(f"{file.name}: metadata of {quoted(name)}", _json(file, name, text))
            kind = entry.word("_type")
            if kind == "Tensor":
                continue
            read = _KINDS.get(kind)
            if read is None:
                raise unsupported(METHOD, f"tensor {quoted(name)} is stored as {quoted(kind)}", _INSTEAD)
            stored[name] = read(name, Fields(f"{entry.where}, _data", entry.raw("_data")), parts)
            kinds.add(kind.removesuffix("Tensor").lower())
    return stored, f"{METHOD} {', '.join(sorted(kinds)) or 'without quantised weights'}"


def metadata(file: Path) -> dict[str, str]:
    """The strings that a safetensors file says of itself. Raises EIO."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        found = json.loads(stream.read(min(length, _HEADER))).get("__metadata__") or {}
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise broken("__metadata__", f"{file.name} has metadata that are no strings")
    return found


def _json(file: Path, name: str, text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise broken(name, f"the metadata of {file.name} say nothing of it in JSON") from None


def _part(name: str, part: str) -> str:
    layer, _, weight = name.rpartition(".")
    return f"{layer}._{weight}_{part}" if layer else f"_{weight}_{part}"


def _dtype(fields: Fields, name: str) -> str:
    value = fields.raw(name)
    dtype = value.get("_data") if isinstance(value, dict) else None
    if not isinstance(dtype, str):
        raise fields.broken(name, value, "a type")
    return dtype


def _result(fields: Fields) -> str:
    kind = _TYPES.get(_dtype(fields, "dtype"))
    if kind is None:
        raise unsupported(METHOD, f"{fields.where} is of {quoted(_dtype(fields, 'dtype'))}", _INSTEAD)
    return kind


def _promoted(first: str, second: str) -> str:
    """The type of a product, as torch has it."""
    return first if first == second else "F32"


def _int8(name: str, fields: Fields, parts: Parts) -> Stored:
    items, rows, columns = parts.matrix(_part(name, "qdata"), ("I8",))
    block = _block(fields, rows, columns)
    bits = int(_dtype(fields, "target_dtype")[3:] or 0) if fields.has("target_dtype") else 8
    kind = _result(fields)
    if parts.shape(_part(name, "scale")) == () and block == (rows, columns):
        raise unsupported(METHOD, f"tensor {quoted(name)} has one scale for all", _INSTEAD)
    grid = rows // block[0], columns // block[1]
    flat = ((grid[0] * grid[1],), ()) if 1 in grid else ()
    scale = parts.take(_part(name, "scale"), floats.FLOATS, grid, *flat)
    zero = None
    if (zero_name := _part(name, "zero_point")) in parts.names:
        stored_zero = parts.take(zero_name, ("I8", "I32", "I64"), grid, *flat)

        def zero() -> np.ndarray:
            return np.repeat(stored_zero().data.reshape(grid), block[0], axis=0)

    for part in ("act_quant_scale", "act_quant_zero_point"):
        parts.hide(_part(name, part))
    if _part(name, "act_pre_scale") in parts.names:
        raise unsupported(METHOD, f"tensor {quoted(name)} wants its inputs scaled (act_pre_scale)", _INSTEAD)
    fields.finish(METHOD, ("act_quant_kwargs", "reduce_range", "activation_quantization"))
    if not 2 <= bits <= 8:
        raise fields.broken("target_dtype", bits, "int2 to int8")
    wide = _promoted(kind, parts.kind(_part(name, "scale")))
    held = Affine(
        name,
        4 if bits == 4 else 8,
        rows,
        columns,
        block[1],
        wide,
        8 if bits == 4 else 128,
        lambda: items().data,
        lambda: np.repeat(floats.values(scale()).reshape(grid), block[0], axis=0),
        zero,
    )
    return held if wide == kind else Rounded(held, kind)


def _block(fields: Fields, rows: int, columns: int) -> tuple[int, int]:
    block = fields.block("block_size")
    if block is None or rows % block[0] or columns % block[1]:
        raise fields.broken("block_size", block, f"sizes that divide {[rows, columns]}")
    return block


@dataclass(frozen=True, slots=True)
class Rounded:
    """A weight that is dequantised in a wider type, then rounded to its own."""

    wide: Affine
    kind: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.wide.shape

    def read(self) -> Tensor:
        return Tensor(self.kind, floats.stored_items(self.wide.read().float32(), self.kind))

    def packed(self) -> Packed | None:
        return self.wide.packed()


def _float8(name: str, fields: Fields, parts: Parts) -> Stored:
    items, rows, columns = parts.matrix(_part(name, "qdata"), ("F8_E4M3", "F8_E5M2"))
    scale_name = _part(name, "scale")
    scale = parts.take(scale_name, floats.FLOATS)
    shape = parts.shape(scale_name)
    kind = _result(fields)
    fields.finish(METHOD, ("act_quant_kwargs", "block_size", "kernel_preference", "mm_config"))
    if shape in ((), (1,), (1, 1)):
        block = rows, columns
    elif len(shape) == 2 and all(shape) and not rows % shape[0] and not columns % shape[1]:
        block = rows // shape[0], columns // shape[1]
    else:
        raise broken(scale_name, f"its shape is {quoted(list(shape))}, which does not divide {[rows, columns]}")
    return Scaled((rows, columns), block, kind, lambda: floats.values(items()), lambda: floats.values(scale()))


@dataclass(frozen=True, slots=True)
class Shifted:
    """value * scale + zero, with zero a float: what Int4Tensor holds. [columns, inputs]."""

    shape: tuple[int, ...]
    group: int
    kind: str
    nibbles: Callable[[], np.ndarray]
    scale: Callable[[], np.ndarray]  # fp32 [inputs / group, columns], and zero alike
    zero: Callable[[], np.ndarray]

    def read(self) -> Tensor:
        values = ((integers.nibbles(self.nibbles().view(np.uint8)) ^ 8).astype(np.float32) - 8).reshape(self.shape)
        scale, zero = (np.repeat(part().T, self.group, axis=1) for part in (self.scale, self.zero))
        return Tensor(self.kind, floats.stored_items(values * scale + zero, self.kind).astype(ITEMS[self.kind]))

    def packed(self) -> Packed | None:
        return None


def _int4(name: str, fields: Fields, parts: Parts) -> Stored:
    items, rows, wide = parts.matrix(_part(name, "qdata"), ("I8", "U8"))
    columns = 2 * wide
    block = _block(fields, rows, columns)
    if fields.raw("shape") != [rows, columns] or block[0] != 1:
        raise fields.broken("shape", fields.raw("shape"), f"{[rows, columns]}, in blocks of one column")
    grid = columns // block[1], rows
    scale = parts.take(_part(name, "scale"), ("BF16", "F16", "F32"), grid)
    zero = parts.take(_part(name, "zero_point"), ("BF16", "F16", "F32"), grid)
    if _part(name, "act_pre_scale") in parts.names:
        raise unsupported(METHOD, f"tensor {quoted(name)} wants its inputs scaled (act_pre_scale)", _INSTEAD)
    fields.finish(METHOD, ("activation_dtype",))
    kind = parts.kind(_part(name, "scale"))
    return Shifted(
        (rows, columns),
        block[1],
        kind,
        lambda: items().data,
        lambda: floats.values(scale()),
        lambda: floats.values(zero()),
    )


_KINDS: dict[str, Callable[[str, Fields, Parts], Stored]] = {
    "Int8Tensor": _int8,
    "IntxUnpackedToInt8Tensor": _int8,
    "Int4Tensor": _int4,
    "Float8Tensor": _float8,
}

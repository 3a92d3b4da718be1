"""bitsandbytes: nf4 and fp4 in blocks of a flattened weight, and int8 with a scale for each column.

4 bits: `NAME` holds bytes of two codes (the first in the high half), `NAME.absmax` a scale for each block, and
`NAME.quant_state.bitsandbytes__nf4` a JSON object with shape, type and block size. Scales may be quantised themselves
(`nested_`): 8-bit codes into `nested_quant_map`, times `nested_absmax` for 256 of them, plus an offset. 8 bits: `NAME`
of int8, and `SCB` with the greatest magnitude of each column, which is 127.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from llmasos.drivers.engine.quantised import floats, integers
from llmasos.drivers.engine.quantised.fields import Fields, unsupported
from llmasos.drivers.engine.quantised.gptq import CONV1D
from llmasos.drivers.engine.quantised.stored import Affine, Parts, Stored, broken
from llmasos.modelfiles.files import quoted
from llmasos.modelfiles.tensors import Packed, Tensor

METHOD = "bitsandbytes"
_INSTEAD = "save the model again with the current bitsandbytes"
_STATE = 1 << 16  # bytes of the JSON object, at most
_TYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
_BYTES = ("U8", "I8", "F16", "BF16", "F32")  # quant_storage: the same bytes under another type

# The 16 values of each type. nf4: quantiles of the normal distribution (QLoRA, appendix E); fp4: sign, 2 bits, 1 bit.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_FP4 = tuple(sign * value for sign in (1, -1) for value in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0))
CODES = {"nf4": np.array(_NF4, np.float32), "fp4": np.array(_FP4, np.float32) / np.float32(12.0)}


@dataclass(frozen=True, slots=True)
class Blocks:
    """Codes times the scale of their block, over the flattened weight."""

    shape: tuple[int, ...]
    kind: str
    size: int  # items of a block
    code: np.ndarray  # fp32 [16]
    bytes_: Callable[[], np.ndarray]
    scale: Callable[[], np.ndarray]  # fp32 [blocks]
    transposed: bool

    def read(self) -> Tensor:
        count = math.prod(self.shape)
        numbers = self.code[integers.nibbles(self.bytes_(), low_first=False)[:count]]
        numbers = numbers * np.repeat(self.scale(), self.size)[:count]
        shape = self.shape[::-1] if self.transposed else self.shape
        result = floats.stored_items(numbers, self.kind).reshape(shape)
        return Tensor(self.kind, np.ascontiguousarray(result.T) if self.transposed else result)

    def packed(self) -> Packed | None:
        return None


def open_weights(fields: Fields, parts: Parts, architecture: str) -> tuple[dict[str, Stored], str]:
    """The layers that are quantised, and a word for how. Raises ENOTSUP, EIO."""
    four = fields.flag("load_in_4bit", fields.flag("_load_in_4bit", False))
    kind = fields.word("bnb_4bit_quant_type", "fp4")
    if not four and not fields.flag("load_in_8bit", fields.flag("_load_in_8bit", False)):
        raise unsupported(METHOD, "neither load_in_4bit nor load_in_8bit is set", _INSTEAD)
    fields.finish(
        METHOD,
        ("quant_method", "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage", "bnb_4bit_use_double_quant",
         "llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight", "llm_int8_skip_modules", "llm_int8_threshold"),
    )  # fmt: skip
    transposed = architecture in CONV1D
    stored: dict[str, Stored] = {}
    for type_ in CODES:
        for name in parts.ending(f".quant_state.bitsandbytes__{type_}"):
            stored[name] = _four(name, type_, parts, transposed)
    for layer in parts.ending(".SCB"):
        stored[f"{layer}.weight"] = _eight(layer, parts, transposed)
    return stored, f"{METHOD} {quoted(kind)[1:-1] if four else 'int8 channel'}"


def _four(name: str, type_: str, parts: Parts, transposed: bool) -> Stored:
    key = f"{name}.quant_state.bitsandbytes__{type_}"
    state = _state(key, parts)
    shape = state.raw("shape")
    if not isinstance(shape, list) or not all(isinstance(size, int) and 0 < size <= 1 << 32 for size in shape):
        raise state.broken("shape", shape, "a list of sizes")
    if transposed and len(shape) != 2:
        raise state.broken("shape", shape, "two sizes")
    count = math.prod(shape)
    size = state.integer("blocksize", 1, 1 << 20)
    blocks = -(-count // size)
    kind = _TYPES.get(state.word("dtype"))
    if kind is None or state.word("quant_type", type_) != type_:
        raise unsupported(METHOD, f"tensor {quoted(name)} is of {quoted(state.raw('dtype'))}", _INSTEAD)
    codes = parts.take(name, _BYTES)
    if codes().data.nbytes != -(-count // 2):
        raise broken(name, f"it has {codes().data.nbytes} bytes, {quoted(shape)} wants {-(-count // 2)}")
    parts.hide(f"{name}.quant_map")
    if f"{name}.nested_absmax" in parts.names:
        scale = _nested(name, state, blocks, parts)
    else:
        absmax = parts.take(f"{name}.absmax", ("F32",), (blocks,))

        def scale() -> np.ndarray:
            return absmax().data

    state.finish(METHOD)
    return Blocks(
        tuple(shape[::-1] if transposed else shape),
        kind,
        size,
        CODES[type_],
        lambda: np.ascontiguousarray(codes().data).reshape(-1).view(np.uint8),
        scale,
        transposed,
    )


def _nested(name: str, state: Fields, blocks: int, parts: Parts) -> Callable[[], np.ndarray]:
    """Scales out of 8-bit codes: fp32 product, then the offset, as the library does it."""
    size = state.integer("nested_blocksize", 1, 1 << 20)
    offset = state.raw("nested_offset")
    if not isinstance(offset, float | int) or not math.isfinite(offset):
        raise state.broken("nested_offset", offset, "a number")
    if state.word("nested_dtype", "float32") != "float32":
        raise unsupported(METHOD, f"the scales of {quoted(name)} are not float32", _INSTEAD)
    absmax = parts.take(f"{name}.absmax", ("U8",), (blocks,))
    code = parts.take(f"{name}.nested_quant_map", ("F32",), (256,))
    outer = parts.take(f"{name}.nested_absmax", ("F32",), (-(-blocks // size),))

    def scale() -> np.ndarray:
        numbers: np.ndarray = code().data[absmax().data] * np.repeat(outer().data, size)[:blocks]
        return numbers + np.float32(offset)

    return scale


def _state(key: str, parts: Parts) -> Fields:
    tensor = parts.take(key, ("U8",))()
    if tensor.data.nbytes > _STATE:
        raise broken(key, f"it has {tensor.data.nbytes} bytes, a small JSON object was wanted")
    try:
        return Fields(f"tensor {quoted(key)}", json.loads(tensor.data.tobytes()))
    except (ValueError, RecursionError):
        raise broken(key, "it is no JSON object") from None


def _eight(layer: str, parts: Parts, transposed: bool) -> Stored:
    items, rows, columns = parts.matrix(f"{layer}.weight", ("I8",))
    greatest = parts.take(f"{layer}.SCB", ("F32", "F16"), (rows,))
    format_ = f"{layer}.weight_format"
    if format_ in parts.names and parts.take(format_, ("U8",), (), (1,))().data.any():
        raise unsupported(METHOD, f"layer {quoted(layer)} is laid out for a GPU", _INSTEAD)
    return Columns(
        f"{layer}.weight",
        8,
        rows,
        columns,
        columns,
        "F32",
        128,
        lambda: items().data,
        lambda: floats.values(greatest()).reshape(rows, 1) * _PER_127,
        transposed=transposed,
        greatest=lambda: floats.values(greatest()).reshape(rows, 1),
    )


_PER_127 = np.float32(7.874015718698502e-3)  # what the library multiplies by in place of dividing by 127


@dataclass(frozen=True, slots=True)
class Columns(Affine):
    """int8 of columns, whose values the library rounds twice: after the column's magnitude, and after the 127th of
    it."""

    greatest: Callable[[], np.ndarray] | None = None

    def read(self) -> Tensor:
        assert self.greatest is not None
        result = self.values().astype(np.float32) * self.greatest() * _PER_127
        return Tensor(self.kind, np.ascontiguousarray(result.T) if self.transposed else result)

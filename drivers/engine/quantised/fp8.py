"""8-bit floats with a scale for each tensor, column or block: DeepSeek's and Qwen's `fp8`, Meta's `fbgemm_fp8`, and
NVIDIA's modelopt with FP8 and NVFP4.

A layer keeps its `weight`, of F8_E4M3 items, beside `weight_scale_inv` (which multiplies, whatever its name says) or
`weight_scale`. The result is in the type that the configuration names for the model, since scales are fp32: as
transformers and vLLM do it, product in fp32, rounded once. A block at an edge may be cut off.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llmasos.drivers.engine.quantised import floats, integers
from llmasos.drivers.engine.quantised.fields import Fields, unsupported
from llmasos.drivers.engine.quantised.stored import Parts, Scaled, Stored, broken
from llmasos.modelfiles.files import quoted
from llmasos.modelfiles.tensors import Tensor

_INSTEAD = "use the model unquantised, or quantised as FP8 or NVFP4"
_EIGHT = ("F8_E4M3", "F8_E5M2")
_UNREAD = (
    "input_scale", "activation_scale", "input_scale_ub", "activation_scale_ub", "k_scale", "v_scale", "q_scale",
    "k_proj.output_scale",
)  # fmt: skip


def open_weights(fields: Fields, parts: Parts, kind: str) -> tuple[dict[str, Stored], str]:
    """`fp8`: blocks of weight_block_size, or one scale. `kind` is the model's type. Raises ENOTSUP, EIO."""
    block = fields.block("weight_block_size")
    for name, wanted in (("activation_scheme", ("dynamic", "static")), ("scale_fmt", ("float", "ue8m0"))):
        if fields.word(name, wanted[0]) not in wanted:
            raise unsupported("fp8", f"its {name} is {quoted(fields.raw(name))}", _INSTEAD)
    fields.finish(
        "fp8",
        ("quant_method", "modules_to_not_convert", "ignored_layers", "fmt", "expert_dtype", "kv_cache_scheme",
         "dequantize", "modules_to_convert"),
    )  # fmt: skip
    stored: dict[str, Stored] = {}
    for suffix in ("_scale_inv", "_scale"):
        for name in parts.ending(suffix):
            if name in parts.names and parts.kind(name) in _EIGHT:
                stored[name] = _weight(name, name + suffix, block, kind, parts)
    _finish(parts, stored)
    size = "tensor" if block is None else "{}x{}".format(*block)
    return stored, f"fp8 {size}"


def open_fbgemm(fields: Fields, parts: Parts, kind: str) -> tuple[dict[str, Stored], str]:
    """`fbgemm_fp8`: a scale for each column."""
    fields.finish("fbgemm_fp8", ("quant_method", "modules_to_not_convert", "activation_scale_ub"))
    stored: dict[str, Stored] = {}
    for name in parts.ending("_scale"):
        if name not in parts.names or parts.kind(name) not in _EIGHT:
            continue
        items, rows, columns = parts.matrix(name, _EIGHT)
        scale = parts.take(name + "_scale", floats.FLOATS, (rows, 1), (rows,))
        stored[name] = Scaled((rows, columns), (1, columns), kind, _numbers(items), _column(scale, rows))
    _finish(parts, stored)
    return stored, "fbgemm_fp8 column"


def _weight(name: str, scale: str, block: tuple[int, int] | None, kind: str, parts: Parts) -> Stored:
    items, rows, columns = parts.matrix(name, _EIGHT)
    size = block or (rows, columns)
    grid = -(-rows // size[0]), -(-columns // size[1])
    kinds = (*floats.FLOATS, "F8_E8M0", "U8")
    if parts.shape(scale) in ((), (1,), (1, 1)):
        size, read = (rows, columns), parts.take(scale, kinds)
    else:
        read = parts.take(scale, kinds, grid)
    if parts.kind(scale) == "U8":  # exponents
        return Scaled((rows, columns), size, kind, _numbers(items), lambda: floats.EXPONENTS[read().data])
    return Scaled((rows, columns), size, kind, _numbers(items), _numbers(read))


def _numbers(items: Callable[[], Tensor]) -> Callable[[], np.ndarray]:
    return lambda: floats.values(items())


def _column(scale: Callable[[], Tensor], rows: int) -> Callable[[], np.ndarray]:
    return lambda: floats.values(scale()).reshape(rows, 1)


def _finish(parts: Parts, stored: dict[str, Stored]) -> None:
    """Leave scales of activations and caches unread. Raises EIO for a weight of 8-bit floats without scales."""
    for suffix in _UNREAD:
        for layer in parts.ending("." + suffix):
            parts.hide(f"{layer}.{suffix}")
    for name in sorted(parts.names - parts.taken):
        if parts.kind(name) in _EIGHT and name not in stored:
            raise broken(name, "it is of 8-bit floats, and has no scales")


_MODELOPT = {
    "FP8": "fp8",
    "NVFP4": "nvfp4",
    "W4A16_NVFP4": "nvfp4",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8 column",
}


def open_modelopt(fields: Fields, parts: Parts, kind: str) -> tuple[dict[str, Stored], str]:
    """modelopt's FP8 (a scale for each tensor) and NVFP4 (`weight` of nibbles, `weight_scale` of E4M3,
    `weight_scale_2`)."""
    algorithm = fields.word("quant_algo")
    layers = fields.raw("quantized_layers")
    mixed = algorithm == "MIXED_PRECISION" and isinstance(layers, dict)
    every = layers.values() if mixed else ({"quant_algo": algorithm},)
    named = [of.get("quant_algo") if isinstance(of, dict) else of for of in every]
    unknown = next((name for name in named if not isinstance(name, str) or name not in _MODELOPT), None)
    if unknown is not None or not named:
        raise unsupported("modelopt", f"its algorithm is {quoted(unknown or algorithm)}", _INSTEAD)
    group = fields.integer("group_size", 0, 1 << 20, 16) or 16
    fields.finish(
        "modelopt",
        ("quant_method", "exclude_modules", "kv_cache_quant_algo", "config_groups", "ignore", "producer",
         "kv_cache_scheme", "has_zero_point", "pre_quant_scale", "smoothquant_val"),
    )  # fmt: skip
    if rotated := next(parts.ending(".pre_quant_scale"), None):
        what = f"layer {quoted(rotated)} wants its inputs scaled (pre_quant_scale)"
        raise unsupported("modelopt", what, _INSTEAD)
    stored: dict[str, Stored] = {}
    for name in parts.ending("_scale"):
        if name not in parts.names or not name.endswith(".weight"):
            continue
        if parts.kind(name) in _EIGHT:
            items, rows, columns = parts.matrix(name, _EIGHT)
            if parts.shape(name + "_scale") in ((), (1,)):
                scale = parts.take(name + "_scale", floats.FLOATS)
                stored[name] = Scaled((rows, columns), (rows, columns), kind, _numbers(items), _numbers(scale))
            else:
                scale = parts.take(name + "_scale", floats.FLOATS, (rows,), (rows, 1))
                stored[name] = Scaled((rows, columns), (1, columns), kind, _numbers(items), _column(scale, rows))
        elif parts.kind(name) == "U8":
            stored[name] = _nvfp4(name, group, kind, parts)
    _finish(parts, stored)
    return (
        stored,
        f"modelopt {', '.join(sorted({_MODELOPT[name] for name in named if isinstance(name, str)}))}",
    )


_UNSIGNED_ZERO = floats.E2M1 + np.float32(0)  # modelopt's table of E2M1 has one zero


def _nvfp4(name: str, group: int, kind: str, parts: Parts) -> Stored:
    items, rows, wide = parts.matrix(name, ("U8",))
    columns = 2 * wide
    if columns % group:
        raise broken(name, f"its {columns} inputs are not groups of {group}")
    local = parts.take(name + "_scale", ("F8_E4M3",), (rows, columns // group))
    whole = parts.take(name + "_scale_2", ("F32",), (), (1,))

    def scale() -> np.ndarray:
        result: np.ndarray = floats.E4M3[local().data] * whole().data
        return result

    return Scaled((rows, columns), (1, group), kind, lambda: _UNSIGNED_ZERO[integers.nibbles(items().data)], scale)

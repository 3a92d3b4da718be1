"""compressed-tensors: the format that llm-compressor writes, and vLLM and transformers read.

A layer's `weight` becomes `weight_packed` (int32 words or bytes of two nibbles) or a `weight` of small items, beside
`weight_scale` and, as its scheme wants, `weight_zero_point`, `weight_g_idx`, `weight_shape`, `weight_global_scale`.
Targets say which scheme a layer has: classes, names, or regular expressions. Scales of activations and of keys
and values are left unread: activations are quantised as the engine does it, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from llmasos.drivers.engine.quantised import floats, integers
from llmasos.drivers.engine.quantised.fields import Fields, unsupported
from llmasos.drivers.engine.quantised.patterns import Pattern
from llmasos.drivers.engine.quantised.stored import Affine, Parts, Scaled, Stored, broken
from llmasos.modelfiles.files import quoted
from llmasos.modelfiles.tensors import Tensor

METHOD = "compressed-tensors"
_INSTEAD = "use the model unquantised, or quantised as W4A16, W8A8 or FP8"
_FORMATS = {
    "int-quantized": "plain", "float-quantized": "plain", "naive-quantized": "plain", "pack-quantized": "words",
    "nvfp4-pack-quantized": "nvfp4", "mxfp4-pack-quantized": "mxfp4", "mxfp8-quantized": "mxfp8",
}  # fmt: skip
_UNREAD = (
    "input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point", "k_scale", "v_scale",
    "q_scale", "k_zero_point", "v_zero_point", "q_zero_point",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the weights of some layers are quantised."""

    form: str  # a value of _FORMATS
    bits: int
    integer: bool
    symmetric: bool
    strategy: str  # tensor, channel, group or block
    group: int  # inputs, of the group strategy
    block: tuple[int, int]
    targets: tuple[Pattern, ...]

    def __str__(self) -> str:
        size = {"group": f"g{self.group}", "block": "{}x{}".format(*self.block)}.get(self.strategy, self.strategy)
        if self.form not in ("plain", "words"):
            return self.form
        return f"{'int' if self.integer else 'fp'}{self.bits} {size}{'' if self.symmetric else ' asymmetric'}"


def open_weights(fields: Fields, parts: Parts) -> tuple[dict[str, Stored], str]:
    """The layers that are quantised, and a word for how. Raises ENOTSUP, EIO."""
    schemes = _schemes(fields)
    stored: dict[str, Stored] = {}
    for layer in [*parts.ending(".weight_packed"), *parts.ending(".weight_scale")]:
        if f"{layer}.weight" not in stored:
            stored[f"{layer}.weight"] = _layer(layer, _scheme(layer, schemes), parts)
    for unread in _UNREAD:
        for layer in parts.ending("." + unread):
            parts.hide(f"{layer}.{unread}")
    return stored, f"{METHOD} {', '.join(sorted({str(scheme) for scheme in schemes}))}"


def _schemes(fields: Fields) -> list[Scheme]:
    whole = fields.word("format", "mixed-precision")
    status = fields.word("quantization_status", "compressed")
    if status != "compressed":
        raise unsupported(
            METHOD,
            f"quantization_status is {quoted(status)}",
            "save the model compressed (save_compressed=True)",
        )
    for name in ("sparsity_config", "transform_config"):
        value = fields.raw(name)
        if value and value != {"config_groups": {}} and value.get("format") != "dense":
            kind = value.get("format") if name == "sparsity_config" else "weights that are rotated"
            raise unsupported(METHOD, f"{name} asks for {quoted(kind)}", _INSTEAD)
    groups = Fields("quantization_config.config_groups", fields.raw("config_groups"))
    names = [name for name in (fields.raw("config_groups") or ()) if isinstance(name, str)]
    schemes = []
    for name in names:
        entry = groups.raw(name)
        if isinstance(entry, list):
            raise unsupported(METHOD, f"group {quoted(name)} is a preset", "write its scheme out in config_groups")
        scheme = _read_scheme(Fields(f"quantization_config.config_groups.{quoted(name)}", entry), whole)
        if scheme is not None:
            schemes.append(scheme)
    fields.finish(
        METHOD,
        (
            "quant_method",
            "ignore",
            "global_compression_ratio",
            "kv_cache_scheme",
            "version",
            "run_compressed",
        ),
    )
    return schemes


def _read_scheme(group: Fields, whole: str) -> Scheme | None:
    form = group.word("format", whole)
    targets = group.raw("targets")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise group.broken("targets", targets, "a list of names")
    group.finish(METHOD, ("input_activations", "output_activations", "weights"))
    if group.raw("weights") is None:
        return None
    weights = Fields(f"{group.where}.weights", group.raw("weights"))
    bits = weights.integer("num_bits", 1, 16, 8)
    kind = weights.word("type", "int").lower()
    symmetric = weights.flag("symmetric", True)
    size = weights.integer("group_size", -1, 1 << 20, 0) or None
    block = weights.block("block_structure")
    default = "tensor" if size is None else "channel" if size == -1 else "group"
    strategy = weights.word("strategy", default).lower()
    if weights.raw("dynamic"):
        raise unsupported(METHOD, "its weights are quantised as they are used", _INSTEAD)
    weights.finish(METHOD, ("actorder", "observer", "observer_kwargs", "scale_dtype", "zp_dtype"))
    if form == "mixed-precision":
        form = _guess(kind, bits, size, group)
    if form not in _FORMATS:
        raise unsupported(METHOD, f"its format is {quoted(form)}", _INSTEAD)
    form = _FORMATS[form]
    known = {"plain": strategy in ("tensor", "channel", "group", "block")}
    known["words"] = strategy in ("tensor", "channel", "group")
    known["nvfp4"] = (kind, bits, strategy, size) == ("float", 4, "tensor_group", 16)
    known["mxfp4"] = (kind, bits, strategy, size) == ("float", 4, "group", 32)
    known["mxfp8"] = (kind, bits, strategy, size) == ("float", 8, "group", 32)
    wide = bits == 8 if kind == "float" else 2 <= bits <= 8
    if kind not in ("int", "float") or not known[form] or (form in ("plain", "words") and not wide):
        raise unsupported(METHOD, f"{quoted(kind)} of {bits} bits by {quoted(strategy)} in its format {form}", _INSTEAD)
    if strategy in ("group", "tensor_group") and (size is None or size < 1):
        raise weights.broken("group_size", size, "a number of inputs")
    if strategy == "block" and block is None:
        raise weights.broken("block_structure", None, "two sizes of a block")
    if form == "words" and kind == "float":
        raise unsupported(METHOD, "floats in its format pack-quantized", _INSTEAD)
    return Scheme(
        form,
        bits,
        kind == "int",
        symmetric,
        strategy,
        size or 0,
        block or (1, 1),
        tuple(map(Pattern, targets)),
    )


def _guess(kind: str, bits: int, size: int | None, group: Fields) -> str:
    """The format that compressed-tensors itself takes for a scheme that names none."""
    if kind == "float" and bits == 4:
        return "mxfp4-pack-quantized" if size == 32 else "nvfp4-pack-quantized"
    if kind == "float":
        return "mxfp8-quantized" if size == 32 else "float-quantized"
    return "int-quantized" if group.has("input_activations") else "pack-quantized"


def _scheme(layer: str, schemes: list[Scheme]) -> Scheme:
    """Names before expressions before classes, as compressed-tensors has it; a layer's class is not in the files, so
    with several schemes by class the layer stays unknown."""
    for rank in (0, 1):
        for scheme in schemes:
            if any(target.rank == rank and target.matches(layer) for target in scheme.targets):
                return scheme
    by_class = [scheme for scheme in schemes if any(target.is_class for target in scheme.targets)]
    if len(by_class) == 1:
        return by_class[0]
    if len(schemes) == 1:
        return schemes[0]
    raise broken(f"{layer}.weight", "none of the configuration's groups says how it is quantised")


def _layer(layer: str, scheme: Scheme, parts: Parts) -> Stored:
    if scheme.form in ("nvfp4", "mxfp4"):
        return _four(layer, scheme, parts)
    if scheme.form == "words":
        return _words(layer, scheme, parts)
    name = f"{layer}.weight"
    if not scheme.integer:
        items, rows, columns = parts.matrix(name, ("F8_E4M3",))
        block = {"tensor": (rows, columns), "channel": (1, columns), "group": (1, scheme.group)}.get(
            scheme.strategy, scheme.block
        )
        grid = -(-rows // block[0]), -(-columns // block[1])
        one = ((), (1,)) if grid == (1, 1) else ()
        if scheme.form == "mxfp8":
            bytes_ = parts.take(f"{layer}.weight_scale", ("U8", "F8_E8M0"), grid)
            return Scaled(
                (rows, columns),
                block,
                "BF16",
                lambda: floats.E4M3[items().data],
                lambda: floats.EXPONENTS[bytes_().data],
            )
        scale = parts.take(f"{layer}.weight_scale", floats.FLOATS, grid, *one)
        if not scheme.symmetric:
            raise unsupported(METHOD, "floats with zero points", _INSTEAD)
        parts.hide(f"{layer}.weight_zero_point")
        kind = parts.kind(f"{layer}.weight_scale")
        return Scaled((rows, columns), block, kind, lambda: floats.values(items()), lambda: floats.values(scale()))
    items, rows, columns = parts.matrix(name, ("I8",))
    return _affine(layer, scheme, parts, rows, columns, lambda: items().data, None, bits=8)


def _words(layer: str, scheme: Scheme, parts: Parts) -> Stored:
    packed, rows, wide = parts.matrix(f"{layer}.weight_packed", ("I32",))
    shape = parts.take(f"{layer}.weight_shape", ("I64", "I32"), (2,))().data.tolist()
    if shape[0] != rows or not 0 < shape[1] <= 1 << 32 or integers.words(shape[1], scheme.bits) != wide:
        raise broken(
            f"{layer}.weight_shape",
            f"it says {shape}, {rows} rows of {wide} words with {scheme.bits} bits are there",
        )
    columns, half = shape[1], 1 << (scheme.bits - 1)

    def zero_points(groups: int) -> Callable[[], np.ndarray]:
        if scheme.strategy == "tensor":
            return _plain_zero(layer, parts, rows, groups)
        words = parts.take(f"{layer}.weight_zero_point", ("I32",), (integers.words(rows, scheme.bits), groups))
        return lambda: integers.unpack(words().data.T, scheme.bits, rows).T.astype(np.int16) - half

    def values() -> np.ndarray:
        return integers.unpack(packed().data, scheme.bits, columns).astype(np.int16) - half

    return _affine(layer, scheme, parts, rows, columns, values, zero_points, bits=scheme.bits)


def _affine(
    layer: str,
    scheme: Scheme,
    parts: Parts,
    rows: int,
    columns: int,
    values: Callable[[], np.ndarray],
    zero_points: Callable[[int], Callable[[], np.ndarray]] | None,
    *,
    bits: int,
) -> Stored:
    name = f"{layer}.weight"
    if scheme.strategy == "block":
        raise unsupported(METHOD, "integers by block", _INSTEAD)
    size = scheme.group if scheme.strategy == "group" else columns
    if columns % size:
        raise broken(name, f"its {columns} inputs are not groups of {size}")
    groups = columns // size
    if scheme.strategy == "tensor":
        scale = parts.take(f"{layer}.weight_scale", floats.FLOATS, (), (1,), (1, 1))
    else:
        scale = parts.take(f"{layer}.weight_scale", floats.FLOATS, (rows, groups))
    zero = None
    if scheme.symmetric:
        parts.hide(f"{layer}.weight_zero_point")
    else:
        zero = (zero_points or (lambda count: _plain_zero(layer, parts, rows, count)))(groups)
    order = None
    if f"{layer}.weight_g_idx" in parts.names:
        index = parts.take(f"{layer}.weight_g_idx", ("I32", "I64"), (columns,))
        order = _order(f"{layer}.weight_g_idx", index, size)
    return Affine(
        name,
        bits,
        rows,
        columns,
        size,
        parts.kind(f"{layer}.weight_scale"),
        1 << (bits - 1),
        values,
        lambda: floats.values(scale()),
        zero,
        order,
    )


def _plain_zero(layer: str, parts: Parts, rows: int, groups: int) -> Callable[[], np.ndarray]:
    tensor = parts.take(f"{layer}.weight_zero_point", ("I8",), (rows, groups), (), (1,), (1, 1))
    return lambda: tensor().data


def _order(name: str, index: Callable[[], Tensor], size: int) -> Callable[[], np.ndarray]:
    """The activation order of older checkpoints: which group an input is in; all -1 says side by side."""

    def order() -> np.ndarray:
        groups: np.ndarray = index().data.astype(np.int64)
        if (groups == -1).all():
            return np.arange(len(groups)) // size
        if groups.min() < 0 or (np.bincount(groups[groups < len(groups)]) > size).any():
            raise broken(name, f"its groups are not {size} inputs each")
        return groups

    return order


def _four(layer: str, scheme: Scheme, parts: Parts) -> Stored:
    """Two E2M1 a byte. NVFP4's scales are E4M3 over one fp32 number for the whole, MXFP4's powers of two."""
    packed, rows, wide = parts.matrix(f"{layer}.weight_packed", ("U8",))
    columns, size = 2 * wide, scheme.group
    if columns % size:
        raise broken(f"{layer}.weight_packed", f"its {columns} inputs are not groups of {size}")
    shape = rows, columns // size
    if not scheme.symmetric:
        raise unsupported(METHOD, "floats with zero points", _INSTEAD)
    parts.hide(f"{layer}.weight_zero_point")
    if scheme.form == "mxfp4":
        exponents = parts.take(f"{layer}.weight_scale", ("U8", "F8_E8M0"), shape)

        def scale() -> np.ndarray:
            result: np.ndarray = floats.EXPONENTS[exponents().data]
            return result
    else:
        local = parts.take(f"{layer}.weight_scale", ("F8_E4M3",), shape)
        whole = parts.take(f"{layer}.weight_global_scale", ("F32",), (1,))

        def scale() -> np.ndarray:
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                result: np.ndarray = floats.E4M3[local().data] / whole().data
                return result

    return Scaled((rows, columns), (1, size), "BF16", lambda: floats.E2M1[integers.nibbles(packed().data)], scale)

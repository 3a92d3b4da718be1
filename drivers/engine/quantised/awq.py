"""AWQ: 4 bits with a zero for every group, packed along the columns (`gemm`) or along the inputs (`gemv`).

gemm is what nearly all published checkpoints are: qweight int32 [inputs, columns / 8], in each word the columns 0 2 4 6
1 3 5 7, qzeros [groups, columns / 8] alike, scales [groups, columns]. gemv has rows of columns in plain order, padded.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llmasos.drivers.engine.quantised import floats, integers
from llmasos.drivers.engine.quantised.fields import Fields, unsupported
from llmasos.drivers.engine.quantised.stored import Affine, Parts, Stored, broken
from llmasos.modelfiles.files import quoted

METHOD = "awq"
_INSTEAD = "use the model unquantised, or quantised by AWQ's version gemm with 4 bits"
_ORDER = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # where the columns 0 .. 7 are among a word's eight values
_HARMLESS = (
    "quant_method", "modules_to_not_convert", "backend", "do_fuse", "exllama_config", "fuse_max_seq_len",
    "modules_to_fuse", "desc_act", "sym", "lm_head", "meta", "pack_dtype", "method",
    "true_sequential", "static_groups", "dataset", "checkpoint_format",
)  # fmt: skip


def open_weights(fields: Fields, parts: Parts) -> tuple[dict[str, Stored], str]:
    """The layers that are quantised, and a word for how. Raises ENOTSUP, EIO."""
    bits = fields.integer("bits", 1, 16, fields.integer("w_bit", 1, 16, 4))
    group = fields.integer("group_size", -1, 1 << 20, fields.integer("q_group_size", -1, 1 << 20, 128))
    version = fields.word("version", fields.word("format", "gemm")).lower()
    zero_point = fields.flag("zero_point", True)
    if bits != 4 or group == 0 or not zero_point or version not in ("gemm", "gemv"):
        zeros = "zeros" if zero_point else "no zeros"
        what = f"{bits} bits in groups of {group} with {zeros}, version {quoted(version)}"
        raise unsupported(METHOD, what, _INSTEAD)
    fields.finish(METHOD, _HARMLESS)
    form = f"{METHOD} int4 {'channel' if group == -1 else f'g{group}'} asymmetric"
    return read(parts, lambda _: group, columns_first=version == "gemv"), form


def read(parts: Parts, group: Callable[[str], int], *, columns_first: bool) -> dict[str, Stored]:
    """Every layer with a qweight, `group(layer)` of its inputs sharing a scale; `columns_first` is gemv."""
    layer_of = _gemv if columns_first else _gemm
    return {f"{layer}.weight": layer_of(layer, group(layer), parts) for layer in parts.ending(".qweight")}


def _gemm(layer: str, group: int, parts: Parts) -> Stored:
    words, inputs, wide = parts.matrix(f"{layer}.qweight", ("I32",))
    columns, size = 8 * wide, inputs if group == -1 else group
    if inputs % size:
        raise broken(f"{layer}.qweight", f"its {inputs} inputs are not groups of {size}")
    scale = parts.take(f"{layer}.scales", floats.FLOATS, (inputs // size, columns))
    zeros = parts.take(f"{layer}.qzeros", ("I32",), (inputs // size, wide))
    return Affine(
        f"{layer}.weight",
        4,
        columns,
        inputs,
        size,
        parts.kind(f"{layer}.scales"),
        0,
        lambda: _in_order(words().data).T,
        lambda: floats.values(scale()).T,
        lambda: _in_order(zeros().data).T,
    )


def _in_order(words: np.ndarray) -> np.ndarray:
    """int32 [rows, columns / 8] -> uint8 [rows, columns]."""
    values = integers.unpack(words, 4, 8 * words.shape[1]).reshape(len(words), -1, 8)
    return values[:, :, _ORDER].reshape(len(words), -1)


def _gemv(layer: str, group: int, parts: Parts) -> Stored:
    words, columns, wide = parts.matrix(f"{layer}.qweight", ("I32",))
    inputs = 8 * wide
    size = inputs if group == -1 else group
    if inputs % size:
        raise broken(f"{layer}.qweight", f"its {inputs} inputs are not groups of {size}")
    groups = inputs // size
    padded = _padded(groups, size)
    scale = parts.take(f"{layer}.scales", floats.FLOATS, (columns, 8 * padded))
    zeros = parts.take(f"{layer}.qzeros", ("I32",), (columns, padded))
    return Affine(
        f"{layer}.weight",
        4,
        columns,
        inputs,
        size,
        parts.kind(f"{layer}.scales"),
        0,
        lambda: integers.unpack(words().data, 4, inputs),
        lambda: floats.values(scale())[:, :groups],
        lambda: integers.unpack(zeros().data, 4, groups),
    )


def _padded(groups: int, size: int) -> int:
    """Words of zeros a column: as many as the kernel that reads them takes at once, for groups of this size."""
    many = 1 if size >= 128 else 2 if size == 64 else 4
    wide = integers.words(groups, 4)
    return (wide + many - 1) // many * many

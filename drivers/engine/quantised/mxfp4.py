"""MXFP4 as gpt-oss has it: each expert's matrices as `NAME_blocks`, bytes of two E2M1, and `NAME_scales`, powers of
two.

Blocks are uint8 [experts, columns, groups, 16], scales uint8 [experts, columns, groups]; the weight is [experts,
inputs, columns], as transformers' modelling code has it.
"""

from __future__ import annotations

import numpy as np

from llmasos.drivers.engine.quantised import floats, integers
from llmasos.drivers.engine.quantised.fields import Fields
from llmasos.drivers.engine.quantised.stored import Parts, Scaled, Stored, broken
from llmasos.modelfiles.files import quoted

METHOD = "mxfp4"
_BYTES = 16  # of a block: 32 values

# value * 2 ** (byte - 127), with nothing too large for fp32 on the way: twice the value, half the power.
_TWICE = 2 * floats.E2M1
_HALVES = np.ldexp(1.0, np.arange(256) - 128).astype(np.float32)


def open_weights(fields: Fields, parts: Parts) -> tuple[dict[str, Stored], str]:
    """The matrices that are quantised, and a word for how. Raises ENOTSUP, EIO."""
    fields.finish(METHOD, ("quant_method", "modules_to_not_convert", "dequantize"))
    return {name: _matrix(name, parts) for name in parts.ending("_blocks")}, METHOD


def _matrix(name: str, parts: Parts) -> Stored:
    blocks = parts.take(f"{name}_blocks", ("U8",))
    shape = parts.shape(f"{name}_blocks")
    if len(shape) < 3 or shape[-1] != _BYTES or not all(shape):
        raise broken(f"{name}_blocks", f"its shape is {quoted(list(shape))}, [..., columns, groups, 16] was wanted")
    exponents = parts.take(f"{name}_scales", ("U8", "F8_E8M0"), shape[:-1])
    *leading, columns, groups, _ = shape
    inputs = groups * 2 * _BYTES
    return Scaled(
        (*leading, inputs, columns),
        (1, 2 * _BYTES),
        "BF16",
        lambda: _TWICE[integers.nibbles(blocks().data)].reshape(*leading, columns, inputs),
        lambda: _HALVES[exponents().data],
        swapped=True,
    )

"""The small floats that checkpoints store as bits, and rounding as torch does it, in numpy.

OCP's 8-bit floats (E4M3 without infinities, E5M2), its 4-bit E2M1 and its scales E8M0 have few enough values for
tables. Arithmetic in float16 and bfloat16 is arithmetic in float32 with one rounding at its end: torch computes so on
CPUs, and the product of two such numbers has at most 22 bits, so it is exact before that rounding.
"""

from __future__ import annotations

import numpy as np

from llmasos.modelfiles.tensors import Tensor, bfloat16_to_float32, float32_to_bfloat16

FLOATS = ("F32", "F16", "BF16")


def _table(exponent: int, mantissa: int, bias: int) -> np.ndarray:
    """Every value of a float with a sign bit, in the order of its bits; the caller puts in NaN and infinities."""
    codes = np.arange(1 << (1 + exponent + mantissa))
    power = (codes >> mantissa) & ((1 << exponent) - 1)
    fraction = codes & ((1 << mantissa) - 1)
    magnitude = np.where(
        power == 0,
        np.ldexp(fraction, 1 - bias - mantissa),
        np.ldexp(fraction + (1 << mantissa), power - bias - mantissa),
    )
    table: np.ndarray = np.where(codes >> (exponent + mantissa), -magnitude, magnitude).astype(np.float32)
    return table


def _e4m3() -> np.ndarray:
    table = _table(4, 3, 7)
    table[[0x7F, 0xFF]] = np.nan
    return table


def _e5m2() -> np.ndarray:
    table = _table(5, 2, 15)
    table[[0x7C, 0xFC]] = np.inf, -np.inf
    table[0x7D:0x80] = table[0xFD:] = np.nan
    return table


def _powers(last: float) -> np.ndarray:
    return np.append(np.ldexp(1.0, np.arange(255) - 127), last).astype(np.float32)


E4M3 = _e4m3()
E5M2 = _e5m2()
E2M1 = _table(2, 1, 1)
E8M0 = _powers(np.nan)  # torch.float8_e8m0fnu
EXPONENTS = _powers(np.inf)  # 2 ** (byte - 127), as the MX formats' own libraries compute it

# safetensors' name of the items -> what their 256 bit patterns mean
TABLES = {"F8_E4M3": E4M3, "F8_E5M2": E5M2, "F8_E8M0": E8M0}


def values(tensor: Tensor) -> np.ndarray:
    """The fp32 of a tensor of floats, 8-bit ones included. Raises ENOTSUP for integers."""
    table = TABLES.get(tensor.kind)
    return tensor.float32() if table is None else table[tensor.data]


def rounded(numbers: np.ndarray, kind: str) -> np.ndarray:
    """fp32 numbers, each the nearest that F32, F16 or BF16 (`kind`) holds, ties to even."""
    if kind == "F16":
        with np.errstate(over="ignore"):
            return numbers.astype(np.float16).astype(np.float32)
    return numbers if kind == "F32" else bfloat16_to_float32(float32_to_bfloat16(numbers))


def stored_items(numbers: np.ndarray, kind: str) -> np.ndarray:
    """fp32 numbers as the items of a `Tensor` of that kind, rounded to nearest, ties to even."""
    if kind == "F16":
        with np.errstate(over="ignore"):
            return numbers.astype(np.float16)
    return numbers if kind == "F32" else float32_to_bfloat16(numbers)


def fits_half(numbers: np.ndarray) -> bool:
    """Whether float16, or else bfloat16, holds every one of the fp32 numbers exactly (then all are finite)."""
    if not np.isfinite(numbers).all():
        return False
    return any(bool((rounded(numbers, kind) == numbers).all()) for kind in ("F16", "BF16"))

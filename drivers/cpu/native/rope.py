"""Rotary positions by numbers: the frequencies that transformers' configurations ask for, and their cosines and sines.

RoFormer (arXiv:2104.09864) and its stretchings: linear, dynamic NTK, YaRN (arXiv:2309.00071), LongRoPE (arXiv:2402.13753)
and Llama 3's. This computes in fp32 and in the same order of operations, as transformers does; only powers are computed
in fp64 and rounded, which gives the same as its library. Frequencies that would depend on the longest position of a batch
(dynamic, longrope) stay those of the original length, to which the context is limited: in a shared batch one process
would move its neighbours' positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
_Floats = np.ndarray


@dataclass(frozen=True, slots=True)
class Rope:
    """`frequencies` [rotated / 2] in fp32; cosines and sines are multiplied by `scale`. `limit`: positions, if not 0,
    up to which they hold."""

    frequencies: _Floats
    scale: float
    limit: int = 0

    def tables(self, positions: int) -> tuple[_Floats, _Floats]:
        """Cosines and sines [positions, rotated / 2] in fp32."""
        angle = np.arange(positions, dtype=np.float32)[:, None] * self.frequencies
        scale = np.float32(self.scale)
        cosine, sine = np.cos(angle), np.sin(angle, out=angle)
        if scale != 1:
            cosine *= scale
            sine *= scale
        return cosine, sine


def rope(parameters: Mapping[str, Any], dim: int, context: int) -> Rope:
    """The rotation of the first `dim` items of a head, for a model of `context` positions. `parameters` are transformers'
    `rope_parameters`, whose `rope_type` is one of KINDS. Raises KeyError, TypeError, ValueError, ZeroDivisionError or
    OverflowError for what makes no sense."""
    with np.errstate(all="ignore"):
        found = _rope(parameters, dim, context)
    if not np.isfinite(found.frequencies).all() or not 0 < found.scale < math.inf:
        raise ValueError(f"these numbers give frequencies that are none (type {parameters['rope_type']})")
    return found


def _rope(parameters: Mapping[str, Any], dim: int, context: int) -> Rope:
    kind, base = parameters["rope_type"], float(parameters["rope_theta"])
    if not 0 < base < math.inf:
        raise ValueError(f"rope_theta is {base}")
    if kind == "linear":
        return Rope(_plain(base, dim) / np.float32(_number(parameters["factor"])), 1.0)
    if kind == "dynamic":
        factor = _number(parameters["factor"])
        stretched = base * ((factor * context / context) - (factor - 1)) ** (dim / (dim - 2))
        return Rope(_plain(stretched, dim), 1.0, context)
    if kind == "yarn":
        return _yarn(parameters, base, dim, context)
    if kind == "longrope":
        return _longrope(parameters, base, dim, context)
    if kind == "llama3":
        return Rope(_llama3(parameters, _plain(base, dim)), 1.0)
    return Rope(_plain(base, dim), 1.0)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{value!r} is no factor")
    return float(value)


def _powers(base: float, dim: int) -> _Floats:
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.power(np.float64(base), exponents.astype(np.float64)).astype(np.float32)


def _plain(base: float, dim: int) -> _Floats:
    return np.float32(1) / _powers(base, dim)


def _yarn(parameters: Mapping[str, Any], base: float, dim: int, context: int) -> Rope:
    original = parameters["original_max_position_embeddings"]
    given = parameters["factor"]
    factor = context / original if given is None else _number(given)
    scale, mscale, every = (parameters.get(name) for name in ("attention_factor", "mscale", "mscale_all_dim"))
    if scale is None:
        scale = _magnitude(factor)
        if mscale and every:
            scale = _magnitude(factor, mscale) / _magnitude(factor, every)

    def turns(rotations: float) -> float:
        """The item of the head that turns so often within the original context."""
        return (dim * math.log(original / (rotations * 2 * math.pi))) / (2 * math.log(base))

    low, high = turns(parameters.get("beta_fast") or 32), turns(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = (np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    one = np.float32(1)
    kept = one - np.clip(ramp, 0, 1, dtype=np.float32)
    powers = _powers(base, dim)
    stretched, plain = one / (np.float32(factor) * powers), one / powers
    return Rope(stretched * (one - kept) + plain * kept, float(scale))


def _magnitude(factor: float, weight: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _longrope(parameters: Mapping[str, Any], base: float, dim: int, context: int) -> Rope:
    original = parameters["original_max_position_embeddings"]
    for name in ("short_factor", "long_factor"):
        if not isinstance(parameters[name], list) or len(parameters[name]) != dim // 2:
            raise ValueError(f"{name} has not the {dim // 2} numbers that were wanted")
    short = np.array(parameters["short_factor"], dtype=np.float32)
    scale, factor = parameters.get("attention_factor"), parameters.get("factor")
    if factor is None:
        factor = context / original
    if scale is None:
        scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return Rope(np.float32(1) / (short * _powers(base, dim)), float(scale), int(original))


def _llama3(parameters: Mapping[str, Any], plain: _Floats) -> _Floats:
    factor = np.float32(_number(parameters["factor"]))
    low, high = (_number(parameters[name]) for name in ("low_freq_factor", "high_freq_factor"))
    original = parameters["original_max_position_embeddings"]
    longest, shortest = original / low, original / high
    one = np.float32(1)  # torch divides a number by a tensor as the number times the reciprocal
    length = one / plain * np.float32(2 * math.pi)
    found = np.where(length > np.float32(longest), plain / factor, plain)
    smooth = (one / length * np.float32(original) - np.float32(low)) / np.float32(high - low)
    between = (one - smooth) * found / factor + smooth * found
    medium = (length >= np.float32(shortest)) & (length <= np.float32(longest))
    return np.where(medium, between, found)

"""Seeds and counter-based numbers for the core: splitmix64 (Steele, Lea and Flood, OOPSLA 2014), keyed."""

from __future__ import annotations

_MASK = (1 << 64) - 1


def mix(a: int, b: int) -> int:
    """A 64-bit number that is a fixed, well-mixed function of two integers."""
    z = (a * 0x9E3779B97F4A7C15 + b * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & _MASK
    for _ in range(2):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        z ^= z >> 31
    return z


def seed_of_child(seed: int, index: int) -> int:
    """The seed of a process's `index`-th forked child (from 1)."""
    return mix(seed, index) >> 1

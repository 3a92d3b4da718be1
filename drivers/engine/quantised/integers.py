"""Integers of 2 to 8 bits out of the 32-bit words in which checkpoints keep them.

All formats here fill words from their lowest bit, one value after the other; a width that does not divide 32 goes on in
the next word. They differ in what they pack along, and AWQ in the order of eight columns (awq.py).
"""

from __future__ import annotations

import numpy as np


def words(count: int, bits: int) -> int:
    """32-bit words that `count` values take."""
    return -(-count * bits // 32)


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """int32 [rows, words] -> uint8 [rows, count], the values as they are stored (0 .. 2**bits - 1)."""
    octets = np.ascontiguousarray(packed).astype("<i4", copy=False).view(np.uint8)
    if bits == 8:
        return octets[:, :count]
    if bits == 4:
        return np.stack((octets & 15, octets >> 4), axis=2).reshape(len(octets), -1)[:, :count]
    stream = np.unpackbits(octets, axis=1, bitorder="little")[:, : count * bits]
    places = (1 << np.arange(bits)).astype(np.uint8)
    result: np.ndarray = (stream.reshape(len(octets), count, bits) * places).sum(axis=2, dtype=np.uint8)
    return result


def nibbles(octets: np.ndarray, *, low_first: bool = True) -> np.ndarray:
    """uint8 [..., n] -> uint8 [..., 2n], the two halves of each byte."""
    halves = (octets & 15, octets >> 4) if low_first else (octets >> 4, octets & 15)
    return np.stack(halves, axis=-1).reshape(*octets.shape[:-1], -1)

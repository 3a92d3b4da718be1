"""The vocabulary of simulated models, made from its size alone: their driver and the SDK's tokenizer have it in common.

The first ids are bytes, the common ones first, so that any text can be encoded and comes back unchanged; the others are
made-up words of a few syllables; the last id ends a text.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from functools import lru_cache
from itertools import chain, islice, product

END = "<|end|>"
BYTES = 256
MOST_WORDS = 1 << 17  # ids beyond these have no word, and no text
_COMMON = (" " + string.ascii_lowercase + "\n.,?!'" + string.digits + string.ascii_uppercase).encode()
_SYLLABLES = [consonant + vowel for consonant in "bdfghjklmnprstvwz" for vowel in "aeiou"]


@lru_cache
def byte_ids() -> dict[int, int]:
    """The id of each byte, in the order of ids."""
    rest = (byte for byte in chain(range(0x20, 0x7F), range(BYTES)))
    return {byte: number for number, byte in enumerate(dict.fromkeys(chain(_COMMON, rest)))}


def words(count: int) -> list[str]:
    """The texts of the first `count` ids behind the bytes: each is a space and a word."""
    made = chain.from_iterable(product(_SYLLABLES, repeat=length) for length in (2, 3))
    return [" " + "".join(word) for word in islice(made, max(0, count))]


@lru_cache(maxsize=4)
def texts(vocab: int) -> list[bytes]:
    """The text of every id that has one, the last id excepted."""
    ordinary = min(vocab - 1, MOST_WORDS)
    made = [bytes([byte]) for byte in byte_ids()][:ordinary]
    return made + [word.encode() for word in words(ordinary - len(made))]


def encode(text: bytes, vocab: int) -> list[int]:
    """The ids of a text. Raises ValueError naming the first byte that has none in so small a vocabulary."""
    ids = [byte_ids()[byte] for byte in text]
    if (wrong := next((byte for byte, number in zip(text, ids, strict=True) if number >= vocab - 1), None)) is not None:
        raise ValueError(f"a vocabulary of {vocab} has no id for the byte {bytes([wrong])!r}; {BYTES + 1} ids have all")
    return ids


def decode(ids: Iterable[int], vocab: int) -> bytes:
    """The text of ids; the end has none."""
    known = texts(vocab)
    return b"".join(known[number] for number in ids if number < len(known))

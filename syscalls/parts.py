"""Long requests, decoded in parts: a million tokens take 50 ms, in which nobody else would be heard.

Only lists of tokens can be long by their number; other values of a request are few, and bytes and text cost nothing to
take. So the tokens are taken out piece by piece and the rest is decoded as any request (wire.py), with the same
sentences about what is wrong. A list of tokens may come as msgpack's array of integers, or packed: as bytes, 4 for each
token, the least significant one first. That is what clients here send when there are many.

As all of wire.py this trusts nothing: a part is of bounded size, whatever the frame says.
"""

from __future__ import annotations

import functools
import re
import sys
from array import array
from collections.abc import Generator, Iterable

import msgspec

from llmasos.syscalls import limits
from llmasos.syscalls.records import Token

LONG = 1 << 16  # bytes of a frame that is decoded in parts
PACKED = LONG >> 2  # tokens that are sent packed
MAX_VALUES = 1 << 15  # of a long request, besides its tokens
_PART = 1 << 12  # tokens, or values, of one part
_INTEGER = rb"[\x00-\x7f\xe0-\xff]|[\xcc\xd0].|[\xcd\xd1]..|[\xce\xd2].{4}|[\xcf\xd3].{8}"
# Of a value's first byte: how many bytes follow it; how many tell of its bytes; how many of its values, of which each is
# so many.
_SIZES = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8, 0xCA: 4, 0xCB: 8}
_SIZES |= {0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}
_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4}
_BINS = (0xC4, 0xC5, 0xC6)
_VALUES = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
_tokens = msgspec.msgpack.Decoder(list[Token]).decode
_PLACE = re.compile(r" - at `\$\[(\d+)\]`")

Frame = bytes | bytearray


class Packed(array):  # type: ignore[type-arg]  # no type can be given to it as it runs
    """Tokens, 4 bytes each, all of them tokens (0 to 2**31 - 1); `highest` is the greatest, -1 if there are none."""

    __slots__ = ("highest",)
    highest: int

    def __new__(cls, tokens: Iterable[int] | bytes = b"") -> Packed:
        made: Packed = super().__new__(cls, "i", tokens)  # type: ignore[assignment]  # typeshed: an array
        made.highest = -1
        return made


class Faulty(Exception):
    """What is wrong, in msgspec's words and with the place as it writes it, less the argument's own number."""


def packed(tokens: Iterable[int]) -> bytes:
    """Tokens as they are sent. Raises OverflowError, TypeError: they are no int32."""
    numbers = array("i", tokens)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def header(frame: Frame, at: int) -> tuple[int, int]:
    """How many values the array at `at` has, and where they begin. Raises Faulty."""
    first = _byte(frame, at)
    if first & 0xF0 == 0x90:
        return first & 0x0F, at + 1
    if first not in (0xDC, 0xDD):
        raise Faulty("Expected `array`")
    begin = at + 1 + _VALUES[first][0]
    return int.from_bytes(frame[at + 1 : begin], "big"), begin


def array_of(count: int) -> bytes:
    """What stands before so many values."""
    return bytes((0x90 | count,)) if count < 16 else b"\xdd" + count.to_bytes(4, "big")


def taken(frame: Frame, at: int) -> Generator[None, None, tuple[Packed | None, int]]:
    """The tokens of a value that begins at `at`, in either form, and where it ends; None: it is no list of tokens.
    Raises Faulty."""
    first = _byte(frame, at)
    if first in _BINS:
        begin = at + 1 + _BYTES[first]
        size = int.from_bytes(frame[at + 1 : begin], "big")
        if len(frame) < begin + size:
            raise Faulty("Input data was truncated")
        return (yield from _unpacked(frame, begin, size)), begin + size
    if first & 0xF0 != 0x90 and first not in (0xDC, 0xDD):
        return None, at
    count, begin = header(frame, at)
    if count > limits.MAX_TOKENS_PER_CALL:
        raise Faulty(f"Expected `array` of length <= {limits.MAX_TOKENS_PER_CALL}")
    return (yield from _listed(frame, begin, count))


def _unpacked(frame: Frame, begin: int, size: int) -> Generator[None, None, Packed]:
    if size % 4 or size > 4 * limits.MAX_TOKENS_PER_CALL:
        raise Faulty(f"Expected `array` of length <= {limits.MAX_TOKENS_PER_CALL}, or 4 bytes for each token")
    found = Packed()
    view = memoryview(frame)
    for at in range(begin, begin + size, 16 * _PART):
        came = bytes(view[at : min(at + 16 * _PART, begin + size)])
        part = array("i", came)
        if sys.byteorder == "big":
            part.byteswap()
        if not came[3::4].isascii():  # the sign is in the last byte of each
            wrong = next(number for number, token in enumerate(part) if token < 0)
            raise Faulty(f"Expected `int` >= 0 - at `$[{len(found) + wrong}]`")
        found.highest = max(found.highest, max(part))
        found.extend(part)
        yield
    return found


def _listed(frame: Frame, begin: int, count: int) -> Generator[None, None, tuple[Packed, int]]:
    found, at = Packed(), begin
    while len(found) < count:
        most = min(_PART, count - len(found))
        end = _end_of_integers(frame, at, most)
        try:
            part = _tokens(b"\xdc" + most.to_bytes(2, "big") + frame[at:end])
        except msgspec.DecodeError as error:
            raise Faulty(_PLACE.sub(lambda place: f" - at `$[{int(place[1]) + len(found)}]`", str(error))) from None
        found.highest = max(found.highest, max(part))
        found.extend(array("i", part))
        at = end
        yield
    return found, at


def _end_of_integers(frame: Frame, at: int, count: int) -> int:
    """Where `count` integers end; where something else is among them, behind that, for msgspec to say what it is."""
    found = _integers(count).match(frame, at)
    return found.end() if found is not None else at + 9 * count + 9


@functools.lru_cache(8)
def _integers(count: int) -> re.Pattern[bytes]:
    return re.compile(rb"(?:%s){%d}+" % (_INTEGER, count), re.DOTALL)  # and no way back


def skipped(frame: Frame, at: int, left: list[int]) -> Generator[None, None, int]:
    """Where the value that begins at `at` ends. `left[0]`: values that there still may be. Raises Faulty."""
    values = 1
    while values:
        values -= 1
        left[0] -= 1
        if left[0] < 0:
            raise Faulty(f"at most {MAX_VALUES} values are possible in a request, besides tokens")
        if not left[0] % _PART:
            yield
        first = _byte(frame, at)
        at += 1
        if first < 0x80 or first >= 0xE0 or 0xC0 <= first <= 0xC3:
            continue
        if first < 0x90:
            values += 2 * (first & 0x0F)
        elif first < 0xA0:
            values += first & 0x0F
        elif first < 0xC0:
            at += first & 0x1F
        elif first in _SIZES:
            at += _SIZES[first]
        elif first in _BYTES:
            size = _BYTES[first]
            at += size + int.from_bytes(frame[at : at + size], "big") + (first in (0xC7, 0xC8, 0xC9))
        else:
            size, each = _VALUES[first]
            values += each * int.from_bytes(frame[at : at + size], "big")
            at += size
    if at > len(frame):
        raise Faulty("Input data was truncated")
    return at


def _byte(frame: Frame, at: int) -> int:
    if at >= len(frame):
        raise Faulty("Input data was truncated")
    return frame[at]

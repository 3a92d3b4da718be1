"""Long requests come to the same, and are refused in the same words, whether they are decoded at once or in parts."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.syscalls import limits, parts, wire
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import Sampler
from llmasos.syscalls.table import BY_RECORD, Call, Exec, Feed, Spawn

TOKENS = [number * 7919 % (1 << 31) for number in range(40_000)]


def as_integers(call: Call[Any], seq: int = 9) -> bytes:
    """A request as clients sent it before tokens could be packed."""
    return msgspec.msgpack.encode((limits.PROTOCOL_VERSION, seq, BY_RECORD[type(call)].number, call))


def decoded(frame: bytes) -> tuple[wire.Request, int]:
    """The request, and in how many parts it was decoded."""
    work, steps = wire.decode_in_parts(frame), 0
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value, steps
        steps += 1


def refusal(frame: bytes) -> wire.RefusedFrame:
    with pytest.raises(wire.RefusedFrame) as caught:
        decoded(frame)
    return caught.value


@pytest.mark.parametrize(
    "call",
    [
        Feed(3, TOKENS, [b"\xce" * 1000, b""]),
        Spawn("tiny", TOKENS, Sampler(0.7, 40, 0.9), "name", records=[b"x"] * 300),
        Exec(7, "tiny", TOKENS),
    ],
)
def test_packed_and_as_integers_a_request_is_the_same(call: Call[Any]) -> None:
    for frame in (wire.encode_request(9, call), as_integers(call)):
        request, steps = decoded(frame)
        found: Any = request.call
        assert (request.seq, type(found), found.tokens.tolist()) == (9, type(call), TOKENS)
        assert found.tokens.highest == max(TOKENS)
        assert msgspec.structs.replace(found, tokens=TOKENS) == call
        assert steps >= 3
    assert len(wire.encode_request(9, call)) < len(as_integers(call))


@pytest.mark.parametrize("count", [20_480, 20_481, 30_001])
def test_integers_of_every_width_are_taken_whole(count: int) -> None:
    draw = random.Random(count)
    widths = [(b"", 1, 0x7F), (b"\xcc", 1, 0xFF), (b"\xcd", 2, 0xFFFF), (b"\xce", 4, limits.MAX_TOKEN)]
    widths += [(b"\xcf", 8, limits.MAX_TOKEN), (b"\xd2", 4, limits.MAX_TOKEN), (b"\xd0", 1, 0x7F)]
    tokens, body = [], bytearray()
    for _ in range(count):
        mark, size, most = draw.choice(widths)
        tokens.append(draw.randint(0, most))
        body += mark + tokens[-1].to_bytes(size, "big")
    request, _ = decoded(b"\x94\x01\x05\x28\x92\x03\xdd" + count.to_bytes(4, "big") + bytes(body))
    assert isinstance(request.call, Feed)
    assert request.call.tokens == parts.Packed(tokens)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [("x", "found text"), (-3, ""), (1 << 31, ""), ([], "found a list"), (None, ""), (1.5, "")],
)
@pytest.mark.parametrize("place", [0, 4095, 4096, 39_999])
def test_a_fault_among_many_tokens_is_told_in_the_same_words(wrong: Any, said: str, place: int) -> None:
    tokens: list[Any] = [*TOKENS]
    tokens[place] = wrong
    frame = as_integers(Feed(3, tokens))
    with pytest.raises(wire.RefusedFrame) as at_once:
        wire.decode_request(frame)
    found = refusal(frame)
    assert (found.seq, found.errno, found.reason) == (9, Errno.EINVAL, at_once.value.reason)
    assert f"tokens[{place}]" in found.reason
    assert wire.encode_request(9, Feed(3, tokens)) == frame or wrong == -3, "and clients let the kernel say it"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (Feed(-3, TOKENS), "pid: 1 or more, found -3"),
        (Feed(3, TOKENS, [b""] * 5000), "records: at most 4096 elements"),
        (Feed(3, [1] * (limits.MAX_TOKENS_PER_CALL + 1)), "tokens: at most 1048576 elements"),
        (Spawn("tiny", TOKENS, name="n" * 200), "name: at most 128 characters"),
    ],
)
def test_a_fault_beside_many_tokens_is_told_as_ever(call: Call[Any], said: str) -> None:
    for frame in (wire.encode_request(9, call), as_integers(call)):
        assert said in refusal(frame).reason


def test_packed_tokens_below_zero_or_cut_through_are_refused() -> None:
    frame = bytearray(wire.encode_request(9, Feed(3, TOKENS)))
    frame[-3] |= 0x80  # before the two records' empty list: the sign of the last token
    frame[-2] |= 0x80
    found = refusal(bytes(frame))
    assert f"tokens[{len(TOKENS) - 1}]" in found.reason
    odd = b"\x94\x01\x09\x28\x92\x03\xc6" + (70_001).to_bytes(4, "big") + bytes(70_001)
    assert "4 bytes for each token" in refusal(odd).reason or "elements" in refusal(odd).reason


def test_values_without_end_are_refused_after_a_bounded_number() -> None:
    many = b"\x94\x01\x2a\x28\x93\x01\x91\x01\xdd\x00\x60\x00\x00" + b"\x90" * 0x600000
    found = refusal(many)
    assert (found.seq, found.errno) == (0x2A, Errno.EINVAL)
    assert str(parts.MAX_VALUES) in found.reason
    deep = b"\x94\x01\x2a\x28\x93\x01" + b"\x91" * 100_000
    assert refusal(deep).errno is Errno.EINVAL


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_a_long_frame_that_is_changed_anywhere_is_refused_or_means_what_it_says(data: st.DataObject) -> None:
    call = Feed(3, TOKENS[:17_000], [b"abc"])
    frame = bytearray(data.draw(st.sampled_from([as_integers(call), wire.encode_request(9, call)])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0, 30), st.integers(0, len(frame) - 1)))
        frame[at] = data.draw(st.integers(0, 255))
    changed = bytes(frame[: data.draw(st.sampled_from([len(frame), len(frame) - 1, 66_000]))])
    with suppress(wire.RefusedFrame):
        request, _ = decoded(changed)
        with suppress(wire.RefusedFrame):  # packed tokens are more than that takes
            assert wire.decode_request(changed).seq == request.seq

"""The decoder under fire: 200,000 mutated frames, each either a request or refused with an errno and a reason."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from llmasos.syscalls import limits, wire
from llmasos.syscalls.errno import Errno, SyscallError
from tests.syscalls.wire_frames import frames

FRAMES = 210_000


def outcome(frame: bytes) -> wire.Request | wire.RefusedFrame:
    try:
        return wire.decode_request(frame)
    except wire.RefusedFrame as refused:
        return refused


@pytest.mark.long
def test_every_one_of_200_000_mutated_frames_is_a_request_or_refused_with_a_reason() -> None:
    seen: Counter[str] = Counter()
    for batch in range(FRAMES // 10_000):
        for frame in frames(batch, 10_000):
            found = outcome(frame)
            assert 0 <= found.seq <= wire.MAX_SEQ
            if isinstance(found, wire.RefusedFrame):
                assert found.reason
                seen[found.errno.name] += 1
            else:
                seen["OK"] += 1
                if found.call is not None:
                    assert len(wire.encode_request(found.seq, found.call)) <= limits.MAX_REQUEST_BYTES
    assert sum(seen.values()) == FRAMES
    assert seen.keys() == {"OK", "EINVAL", "ENOSYS", "EPROTO"}, seen  # the mutations reach every kind of answer
    assert min(seen.values()) > 100, seen


def test_noise_is_refused() -> None:
    chance = random.Random(0)
    found = [outcome(chance.randbytes(chance.randrange(40))) for _ in range(20_000)]
    refused = [one for one in found if isinstance(one, wire.RefusedFrame)]
    assert len(refused) > 19_900
    assert {one.errno for one in refused} <= {Errno.EINVAL, Errno.EPROTO, Errno.ENOSYS}


def test_replies_under_fire_are_replies_or_protocol_errors() -> None:
    chance = random.Random(1)
    valid = wire.encode_reply(9, Errno.OK, [1, 2, 3])
    errors = Counter[Errno]()
    for _ in range(20_000):
        frame = bytearray(valid)
        frame[chance.randrange(len(frame))] = chance.randrange(256)
        try:
            wire.decode_reply(bytes(frame))
        except SyscallError as error:
            errors[error.errno] += 1
    assert errors.keys() == {Errno.EPROTO}

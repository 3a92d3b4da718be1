"""Frames that no honest peer sends."""

from __future__ import annotations

import random
from typing import Any

from llmasos.syscalls import wire
from llmasos.syscalls.records import Limits, Sampler
from llmasos.syscalls.table import (
    Attach,
    Call,
    Decode,
    Dmesg,
    Feed,
    Fork,
    Getinfo,
    Kill,
    Null,
    Ps,
    Read,
    Setlimits,
    Setsched,
    Spawn,
    Trace,
    Wait,
)

SEEDS: list[Call[Any]] = [
    Attach("fuzz", 31),
    Null(),
    Spawn("tiny", [1, 2, 3], Sampler(0.7, 40, 0.9), "name", limits=Limits(10, 10, 10)),
    Fork(3, 2),
    Feed(3, [1, 200, 70_000, 2**31 - 1]),
    Decode(3, 16, [2], Sampler(), 5, 1.5, False),
    Read(3, -1, 10, 0.5, True),
    Ps(2, 10),
    Dmesg(),
    Trace(0, 10, 0.0),
    Getinfo(3),
    Kill(3),
    Wait(0, 1.0),
    Setsched(3, 5),
    Setlimits(3, Limits()),
]  # fmt: skip

INTERESTING = [
    b"\xc0", b"\xc1", b"\xc2", b"\xc4\xff", b"\xca\x7f\xc0\x00\x00", b"\xcb\x7f\xf8" + bytes(6), b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + bytes(7), b"\xd9\xff", b"\xdb\xff\xff\xff\xff", b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff", b"\xc7\x05\x01", b"\xd6\xff", b"\x80", b"\x90", b"\xa0", b"\xff", b"\x91" * 40,
]  # fmt: skip


def frames(seed: int, count: int) -> list[bytes]:
    """Mutations of valid frames: bits flipped, bytes replaced, cut, doubled, spliced and grown."""
    chance = random.Random(seed)
    valid = [wire.encode_request(n, call) for n, call in enumerate(SEEDS)]
    valid.append(wire.encode_cancel(5, 4))
    made = []
    for _ in range(count):
        frame = bytearray(chance.choice(valid))
        for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
            at = chance.randrange(len(frame) + 1)
            match chance.randrange(7):
                case 0 if at < len(frame):
                    frame[at] ^= 1 << chance.randrange(8)
                case 1 if at < len(frame):
                    frame[at] = chance.randrange(256)
                case 2:
                    del frame[at:]
                case 3:
                    frame[at:at] = chance.choice(INTERESTING)
                case 4:
                    frame[at : at + chance.randrange(4)] = b""
                case 5:
                    other = chance.choice(valid)
                    frame[at:] = other[chance.randrange(len(other)) :]
                case _:
                    frame += chance.randbytes(chance.randrange(8))
        made.append(bytes(frame))
    return made

"""ZMTP as the kernel speaks it: bytes in any pieces are the same messages, and what breaks the form is told so."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.syscalls import zmtp
from llmasos.syscalls.errno import Errno
from tests.zmtp_client import GREETING, command, frame, ready

MOST = 10_000


def room(size: int) -> str:
    return ""


def fed(data: bytes, cuts: random.Random | None = None) -> tuple[zmtp.Incoming, list[zmtp.Arrived]]:
    """What comes of bytes, in one piece or in many."""
    found: list[zmtp.Arrived] = []
    incoming, at = zmtp.Incoming(MOST), 0
    while at < len(data):
        step = len(data) - at if cuts is None else min(len(data) - at, cuts.choice((1, 2, 7, 63, 500, 5000)))
        if (place := incoming.place()) is not None:
            step = min(step, len(place))
            place[:step] = data[at : at + step]
            incoming.filled(step)
        else:
            incoming.put(data[at : at + step])
        at += step
        while (arrived := incoming.next(room)) is not None:
            found.append(bytes(arrived) if isinstance(arrived, bytearray) else arrived)
    return incoming, found


@given(st.lists(st.binary(max_size=9000), max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_messages_are_the_same_in_whatever_pieces_they_come(bodies: list[bytes], cuts: random.Random) -> None:
    _, found = fed(GREETING + ready() + b"".join(map(frame, bodies)), cuts)
    assert found == [zmtp.Ready(b""), *bodies]


def test_the_name_that_a_peer_gives_itself_is_read() -> None:
    _, found = fed(GREETING + ready(Identity=b"me"))
    assert found == [zmtp.Ready(b"me")]


@pytest.mark.parametrize("cuts", [None, random.Random(3)])
def test_of_a_message_of_several_parts_nothing_is_kept(cuts: random.Random | None) -> None:
    parts = frame(b"x" * 3000, more=True) + frame(b"", more=True) + frame(b"y" * 300)
    incoming, found = fed(GREETING + ready() + parts + frame(b"next"), cuts)
    assert found[1:] == [zmtp.Refused(Errno.EINVAL, "a message is one frame, 3 came", b""), b"next"]
    assert (incoming.held, incoming.reserved) == (0, 0)


@pytest.mark.parametrize("cuts", [None, random.Random(5)])
def test_too_long_a_message_is_refused_by_its_first_bytes_and_the_next_is_taken(cuts: random.Random | None) -> None:
    long = bytes(range(250)) * 41
    incoming, found = fed(GREETING + ready() + frame(long) + frame(b"next"), cuts)
    refused = found[1]
    assert isinstance(refused, zmtp.Refused)
    assert (refused.errno, refused.prefix, found[2:]) == (Errno.EMSGSIZE, long[:24], [b"next"])
    assert f"{len(long):,} bytes" in refused.reason
    assert incoming.held == 0


def test_a_frame_without_room_is_refused_and_thrown_away() -> None:
    incoming = zmtp.Incoming(MOST)
    incoming.put(GREETING + ready() + frame(bytes(9000))[:100])
    assert incoming.next(room) == zmtp.Ready(b"")
    assert incoming.next(lambda size: f"no {size}") is None  # the rest is awaited, but not kept
    incoming.put(bytes(9000 + 9 - 100) + frame(b"next"))
    assert incoming.next(room) == zmtp.Refused(Errno.EAGAIN, "no 9000", bytes(24))
    assert incoming.next(room) == b"next"


def test_a_ping_is_answered_with_its_context() -> None:
    _, found = fed(GREETING + ready() + command(b"PING", b"\x00\x0acontext"))
    assert found[1:] == [zmtp.Pong(command(b"PONG", b"context"))]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        GREETING[:10] + b"\x02" + GREETING[11:],
        GREETING[:12] + b"PLAIN".ljust(20, b"\0") + bytes(32),
        GREETING + frame(b"before READY"),
        GREETING + command(b"HELLO"),
        GREETING + command(b"READY", b"\x04Name\x00\x00\x00\x09short"),
        GREETING + ready() + b"\x08\x00",
        GREETING + ready() + b"\x05\x00",
        GREETING + ready() + b"\x06" + (1 << 20).to_bytes(8, "big"),
        GREETING + ready() + b"\x02" + (1 << 62).to_bytes(8, "big"),
        GREETING + ready() + frame(b"", more=True) * 100,
        GREETING + ready() + frame(bytes(6000), more=True) * 4,
    ],
)
def test_who_breaks_the_form_is_told_from_the_first_byte_that_does(data: bytes) -> None:
    with pytest.raises(zmtp.Broken):
        fed(data)
    with pytest.raises(zmtp.Broken):
        fed(data, random.Random(1))


@given(st.binary(max_size=300), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_messages_or_broken(data: bytes, cuts: random.Random) -> None:
    for whole in (data, GREETING + data, GREETING + ready() + data):
        try:
            incoming, _ = fed(whole, cuts)
        except zmtp.Broken:
            continue
        assert incoming.held <= zmtp.CHUNK
        assert incoming.reserved <= MOST

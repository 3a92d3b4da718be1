"""A program's connection to a kernel of its machine, where that does not read."""

from __future__ import annotations

import os
import socket
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from llmasos.syscalls import zmtp
from llmasos.syscalls.stream import Stream

MOST = 1 << 20
FRAME = bytes(100)


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[tuple[Stream, socket.socket]]:
    """A connection, and what a kernel has of it."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(tmp_path / "kernel"))
        listener.listen(1)
        with closing(Stream(f"ipc://{tmp_path / 'kernel'}", MOST)) as stream, listener.accept()[0] as kernel:
            kernel.sendall(zmtp.OPENING)
            stream.receive(deque())
            while not stream.waits:
                assert stream.send(FRAME)
            yield stream, kernel


def steps(stream: Stream, frames: int) -> int:
    """Lines of the stream's own code that sending so many frames takes."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename != Stream.send.__code__.co_filename:  # of a collector's callback, say
            return None
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for _ in range(frames):
            assert stream.send(FRAME)
    finally:
        sys.settrace(before)
    return count


def test_what_a_frame_costs_does_not_grow_with_those_that_wait(ends: tuple[Stream, socket.socket]) -> None:
    stream, _ = ends
    first = steps(stream, 50)
    for _ in range(2000):
        assert stream.send(FRAME)
    assert steps(stream, 50) == first


def test_as_many_bytes_wait_as_may_and_when_there_is_room_again_as_many_more(ends: tuple[Stream, socket.socket]) -> None:
    stream, kernel = ends
    counts = []
    for _ in range(2):
        count = 0
        while stream.send(FRAME):
            count += 1
        counts.append(count)
        while stream.waits:
            kernel.recv(1 << 20)
            stream.flush()
        while not stream.waits:
            assert stream.send(FRAME)
    assert counts[0] == pytest.approx(MOST / (len(FRAME) + 2), abs=2)
    assert counts[1] == pytest.approx(counts[0], abs=2)

"""A client of several threads that is closed at the moment at which its connection is lost."""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import zmq

from llmasos.syscalls import calls, line, wire
from llmasos.syscalls.blocking import Client
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.forked import Origin
from llmasos.syscalls.reconnect import Search
from llmasos.syscalls.remote import Remote
from llmasos.syscalls.table import Attach, Leave, Null
from llmasos.syscalls.turn import Turn
from tests.booted import PATIENCE


class Line:
    """One by which nothing comes, and whose loss another thread has heard of: only a nudge wakes who waits there."""

    quiet = True

    def __init__(self) -> None:
        self.waits, self.nudged = threading.Event(), threading.Event()

    def send(self, frame: bytes) -> bool:
        return True

    def take_some(self, inbox: deque[bytes], most: int) -> None:
        pass

    def wait(self, timeout: float | None) -> None:
        self.waits.set()
        self.nudged.wait()

    def nudge(self) -> None:
        self.nudged.set()

    def close(self) -> None:
        pass


def client_at(line: Any) -> Client:
    client = Client.__new__(Client)
    client.place, client.origin, client.showing = Path("/nowhere"), Origin(), None
    client._lock, client._turn, client._line = threading.RLock(), Turn(), line
    client._calls, client._inbox = calls.Calls(), deque()
    client._leader = client._gone = client._watch = None
    client._closed = client._down = False
    return client


def test_who_waits_at_the_line_hears_that_it_is_closed_though_another_has_just_found_it_lost() -> None:
    line, found = Line(), list[Errno]()
    client = client_at(line)

    def call() -> None:
        with pytest.raises(SyscallError) as caught:
            client(Null())
        found.append(caught.value.errno)

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    assert line.waits.wait(PATIENCE)
    client._down = True  # as who collects does, before the thread that finds the next kernel has heard of it
    closing = threading.Thread(target=client.close, daemon=True)
    closing.start()
    closing.join(PATIENCE)
    caller.join(PATIENCE)
    assert not closing.is_alive()
    assert found == [Errno.EPIPE]


FAR = Remote("127.0.0.1", 1, b"k" * 32, b"s" * 32)


class Heard(line.Line):
    """A connection to another machine by which these frames come, and which is lost then."""

    def __init__(self, *frames: bytes) -> None:
        self.frames = list(frames)

    def take(self, inbox: deque[bytes]) -> bool:
        if self.frames:
            inbox.append(self.frames.pop(0))
            return True
        return False

    def wait(self, timeout: float | None) -> None:
        """There is more."""


def test_who_leaves_a_kernel_on_another_machine_waits_for_its_answer_and_for_no_other() -> None:
    said = [wire.encode_reply(seq, Errno.OK, None) for seq in (3, 7, 8)]
    heard = Heard(*said)
    heard.await_answer(7)
    assert heard.frames == said[2:]
    heard.await_answer(99)  # it is lost before that comes
    assert heard.frames == []


def test_who_gave_up_before_it_was_let_in_leaves_nevertheless_but_only_what_it_may_have_come_into() -> None:
    made: calls.Calls[None] = calls.Calls()
    assert not made.must_leave(FAR, None), "nothing was sent"
    made.sent = made.begin(Attach(), None)[0]
    assert made.must_leave(FAR, None)
    assert not made.must_leave(Path("/run"), None), "here the kernel knows that it has gone"
    seq, frame = made.leave()
    assert (wire.decode_request(frame).seq, type(wire.decode_request(frame).call)) == (seq, Leave)


def test_who_is_told_that_its_key_is_refused_knocks_no_more() -> None:
    pytest.importorskip("nacl", reason="CURVE needs the extra `net`")
    search = Search(FAR, 30.0, 0.0, None)
    assert search.found(1.0)
    search.refused = FAR.why_not(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
    assert search.found(2.0), "there may be room for strangers a moment later"
    search.refused = FAR.why_not(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    with pytest.raises(SyscallError, match="does not accept the key") as caught:
        search.found(3.0)
    assert caught.value.errno is Errno.EPIPE

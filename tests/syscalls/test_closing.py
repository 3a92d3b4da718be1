"""A client of several threads that is closed at the moment at which its connection is lost."""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from llmasos.syscalls import calls
from llmasos.syscalls.blocking import Client
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.forked import Origin
from llmasos.syscalls.table import Null
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

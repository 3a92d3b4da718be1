"""What a test leaves open in the process of the tests, told from what other tests have left there.

Thousands of tests run in one process. What one has left (sockets that libzmq's threads close, systems that the
collector of cycles finds, threads that connect again) goes at any moment of a later one. So no test counts what is open,
or compares lists of numbers: what is new since it began is its own, and what others close is no concern of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.booted import eventually


def opened() -> dict[int, str]:
    """What each open descriptor is: a path, `socket:[inode]`, ..."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the listing itself, or another thread has closed it meanwhile
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def new(before: dict[int, str]) -> dict[int, str]:
    """What is open that was not."""
    return {number: what for number, what in opened().items() if before.get(number) != what}


@contextmanager
def nothing_left_open() -> Iterator[None]:
    """What is opened within this is closed at its end, or soon after: others' threads open things for a moment too."""
    before = opened()
    yield
    closed(before)


def closed(before: dict[int, str]) -> None:
    """What was opened since is closed, or soon will be."""
    try:
        eventually(lambda: not new(before), "what was opened is closed")
    except AssertionError as error:
        raise AssertionError(f"{error}: {new(before)}") from None


def threads(name: str) -> set[threading.Thread]:
    """Those of this name that run."""
    return {thread for thread in threading.enumerate() if thread.name == name}

"""A program that connects with ever more descriptors, and prints as JSON what it was told: `python -m
tests.syscalls.scarcely PLACE`, which is the runtime directory of a kernel. It is a process of its own because the limit
is one of numbers: what other tests have left open in theirs would close meanwhile, and make room."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

import llmasos
from llmasos.syscalls import blocking, client, scarce
from llmasos.syscalls.dealer import Dealer
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.remote import Remote
from tests.booted import PATIENCE
from tests.leftovers import closed, nothing_left_open, opened

MOST = 24  # more descriptors than any connection takes
Told = list[tuple[str, str]]  # by errno and reason


@contextmanager
def left(count: int) -> Iterator[None]:
    """Within this the program may open so many descriptors more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = opened()
    free = [one for one in range(max(used) + MOST + 2) if one not in used]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[count], hard))  # numbers from this on cannot be had
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def tries(connect: Callable[[], object]) -> Told:
    """What comes of connecting with ever more descriptors, until it works; nothing stays open of what does not."""
    told: Told = []
    before = opened()
    for count in range(MOST):
        with left(count):
            try:
                connect()
            except SyscallError as error:
                told.append((error.errno.name, error.reason))
            else:
                return told
        closed(before)
    raise AssertionError(f"{MOST} descriptors are not enough")


def blockingly(place: Path) -> Told:
    def connect() -> None:
        blocking.connect(place, timeout=PATIENCE).close()

    connect()  # what is imported late
    with nothing_left_open():
        return tries(connect)


def by_the_sdk(place: Path) -> Told:
    def connect() -> None:
        with llmasos.System.connect(place, timeout=PATIENCE):
            pass

    connect()
    with nothing_left_open():
        return tries(connect)


def under_an_event_loop(place: Path) -> Told:
    async def once() -> Told:
        try:
            async with client.connect(place, timeout=PATIENCE):
                return []
        except SyscallError as error:
            return [(error.errno.name, error.reason)]

    async def main() -> Told:
        await once()
        before = opened()
        with left(0):
            told = await once()
        await trio.lowlevel.checkpoint()
        closed(before)
        with left(1):
            assert not await once()
        return told

    return trio.run(main)


def with_a_private_kernel(place: Path) -> Told:
    told: Told = []
    before = opened()
    for count in range(6):  # of which the first use of `tempfile` is a part
        with left(count):
            try:
                llmasos.System.connect(place / "private", boot=True)
            except SyscallError as error:
                told.append((error.errno.name, error.reason))
        closed(before)
    return told


def by_libzmq(_: Path) -> Told:
    far = Remote("127.0.0.1", 1, bytes(31) + b"\1", bytes(31) + b"\2")

    def connect() -> None:
        with scarce.told():
            Dealer(far).close()

    return tries(connect)


WAYS = blockingly, by_the_sdk, under_an_event_loop, with_a_private_kernel, by_libzmq  # whose threads close later


if __name__ == "__main__":
    print(json.dumps({way.__name__: way(Path(os.path.realpath(sys.argv[1]))) for way in WAYS}))

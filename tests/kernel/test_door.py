"""The door of a kernel: who says nothing goes, and who cannot be taken is told so."""

from __future__ import annotations

import resource
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from llmasos.kernel.edge import door
from llmasos.syscalls import transport, wire, zeromq
from llmasos.syscalls.errno import Errno, SyscallError
from tests.booted import PATIENCE


def follow(monitor: transport.Monitor, one: door.Door) -> None:
    for link in monitor.drain():
        (one.came if link.up else one.went)(link.fd)


@asynccontextmanager
async def doorway(place: Path, descriptors: int = 1024) -> AsyncIterator[door.Door]:
    """A door at `place` as a kernel has it."""
    one = door.Door(descriptors)
    links = transport.router()
    monitor = links.monitor()
    links.bind(f"ipc://{place}", one.listen(place))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(monitor.run, lambda: follow(monitor, one))
        await one.open()
        nursery.start_soon(one.sweep)
        nursery.start_soon(one.guard)
        try:
            yield one
        finally:
            nursery.cancel_scope.cancel()
            one.close()
            links.close()


def test_a_connection_that_says_nothing_does_not_keep_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "SILENT_SECONDS", 0.5)

    async def main() -> None:
        async with doorway(tmp_path / "sock") as one:
            with socket.socket(socket.AF_UNIX) as silent:
                silent.connect(f"{tmp_path}/sock")
                while await trio.to_thread.run_sync(silent.recv, 4096):  # ZeroMQ's greeting, then the end
                    pass
            while len(one):  # noqa: ASYNC110 - its monitor tells the door, not us
                await trio.sleep(0.01)

    trio.run(main)


def test_a_closed_door_says_why_and_opens_again(tmp_path: Path) -> None:
    place = f"ipc://{tmp_path}/sock"

    async def refused() -> wire.Reply | None:
        """What the next newcomer is told; None if it is taken."""
        dealer = zeromq.raw_dealer(b"", None, 1 << 20)
        try:
            dealer.connect(place)
            return wire.decode_reply(dealer.recv()) if await trio.to_thread.run_sync(dealer.poll, 1000) else None
        finally:
            dealer.close()

    async def main() -> None:
        async with doorway(tmp_path / "sock") as one:
            while len(one):  # noqa: ASYNC110 - its own first one
                await trio.sleep(0.01)
            places, one._full = one._full, 1
            for _ in range(3):
                told = await refused()
                assert told is not None
                assert (told.seq, told.errno) == (0, Errno.EAGAIN)
                assert "programs are connected" in wire.reason(told)
            assert (len(one), one.refused) == (0, 3)
            one._full = places
            with trio.fail_after(PATIENCE):
                while await refused() is not None:
                    pass

    if sys.platform == "linux":
        trio.run(main)


def test_where_there_are_plenty_of_descriptors_the_door_stands_open(tmp_path: Path) -> None:
    async def main() -> None:
        async with doorway(tmp_path / "sock", descriptors=4 * door.PLENTY) as one:
            with socket.socket(socket.AF_UNIX) as inside:
                inside.connect(f"{tmp_path}/sock")
                with trio.fail_after(PATIENCE):
                    while not len(one):  # noqa: ASYNC110
                        await trio.sleep(0.01)
            assert not door.hidden(tmp_path / "sock").exists()

    trio.run(main)


def test_a_door_listens_again_under_a_name_that_was_removed(tmp_path: Path) -> None:
    async def main() -> None:
        async with doorway(tmp_path / "sock") as one:
            (tmp_path / "sock").unlink()
            links = transport.router()
            monitor = links.monitor()
            links.bind(f"ipc://{tmp_path}/sock", one.listen(tmp_path / "sock"))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(monitor.run, lambda: follow(monitor, one))
                await one.open()
                assert (tmp_path / "sock").exists()
                nursery.cancel_scope.cancel()
            one.close()
            links.close()

    trio.run(main)


@pytest.mark.parametrize(("limits", "found"), [((100, 200), None), ((256, 1 << 20), door.ENOUGH), ((1024, 1024), 1024)])
def test_the_limit_of_descriptors_is_raised_as_far_as_it_may_be(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], found: int | None
) -> None:
    now = list(limits)
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(now))
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: now.__setitem__(slice(None), wanted))
    if found is not None:
        assert door.raise_descriptor_limit() == found
        return
    with pytest.raises(SyscallError, match="needs 256 descriptors at least, and may have 200"):
        door.raise_descriptor_limit()


def test_the_last_places_are_for_those_who_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pids: dict[int, int] = {}
    monkeypatch.setattr(door, "peer_pid", pids.__getitem__)

    async def main() -> None:
        one = door.Door(256)
        for fd in range(one.most - door.NEWCOMERS - 1):  # its process takes a descriptor too
            pids[fd] = 7
            one.came(fd)
            assert not one.refusal(fd)
        for fd, pid, refused in ((900, 7, True), (901, 8, False), (902, 8, False), (903, 8, True)):
            pids[fd] = pid
            one.came(fd)
            assert bool(one.refusal(fd)) == refused
        one.went(0)
        assert (len(one), one.refused) == (one.most - door.NEWCOMERS + 2, 2)
        one.close()

    trio.run(main)

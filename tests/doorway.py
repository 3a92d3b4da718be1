"""A door of a kernel in the test's own process, which sends everything back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from llmasos.kernel.edge import door
from llmasos.kernel.edge.peers import Peer
from llmasos.syscalls import zmtp
from tests.booted import PATIENCE


class Doorway:
    """A door that sends everything back, and what it has said."""

    def __init__(self, place: Path, descriptors: int = 1024, **options: Any) -> None:
        self.path = place / "sock"
        self.gone: list[int] = []
        self.notes: list[str] = []
        self.came: list[zmtp.Frame | zmtp.Refused] = []
        self.door = door.Door(
            descriptors,
            self.back,
            lambda peer: self.gone.append(peer.number),
            lambda peer, text: self.notes.append(text),
            **options,
        )
        self.connections, self.payers = self.door.connections, self.door.connections.payers

    def back(self, peer: Peer, message: zmtp.Frame | zmtp.Refused) -> Iterator[None] | None:
        self.came.append(message)
        self.door.send(peer, message.reason.encode() if isinstance(message, zmtp.Refused) else bytes(message))
        return None


@asynccontextmanager
async def doorway(place: Path, descriptors: int = 1024, **options: Any) -> AsyncIterator[Doorway]:
    way = Doorway(place, descriptors, **options)
    way.door.listen(way.path)
    async with served(way):
        yield way


@asynccontextmanager
async def served(way: Doorway) -> AsyncIterator[None]:
    """Its door is open."""
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(way.door.run)
            nursery.start_soon(way.door.keep_time)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()
                way.door.close()


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - the door tells nobody
        await trio.sleep(0.005)


def reached(way: Doorway, count: int) -> bool:
    return len(way.gone) >= count


async def apart(blocking: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(blocking)

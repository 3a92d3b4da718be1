"""The pump: every message arrives, once, in order, whoever sends, waits, is cancelled or goes away meanwhile."""

from __future__ import annotations

import os
import select
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from llmasos.syscalls import transport, zeromq
from llmasos.syscalls.transport import Socket
from tests.doorway import Doorway, served

PATIENCE = 120.0


def run(scenario: Callable[[str], Awaitable[None]]) -> None:
    """Run a scenario with an endpoint of its own."""

    async def bounded(endpoint: str) -> None:
        with trio.fail_after(PATIENCE):
            await scenario(endpoint)

    with tempfile.TemporaryDirectory(prefix="llmasos-") as place:
        trio.run(bounded, f"ipc://{place}/socket")


@asynccontextmanager
async def running(socket: Socket, deliver: Callable[[bytes], None]) -> AsyncIterator[Socket]:
    async with trio.open_nursery() as nursery:
        await nursery.start(socket.run, deliver)
        yield socket
        socket.close()


@asynccontextmanager
async def echo(endpoint: str) -> AsyncIterator[Doorway]:
    """A kernel's door that sends everything back."""
    way = Doorway(Path(endpoint.removeprefix("ipc://")).parent)
    way.path = Path(endpoint.removeprefix("ipc://"))
    way.door.listen(way.path)
    async with served(way):
        yield way


class Inbox:
    """What came, and a way to wait for so many."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self._came = trio.Event()

    def __call__(self, message: bytes) -> None:
        self.bodies.append(message)
        self._came.set()

    async def filled(self, count: int) -> list[bytes]:
        while len(self.bodies) < count:
            await self._came.wait()
            self._came = trio.Event()
        return self.bodies


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - sockets tell no Event
        await trio.sleep(0.01)


def numbers(count: int) -> list[bytes]:
    return [b"%d" % n for n in range(count)]


def test_a_burst_arrives_whole_and_in_order() -> None:
    async def scenario(endpoint: str) -> None:
        inbox = Inbox()
        async with echo(endpoint), running(transport.dealer(), inbox) as client:
            client.connect(endpoint)
            for frame in numbers(3000):
                assert client.send(frame)
            assert await inbox.filled(3000) == numbers(3000)

    run(scenario)


@pytest.mark.parametrize("high_water", [1, 1000])
def test_many_clients_each_get_their_own_in_order(high_water: int) -> None:
    async def scenario(endpoint: str) -> None:
        async def client() -> None:
            inbox = Inbox()
            dealer = transport.dealer()
            dealer._raw.set_hwm(high_water)
            async with running(dealer, inbox):
                dealer.connect(endpoint)
                for n, frame in enumerate(numbers(1500)):
                    assert dealer.send(frame)
                    if n % 50 == 0:
                        await trio.lowlevel.checkpoint()
                assert await inbox.filled(1500) == numbers(1500)
                assert dealer.dropped == 0

        async with echo(endpoint), trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(client)

    run(scenario)


def test_sending_while_the_owner_is_parked_loses_no_wake_up() -> None:
    """Each send may swallow the wake-up of an answer that comes at that very moment."""

    async def scenario(endpoint: str) -> None:
        inbox = Inbox()
        async with echo(endpoint), running(transport.dealer(), inbox) as client:
            client.connect(endpoint)
            for sent in range(1, 3001):
                client.send(b"x")
                if sent % 3 == 0:
                    client.send(b"y")
                    client.send(b"z")
                    await inbox.filled(sent)  # so the owner parks, at another moment each time
                else:
                    await trio.lowlevel.checkpoint()
            await inbox.filled(5000)

    run(scenario)


def test_an_owner_cancelled_all_the_time_loses_nothing() -> None:
    async def scenario(endpoint: str) -> None:
        inbox = Inbox()
        client = transport.dealer()

        async def keep_cancelling(scope: trio.CancelScope) -> None:
            for _ in range(5):
                await trio.lowlevel.checkpoint()
            scope.cancel()

        async def own() -> None:
            while len(inbox.bodies) < 2000:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(keep_cancelling, nursery.cancel_scope)
                    await client.run(inbox)

        async with echo(endpoint), trio.open_nursery() as nursery:
            client.connect(endpoint)
            nursery.start_soon(own)
            for frame in numbers(2000):
                client.send(frame)
                await trio.lowlevel.checkpoint()
            await inbox.filled(2000)
        assert inbox.bodies == numbers(2000)
        client.close()

    run(scenario)


def test_what_does_not_fit_any_more_is_refused_and_what_waits_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_BACKLOG", 1 << 20)

    async def scenario(endpoint: str) -> None:
        client = transport.dealer()
        client._raw.set_hwm(1)
        frames = [b"%d" % n + bytes(100_000) for n in range(1000)]
        inbox = Inbox()
        way = Doorway(Path(endpoint.removeprefix("ipc://")).parent)
        way.door.listen(way.path)
        async with running(client, inbox):
            client.connect(f"ipc://{way.path}")
            taken = next(n for n, frame in enumerate(frames) if not client.send(frame))  # nobody reads them
            assert taken > 5
            assert client.send(b"small")  # for which there is room still
            assert client.dropped == 1
            async with served(way):
                assert await inbox.filled(taken + 1) == [*frames[:taken], b"small"]

    run(scenario)


def test_the_monitor_tells_of_the_connection_and_its_end() -> None:
    async def scenario(endpoint: str) -> None:
        client = transport.dealer()
        monitor = client.monitor()
        links: list[bool] = []
        async with running(client, Inbox()), trio.open_nursery() as nursery:
            nursery.start_soon(monitor.run, lambda: links.extend(link.up for link in monitor.drain()))
            async with echo(endpoint):
                client.connect(endpoint)
                await until(lambda: links == [True])
            await until(lambda: links[:2] == [True, False])
            nursery.cancel_scope.cancel()

    run(scenario)


def test_closing_ends_the_owner_and_later_sends_are_refused() -> None:
    async def scenario(endpoint: str) -> None:
        async with echo(endpoint):
            client = transport.dealer()
            client.connect(endpoint)
            async with trio.open_nursery() as nursery:
                await nursery.start(client.run, lambda message: None)
                await until(lambda: client._token is not None)  # it parks
                client.close()
            assert not client.send(b"late")
            client.close()  # again is harmless

    run(scenario)


def test_closing_from_within_a_delivery_ends_the_owner() -> None:
    async def scenario(endpoint: str) -> None:
        async with echo(endpoint):
            client = transport.dealer()
            client.connect(endpoint)
            async with trio.open_nursery() as nursery:
                await nursery.start(client.run, lambda message: client.close())
                client.send(b"1")
                client.send(b"2")

    run(scenario)


def test_what_a_delivery_raises_is_not_swallowed() -> None:
    async def scenario(endpoint: str) -> None:
        def broken(message: bytes) -> None:
            raise ZeroDivisionError

        client = transport.dealer()
        async with echo(endpoint):
            client.connect(endpoint)
            client.send(b"1")
            with pytest.RaisesGroup(ZeroDivisionError):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(client.run, broken)
        client.close()

    run(scenario)


def test_a_socket_path_that_is_too_long_is_refused_with_its_length() -> None:
    endpoint = f"ipc:///tmp/{'x' * 110}"
    with pytest.raises(ValueError, match="115 bytes, at most 107"):
        zeromq.check_endpoint(endpoint)
    socket = transport.dealer()
    with pytest.raises(ValueError, match="shorter runtime directory"):
        socket.connect(endpoint)
    socket.close()


def test_the_longest_socket_path_works() -> None:
    async def scenario(endpoint: str) -> None:
        folder = Path(endpoint.removeprefix("ipc://")).parent
        longest = f"ipc://{folder}/{'x' * (zeromq.MAX_SOCKET_PATH - len(os.fsencode(folder)) - 1)}"
        inbox = Inbox()
        async with echo(longest), running(transport.dealer(), inbox) as client:
            client.connect(longest)
            client.send(b"hello")
            assert await inbox.filled(1) == [b"hello"]

    run(scenario)


def test_a_descriptor_that_has_become_a_pipe_meanwhile_is_left_alone() -> None:
    """ZeroMQ closes descriptors in a thread of its own, and the next one of that number may be the pipe by which a child
    tells that it runs: its reader would wait for ever for a duplicate that stays open."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as reader:
        for fd in (reading, writing):
            assert zeromq.credentials(fd).pid == 0
        os.close(writing)
        assert select.select([reader], [], [], 10) == ([reader], [], []), "somebody holds the other end"
        assert reader.read() == b""

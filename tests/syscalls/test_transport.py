"""The pump: every message arrives, once, in order, whoever sends, waits, is cancelled or goes away meanwhile."""

from __future__ import annotations

import os
import select
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.lowlevel
import zmq

from llmasos.syscalls import transport, zeromq
from llmasos.syscalls.transport import Message, Socket

PATIENCE = 120.0


def run(scenario: Callable[[str], Awaitable[None]]) -> None:
    """Run a scenario with an endpoint of its own."""

    async def bounded(endpoint: str) -> None:
        with trio.fail_after(PATIENCE):
            await scenario(endpoint)

    with tempfile.TemporaryDirectory(prefix="llmasos-") as place:
        trio.run(bounded, f"ipc://{place}/socket")


@asynccontextmanager
async def running(socket: Socket, deliver: Callable[[Message], None]) -> AsyncIterator[Socket]:
    async with trio.open_nursery() as nursery:
        await nursery.start(socket.run, deliver)
        yield socket
        socket.close()


@asynccontextmanager
async def echo(endpoint: str, high_water: int = 1000) -> AsyncIterator[Socket]:
    """A router that sends everything back."""
    router = transport.router()
    router._raw.set_hwm(high_water)
    router.bind(endpoint)

    def back(message: Message) -> None:
        assert router.send(message.body, message.peer)

    async with running(router, back):
        yield router


class Inbox:
    """What came, and a way to wait for so many."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self._came = trio.Event()

    def __call__(self, message: Message) -> None:
        self.bodies.append(message.body)
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

        async with echo(endpoint, high_water) as router:
            async with trio.open_nursery() as nursery:
                for _ in range(6):
                    nursery.start_soon(client)
            assert router.dropped == 0

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


def test_sending_to_nobody_while_the_owner_is_parked_loses_no_wake_up() -> None:
    async def scenario(endpoint: str) -> None:
        inbox = Inbox()
        router = transport.router()
        router.bind(endpoint)
        client = transport.dealer()
        async with running(router, inbox):
            client.connect(endpoint)
            for count in range(1, 6):
                await until(lambda: router._token is not None)
                client.send(b"x")
                assert select.select([router._fd], [], [], PATIENCE)[0]  # it has come, and trio does not know
                time.sleep(0.01)  # noqa: ASYNC251 - a send soon after another does not look at what has come
                assert not router.send(b"?", b"nobody")
                await inbox.filled(count)
        client.close()

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


def test_a_slow_reader_holds_up_nobody_else_and_gets_all_in_the_end() -> None:
    async def scenario(endpoint: str) -> None:
        router = transport.router()
        router._raw.set_hwm(2)
        router.bind(endpoint)
        peers: dict[bytes, bytes] = {}
        inbox = Inbox()
        slow = transport.dealer()
        slow._raw.set_hwm(2)
        async with (
            running(router, lambda message: peers.update({message.body: message.peer})),
            running(transport.dealer(), inbox) as quick,
        ):
            slow.connect(endpoint)
            quick.connect(endpoint)
            slow.send(b"slow")
            quick.send(b"quick")
            await until(lambda: len(peers) == 2)
            big = [b"%d" % n + bytes(100_000) for n in range(100)]
            for frame in big:
                assert router.send(frame, peers[b"slow"])
            assert router.backlog > 0
            for frame in numbers(200):
                assert router.send(frame, peers[b"quick"])
            assert await inbox.filled(200) == numbers(200)
            assert router.backlog > 0  # nobody has read these yet
            late = Inbox()
            async with running(slow, late):
                assert await late.filled(100) == big
            assert router.dropped == 0

    run(scenario)


def test_a_reader_that_never_reads_is_given_up_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_BACKLOG", 1 << 20)

    async def scenario(endpoint: str) -> None:
        router = transport.router()
        router._raw.set_hwm(1)
        router.bind(endpoint)
        inbox: list[bytes] = []
        deaf = transport.dealer()
        deaf._raw.set_hwm(1)
        async with running(router, lambda message: inbox.append(message.peer)):
            deaf.connect(endpoint)
            deaf.send(b"hello")
            await until(lambda: bool(inbox))
            sent = 0
            while router.send(bytes(100_000), inbox[0]):
                sent += 1
                assert sent < 1000
            assert router.dropped > 10
            assert router.backlog == 0
        deaf.close()

    run(scenario)


def test_what_does_not_fit_any_more_is_refused_and_what_waits_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "MAX_BACKLOG", 1 << 20)

    async def scenario(endpoint: str) -> None:
        router, client = transport.router(), transport.dealer()
        for socket in (router, client):
            socket._raw.set_hwm(1)
        router.bind(endpoint)
        frames = [b"%d" % n + bytes(100_000) for n in range(1000)]
        inbox = Inbox()
        async with running(client, Inbox()):
            client.connect(endpoint)
            taken = next(n for n, frame in enumerate(frames) if not client.send(frame))  # nobody reads them
            assert taken > 5
            assert client.send(b"small")  # for which there is room still
            assert client.dropped == 1
            async with running(router, inbox):
                assert await inbox.filled(taken + 1) == [*frames[:taken], b"small"]

    run(scenario)


def test_sending_to_an_unknown_peer_is_reported_and_harmless() -> None:
    async def scenario(endpoint: str) -> None:
        inbox = Inbox()
        async with echo(endpoint) as router, running(transport.dealer(), inbox) as client:
            assert not router.send(b"?", b"nobody")
            assert router.dropped == 1
            client.connect(endpoint)
            client.send(b"still alive")
            assert await inbox.filled(1) == [b"still alive"]

    run(scenario)


def test_the_monitor_tells_of_connections_and_their_end_by_descriptor() -> None:
    async def scenario(endpoint: str) -> None:
        router = transport.router()
        monitor = router.monitor()
        router.bind(endpoint)
        links: list[zeromq.Link] = []
        came: list[Message] = []
        async with running(router, came.append), trio.open_nursery() as nursery:
            nursery.start_soon(monitor.run, lambda: links.extend(monitor.drain()))
            client = transport.dealer()
            client.connect(endpoint)
            client.send(b"hello")
            await until(lambda: bool(came and links))  # two sockets: either may be looked at first
            fd = came[0].fd
            assert links == [zeromq.Link(fd, up=True)]
            assert zeromq.peer_pid(fd) == os.getpid()
            client.close()
            await until(lambda: len(links) == 2)
            assert links[1] == zeromq.Link(fd, up=False)
            nursery.cancel_scope.cancel()

    run(scenario)


def test_messages_of_several_frames_arrive_as_one_with_their_number_of_parts() -> None:
    async def scenario(endpoint: str) -> None:
        router = transport.router()
        router.bind(endpoint)
        came: list[Message] = []
        raw: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        raw.connect(endpoint)
        async with running(router, came.append):
            raw.send_multipart([b"one", b"two", b"three"])
            raw.send(b"single")
            await until(lambda: len(came) == 2)
        assert [(m.body, m.parts) for m in came] == [(b"one", 3), (b"single", 1)]
        raw.close(linger=0)

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
        def broken(message: Message) -> None:
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
            assert zeromq.peer_pid(fd) == 0
        os.close(writing)
        assert select.select([reader], [], [], 10) == ([reader], [], []), "somebody holds the other end"
        assert reader.read() == b""

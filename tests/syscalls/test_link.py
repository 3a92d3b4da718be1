"""A program's connection under each event loop, against a bare ZeroMQ router: everything arrives, in order, and once,
however the socket's edge-triggered descriptor is treated; the end of a connection is heard after its last words."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import zmq

from llmasos.syscalls import link, loops, zeromq, zmtp
from llmasos.syscalls.link import Link
from tests.loops import LOOPS, run_under

PATIENCE = 60.0


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Echo:
    """A router in a thread of its own that answers every frame with itself, `copies` times. It does not read while `deaf`
    is set."""

    def __init__(self, endpoint: str, copies: int) -> None:
        self.deaf = threading.Event()
        self._over = threading.Event()
        self._copies = copies
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, 2)
        self._socket.bind(endpoint)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            if self.deaf.is_set() or not self._socket.poll(10):
                self._over.wait(0.001)
                continue
            peer, frame = self._socket.recv_multipart()
            for _ in range(self._copies):
                self._socket.send_multipart((peer, frame))
        self._socket.close()

    def end(self) -> None:
        self._over.set()
        self._thread.join()


@contextmanager
def echo(place: Path, copies: int = 1) -> Iterator[tuple[str, Echo]]:
    endpoint = f"ipc://{place / 's'}"
    server = Echo(endpoint, copies)
    try:
        yield endpoint, server
    finally:
        server.end()


@pytest.fixture
def small_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipes of two messages, so that they are full all the time."""
    make = zeromq.make

    def small(*arguments: Any) -> zmq.Socket[bytes]:
        raw = make(*arguments)
        raw.setsockopt(zmq.SNDHWM, 2)
        raw.setsockopt(zmq.RCVHWM, 2)
        return raw

    monkeypatch.setattr(zeromq, "make", small)


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE):
        while not holds():  # noqa: ASYNC110 - many conditions
            await anyio.sleep(0.002)


def nothing() -> None:
    pass


def frames(count: int) -> list[bytes]:
    return [str(number).encode() for number in range(count)]


@pytest.mark.usefixtures("small_pipes")
def test_a_burst_through_pipes_that_are_full_arrives_in_order_and_once(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        inbox: list[bytes] = []
        connection = Link(loops.running(), endpoint, inbox.append, nothing)
        for frame in frames(3000):
            assert connection.send(frame)
        await until(lambda: len(inbox) >= 3000)
        assert inbox == frames(3000)
        assert connection.backlog == 0
        connection.close()

    with echo(tmp_path) as (endpoint, _):
        run_under(loop, main)


def test_a_sender_that_swallows_the_wake_up_of_what_has_arrived_loses_nothing(tmp_path: Path, loop: str) -> None:
    """Each frame sent is answered by three, which arrive while the next are sent; nobody sends when the last arrive."""

    async def main() -> None:
        inbox: list[bytes] = []
        connection = Link(loops.running(), endpoint, inbox.append, nothing)
        for round_ in range(200):
            for frame in frames(5):
                assert connection.send(frame)
            if round_ % 3 == 0:
                await anyio.lowlevel.checkpoint()
            if round_ % 7 == 0:
                await until(lambda: len(inbox) == 15 * (round_ + 1))  # noqa: B023
        await until(lambda: len(inbox) == 15 * 200)
        connection.close()

    with echo(tmp_path, copies=3) as (endpoint, _):
        run_under(loop, main)


@pytest.mark.usefixtures("small_pipes")
def test_a_deaf_peer_is_refused_more_than_may_wait_and_hears_the_rest(
    tmp_path: Path, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "MAX_BACKLOG", 1_000_000)

    async def main() -> None:
        inbox: list[bytes] = []
        connection = Link(loops.running(), endpoint, inbox.append, nothing)
        connection.send(b"hello")
        await until(lambda: inbox == [b"hello"])
        server.deaf.set()
        sent = 0
        while connection.send(b"x" * 100_000):
            sent += 1
        assert 10 <= sent < 1000  # the operating system has buffers too
        server.deaf.clear()
        await until(lambda: len(inbox) == 1 + sent)
        assert connection.send(b"again")
        await until(lambda: inbox[-1] == b"again")
        connection.close()

    with echo(tmp_path) as (endpoint, server):
        run_under(loop, main)


def test_a_lost_connection_is_told_once_and_after_all_that_it_brought(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        told: list[object] = []
        connection = Link(loops.running(), endpoint, told.append, lambda: told.append("lost"))
        for frame in frames(50):
            connection.send(frame)
        await until(lambda: len(told) == 50)
        connection.send(b"last")
        await anyio.to_thread.run_sync(server.end)
        await until(lambda: "lost" in told)
        assert told[:50] == frames(50)
        assert told.count("lost") == 1
        assert told[-1] == "lost"
        assert not connection.send(b"too late")
        connection.close()

    with echo(tmp_path) as (endpoint, server):
        run_under(loop, main)


def test_a_connection_may_be_closed_by_what_it_delivers(tmp_path: Path, loop: str) -> None:
    """Its descriptor is another's the moment after: nothing may wait on it then."""

    async def main() -> None:
        for _ in range(30):
            told: list[bytes] = []

            def deliver(frame: bytes) -> None:
                told.append(frame)  # noqa: B023
                connection.close()  # noqa: B023

            connection = Link(loops.running(), endpoint, deliver, nothing)
            connection.send(b"one")
            await until(lambda: bool(told))  # noqa: B023
            await anyio.lowlevel.checkpoint()
            assert not connection.send(b"two")
            assert told[0] == b"one"

    with echo(tmp_path, copies=3) as (endpoint, _):
        run_under(loop, main)


def test_nobody_at_the_other_end_is_a_lost_connection(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        told: list[str] = []
        connection = Link(loops.running(), f"ipc://{tmp_path / 'nobody'}", lambda _: None, lambda: told.append("lost"))
        connection.send(b"hello")
        await until(lambda: told == ["lost"])

    run_under(loop, main)


class ByHand:
    """An event loop that the test turns: `writable` are those who wait for room."""

    def __init__(self) -> None:
        self.writable: list[Callable[[], None]] = []

    def watch(self, fd: int, look: Callable[[], None]) -> loops.Undo:
        return nothing

    def when_writable(self, fd: int, act: Callable[[], None]) -> loops.Undo:
        self.writable.append(act)
        return nothing

    def later(self, seconds: float, act: Callable[[], None]) -> loops.Undo:
        return nothing

    def place(self) -> loops.Place:
        raise NotImplementedError

    def background(self, run: Callable[[], Awaitable[None]], name: str) -> loops.Undo:
        raise NotImplementedError

    async def undisturbed(self, run: Callable[[], Awaitable[Any]]) -> Any:
        raise NotImplementedError


@contextmanager
def by_hand(place: Path, deliver: Callable[[Link, bytes], object]) -> Iterator[tuple[ByHand, Link, socket.socket]]:
    """A connection that has greeted, and the other end of it."""
    loop = ByHand()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "s"))
        listener.listen()
        connection = Link(loop, f"ipc://{place / 's'}", lambda frame: [deliver(connection, frame)].clear(), nothing)
        with listener.accept()[0] as other:
            other.sendall(zmtp.OPENING)
            connection.take()
            try:
                yield loop, connection, other
            finally:
                connection.close()


def test_many_answers_at_once_may_each_have_something_sent(tmp_path: Path) -> None:
    """As those to calls that were taken back, whose processes are ended: no recursion as deep as they are many."""
    told = []

    def deliver(connection: Link, frame: bytes) -> None:
        told.append(frame)
        assert connection.send(b"undo")

    with by_hand(tmp_path, deliver) as (_, connection, other):
        other.sendall(b"".join(zmtp.head(len(frame)) + frame for frame in frames(3000)))
        connection.take()
        assert told == frames(3000)


def test_room_is_asked_for_once_also_when_what_arrives_with_it_has_more_sent(tmp_path: Path) -> None:
    """Two tasks of trio that wait for one descriptor end the program."""
    long = bytes(4 << 20)
    with by_hand(tmp_path, lambda connection, _: connection.send(long)) as (loop, connection, other):
        assert connection.send(long)
        other.sendall(zmtp.head(2) + b"go")
        tell = loop.writable.pop()
        assert not loop.writable
        tell()
        assert len(loop.writable) == 1


def test_a_connection_that_can_send_no_more_ends_at_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the kernel at the other end has not gone (ENOBUFS): else every later call would be refused for ever."""

    class Full:
        def __init__(self, inner: socket.socket) -> None:
            self.shutdown, self.close = inner.shutdown, inner.close

        def send(self, data: bytes) -> int:
            raise OSError(errno.ENOBUFS, "No buffer space available")

    with by_hand(tmp_path, lambda _, __: None) as (_, connection, other):
        stream: Any = connection._dealer
        other.settimeout(PATIENCE)
        monkeypatch.setattr(stream, "_socket", Full(stream._socket))
        connection.send(b"more")
        while other.recv(4096):
            pass
        assert stream.ended

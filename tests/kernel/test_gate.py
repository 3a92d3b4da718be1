"""The gate for programs on other machines: CURVE with official ZeroMQ clients, and whoever else may come along."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from zmq.utils import z85

from llmasos.syscalls import curve_keys, zmtp
from llmasos.syscalls.budgets import NOTES, RECEIVED
from llmasos.syscalls.errno import Errno, SyscallError
from tests.booted import PATIENCE
from tests.doorway import Doorway, apart, served, until
from tests.zmtp_client import GREETING, frame, ready

pytest.importorskip("nacl", reason="CURVE needs the extra `net`")
gates = pytest.importorskip("llmasos.kernel.edge.gate")
outside = pytest.importorskip("llmasos.kernel.edge.outside")
curve = pytest.importorskip("llmasos.syscalls.curve")

Pair = tuple[bytes, bytes]  # public, secret


def pair() -> Pair:
    public, secret = zmq.curve_keypair()
    return z85.decode(public), z85.decode(secret)


SERVER, ADA, BOB, EVE = (pair() for _ in range(4))


class Way(Doorway):
    """A door with a gate that Ada and Bob may come by."""

    def __init__(self, place: Path) -> None:
        self.refused: list[str] = []
        self.changes: list[tuple[str, str]] = []
        super().__init__(place, refuses=lambda why: self.refused.append(why.reason))
        self.keys = place / "authorized_keys"
        self.write(ADA, BOB)
        self.gate = gates.Gate("127.0.0.1:0", SERVER[1], self.keys)
        listener = self.gate.listen()
        self.door.open_gate(self.gate, listener, lambda all: self.changes.extend((one.what, one.key.name) for one in all))

    def write(self, *pairs: Pair) -> None:
        names = {ADA: "ada", BOB: "bob"}
        keys = {one[0]: curve_keys.named(one[0], names[one]) for one in pairs}
        curve_keys.write_authorized(self.keys, keys)

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.gate.port}"


@asynccontextmanager
async def gateway(place: Path) -> AsyncIterator[Way]:
    way = Way(place)
    async with served(way):
        yield way


@contextmanager
def dealer(address: str, key: Pair | None, server: bytes = SERVER[0]) -> Iterator[tuple[Any, Any]]:
    """libzmq's own client, and the monitor of what becomes of its connection."""
    raw: Any = zmq.Context.instance().socket(zmq.DEALER)
    raw.setsockopt(zmq.RECONNECT_IVL, -1)
    raw.setsockopt(zmq.LINGER, 0)
    raw.setsockopt(zmq.RCVTIMEO, int(PATIENCE * 1000))
    if key is not None:
        raw.curve_publickey, raw.curve_secretkey = (z85.encode(half) for half in key)
        raw.curve_serverkey = z85.encode(server)
    monitor = raw.get_monitor_socket()
    monitor.setsockopt(zmq.RCVTIMEO, int(PATIENCE * 1000))
    raw.connect(address)
    try:
        yield raw, monitor
    finally:
        raw.disable_monitor()
        monitor.close()
        raw.close()


def event(monitor: Any, *wanted: int) -> tuple[int, int]:
    """The next of these events of a connection, and its value."""
    while True:
        said = monitor.recv_multipart()[0]
        kind, value = int.from_bytes(said[:2], "little"), int.from_bytes(said[2:6], "little")
        if kind in wanted:
            return kind, value


FAILED = (zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_AUTH)


async def answered(*dealers: Any) -> None:
    """Each of these is let in, and heard."""
    for one in dealers:
        one.send(b"here")
        assert await apart(one.recv) == b"here"


def test_messages_of_an_official_client_come_and_go_encrypted(tmp_path: Path) -> None:
    async def main() -> None:
        async with gateway(tmp_path) as way:
            with dealer(way.address, ADA) as (raw, _):
                raw.setsockopt(zmq.HEARTBEAT_IVL, 20)
                bodies = [bytes([size % 251]) * size for size in (0, 1, 222, 223, 255, 256, 5000, 70_000, 3 << 20)]
                for body in bodies:
                    raw.send(body)
                assert [await apart(raw.recv) for _ in bodies] == bodies
                (peer,) = way.connections
                assert (peer.os_pid, peer.uid, peer.tenant) == (0, os.getuid(), "key-ada")
                await until(lambda: not way.door.waiting)
                assert (way.payers.everybody.received, len(way.gate.strangers)) == (0, 0)
            await until(lambda: way.gone)
            assert (len(way.door), way.payers.everybody.connections, way.payers.owners, way.payers.processes) == (
                0,
                0,
                {},
                {},
            )

    trio.run(main)


def test_a_message_for_which_there_is_no_room_waits_until_there_is(tmp_path: Path) -> None:
    """Which call it is of cannot be read before it is whole, so nobody could be told that it was refused."""

    async def main() -> None:
        async with gateway(tmp_path) as way:
            with dealer(way.address, ADA) as (raw, _), dealer(way.address, BOB) as (other, _):
                await answered(raw, other)
                host = way.payers.processes["127.0.0.1"]
                host.received += RECEIVED.process
                raw.send(bytes(1 << 20))
                raw.send(b"and after it")
                await until(lambda: way.connections.starved)
                other.send(b"there is room for short ones")
                assert await apart(other.recv) == b"there is room for short ones"
                host.received -= RECEIVED.process
                other.send(bytes(100_000))  # and what it had is given back
                assert len(await apart(other.recv)) == 100_000
                assert await apart(raw.recv) == bytes(1 << 20)
                assert await apart(raw.recv) == b"and after it"
                assert (host.received, way.notes) == (0, [])

    trio.run(main)


def test_an_unknown_key_is_refused_at_once_and_the_log_says_which(tmp_path: Path) -> None:
    async def main() -> None:
        async with gateway(tmp_path) as way:
            with dealer(way.address, EVE) as (_, monitor):
                assert await apart(lambda: event(monitor, *FAILED)) == (zmq.EVENT_HANDSHAKE_FAILED_AUTH, 400)
            await until(lambda: not way.gate.strangers)
            assert len(way.door) == 0
            (note,) = way.notes
            assert "a stranger from 127.0.0.1 is refused: its key" in note
            assert f"{curve_keys.text_of(EVE[0])} is not accepted: it is not in {way.keys}" in note
            assert way.refused[0] in note.replace(" is refused", "")

    trio.run(main)


def test_who_comes_and_goes_again_and_again_has_some_lines_in_the_log_and_the_others_are_counted(tmp_path: Path) -> None:
    async def main() -> None:
        async with gateway(tmp_path) as way:
            for number in range(1, NOTES.process + 5):
                socket.create_connection(("127.0.0.1", way.gate.port)).close()
                await until(partial(lambda count: len(way.refused) == count, number))
                assert len(way.door) == 0, "its account ends each time"
            assert len(way.notes) == NOTES.process
            assert way.payers.refusals[NOTES.name] == 4

    trio.run(main)


def test_who_has_another_key_for_the_kernel_gets_no_connection(tmp_path: Path) -> None:
    async def main() -> None:
        async with gateway(tmp_path) as way:
            with dealer(way.address, ADA, EVE[0]) as (_, monitor):
                kind, _ = await apart(lambda: event(monitor, *FAILED))
                assert kind == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            assert "it speaks CURVE, but not to the key of this kernel" in way.notes[0]

    trio.run(main)


def test_without_encryption_there_is_no_connection(tmp_path: Path) -> None:
    async def main() -> None:
        async with gateway(tmp_path) as way:
            with dealer(way.address, None) as (_, monitor):
                assert (await apart(lambda: event(monitor, *FAILED)))[0] == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            with socket.create_connection(("127.0.0.1", way.gate.port), PATIENCE) as raw:
                raw.sendall(GREETING + ready() + frame(b"here"))
                assert len(await apart(lambda: drained(raw))) == 64, "the greeting, and no more"
            await until(lambda: len(way.notes) == 2)
            assert "it wants another security mechanism than CURVE" in way.notes[1]
            assert way.came == []

    trio.run(main)


def drained(raw: socket.socket) -> bytes:
    """All that comes until the other end closes."""
    found = b""
    try:
        while data := raw.recv(1 << 16):
            found += data
    except ConnectionResetError:
        pass
    return found


CURVE_GREETING = zmtp.greeting(b"CURVE")


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
        os.urandom(300),
        CURVE_GREETING + zmtp.command(b"HELLO", bytes(194)),
        CURVE_GREETING + zmtp.command(b"HELLO", b"\x01\x00" + bytes(72) + os.urandom(120)),
        CURVE_GREETING + zmtp.command(b"INITIATE", bytes(248)),
        CURVE_GREETING + zmtp.command(b"READY", zmtp.METADATA),
        CURVE_GREETING + frame(b"\x07MESSAGE" + bytes(40)),
        CURVE_GREETING + b"\x06" + (1 << 40).to_bytes(8, "big"),
    ],
    ids=["http", "noise", "null-hello", "hello", "initiate", "ready", "message", "long"],
)
def test_garbage_is_cut_off_with_a_line_that_says_why(tmp_path: Path, said: bytes) -> None:
    async def main() -> None:
        async with gateway(tmp_path) as way:
            with socket.create_connection(("127.0.0.1", way.gate.port), PATIENCE) as raw:
                raw.sendall(said)
                await apart(lambda: drained(raw))
            await until(lambda: way.notes)
            assert way.notes[0].startswith("a stranger from 127.0.0.1 is refused: it ")
            assert (len(way.door), way.came, way.payers.everybody.received) == (0, [], 0)

    trio.run(main)


def test_a_handshake_has_a_deadline_and_strangers_few_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "STRANGER_SECONDS", 0.3)
    monkeypatch.setattr(outside, "STRANGERS", 3)

    async def main() -> None:
        async with gateway(tmp_path) as way:
            some = [socket.create_connection(("127.0.0.1", way.gate.port), PATIENCE) for _ in range(5)]
            some[4].sendall(CURVE_GREETING[:20])
            await until(lambda: len(way.notes) >= 2)
            monkeypatch.setattr(outside, "STRANGER_SECONDS", PATIENCE)  # time enough for one who shows a key
            with dealer(way.address, ADA) as (raw, _):
                raw.send(b"here")
                assert await apart(raw.recv) == b"here", "one who holds a key gets in all the same"
                for one in some:
                    await apart(partial(drained, one))
                    one.close()
                displaced = sum("3 have not shown a key" in note for note in way.notes)
                late = sum("it has not shown a key in time" in note for note in way.notes)
                assert displaced >= 2
                assert late >= 2
                assert displaced + late == 5
                (ada,) = (one for one in way.connections if one.tenant == "key-ada")
                assert not ada.until, "no time is set any more for one who has shown a key"
                raw.send(b"still here")
                assert await apart(raw.recv) == b"still here"

    trio.run(main)


def test_a_revoked_key_is_cut_off_and_not_heard_any_more(tmp_path: Path) -> None:
    async def main() -> None:
        async with gateway(tmp_path) as way:
            with dealer(way.address, ADA) as (ada, seen), dealer(way.address, BOB) as (bob, _):
                await answered(ada, bob)
                (peer,) = (one for one in way.connections if one.tenant == "key-ada")
                way.write(BOB)
                assert not way.door.send(peer, b"secret"), "nothing goes to it once the file says so"
                assert (await apart(lambda: event(seen, zmq.EVENT_DISCONNECTED)))[0]
                bob.send(b"still here")
                assert await apart(bob.recv) == b"still here"
                assert (way.came, way.gone) == ([b"here", b"here", b"still here"], [peer.number])
                way.write(ADA, BOB)
                with dealer(way.address, ADA) as (again, _):
                    again.send(b"back")
                    assert await apart(again.recv) == b"back"
                assert way.changes == [("key revoke", "ada"), ("key add", "ada")]
                with dealer(way.address, ADA) as (again, _):
                    again.send(b"and back")
                    assert await apart(again.recv) == b"and back"
                    way.write(BOB)
                    again.send(b"too late")
                    await until(lambda: len(way.gone) == 3)
                assert way.came[-1] == b"and back", "what a revoked key sends is not heard"

    trio.run(main)


def test_a_file_of_keys_that_cannot_be_read_lets_nobody_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> Any:
        raise OSError(errno.EMFILE, "no descriptor is left")

    async def main() -> None:
        async with gateway(tmp_path) as way:
            way.keys.write_text("nonsense\n")
            with dealer(way.address, ADA) as (_, monitor):
                assert (await apart(lambda: event(monitor, *FAILED)))[0] == zmq.EVENT_HANDSHAKE_FAILED_AUTH
            assert f"{way.keys}, line 1: wanted KEY NAME" in way.notes[0]
            way.write(ADA)
            way.keys.chmod(0o666)
            with dealer(way.address, ADA) as (_, monitor):
                assert (await apart(lambda: event(monitor, *FAILED)))[0] == zmq.EVENT_HANDSHAKE_FAILED_AUTH
            assert "can be changed by others" in way.notes[1]
            way.write(ADA)
            monkeypatch.setattr(curve_keys, "opened", full)
            way.keys.touch()
            with dealer(way.address, ADA) as (_, monitor):
                assert (await apart(lambda: event(monitor, *FAILED)))[0] == zmq.EVENT_HANDSHAKE_FAILED_AUTH
            monkeypatch.undo()
            with dealer(way.address, ADA) as (raw, _):
                raw.send(b"here")
                assert await apart(raw.recv) == b"here", "it is read again without another change"

    trio.run(main)


class Between:
    """Somebody on the way between a client and the kernel, who records what the client says and may change it."""

    def __init__(self, port: int) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(PATIENCE)
        self.port = port
        self.said: list[bytes] = []

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"

    async def carry(self, change: bytes = b"") -> None:
        """Carry one connection to its end. `change`: once this is in what the client says, its last bit is flipped."""
        client, _ = await apart(self.listener.accept)
        kernel = socket.create_connection(("127.0.0.1", self.port), PATIENCE)

        def one_way(source: socket.socket, target: socket.socket, *, recorded: bool) -> None:
            try:
                while data := source.recv(1 << 16):
                    if recorded:
                        data = data[:-1] + bytes((data[-1] ^ 1,)) if change and change in data else data
                        self.said.append(data)
                    target.sendall(data)
            except OSError:
                pass
            for one in (source, target):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(apart, lambda: one_way(client, kernel, recorded=True))
            nursery.start_soon(apart, lambda: one_way(kernel, client, recorded=False))
        client.close()
        kernel.close()


def test_what_was_recorded_is_worth_nothing_and_hides_what_was_said(tmp_path: Path) -> None:
    async def main() -> None:
        async with gateway(tmp_path) as way, trio.open_nursery() as nursery:
            between = Between(way.gate.port)
            nursery.start_soon(between.carry)
            with dealer(between.address, ADA) as (raw, _):
                raw.send(b"the secret of ada")
                assert await apart(raw.recv) == b"the secret of ada"
            await until(lambda: way.gone)
            said = b"".join(between.said)
            assert b"secret of" not in said
            assert ADA[0] not in said, "nor who it was"
            with socket.create_connection(("127.0.0.1", way.gate.port), PATIENCE) as raw:
                raw.sendall(said)
                await apart(lambda: drained(raw))
            assert "it repeats what another connection has said" in way.notes[-1]
            assert len(way.came) == 1
            between.listener.close()

    trio.run(main)


def test_a_message_that_was_changed_on_its_way_ends_the_connection(tmp_path: Path) -> None:
    async def main() -> None:
        async with gateway(tmp_path) as way, trio.open_nursery() as nursery:
            between = Between(way.gate.port)
            nursery.start_soon(between.carry, b"\x07MESSAGE")
            with dealer(between.address, ADA) as (raw, monitor):
                await apart(lambda: event(monitor, zmq.EVENT_HANDSHAKE_SUCCEEDED))
                raw.send(b"transfer 1")
                await until(lambda: way.gone)
            assert "127.0.0.1 (key ada) is cut off: what it sends was changed on its way" in way.notes[-1]
            assert way.came == []
            between.listener.close()

    trio.run(main)


def test_a_message_said_twice_ends_the_connection() -> None:
    server = curve.Incoming(SERVER[1])
    server._stage, server._key = 2, os.urandom(32)
    client = curve.Incoming(SERVER[1])
    client._key = server._key
    box = client._numbered(b"\0pay", b"CurveZMQMESSAGEC")
    said = frame(b"\x07MESSAGE" + box)
    server.put(said + said)
    assert server.next(lambda size: "") == b"pay"
    with pytest.raises(zmtp.Broken, match="repeats"):
        server.next(lambda size: "")


def test_nobody_could_come_so_the_kernel_does_not_listen(tmp_path: Path) -> None:
    with pytest.raises(SyscallError, match="nobody could come: no key is in") as raised:
        gates.Gate("127.0.0.1:0", SERVER[1], tmp_path / "authorized_keys")
    assert raised.value.errno is Errno.ENOENT


def test_keys_are_read_as_they_are_written(tmp_path: Path) -> None:
    file = tmp_path / "authorized_keys"
    keys = [
        curve_keys.named(ADA[0], "ada"),
        curve_keys.named(BOB[0], "bob", "uid=1001"),
        curve_keys.named(EVE[0], "eve", "tenant=acme"),
    ]
    curve_keys.write_authorized(file, {one.public: one for one in keys})
    assert list(curve_keys.authorized(file).values()) == keys
    assert curve_keys.public_of(z85.encode(ADA[0]).decode()) == ADA[0], "ZeroMQ's own text is read, too"
    for wrong in ("", "curve:", "curve:" + "A" * 42, "A" * 41, curve_keys.text_of(ADA[0]) + "A", "\u00e4" * 40):
        with pytest.raises(SyscallError, match="is no public key"):
            curve_keys.public_of(wrong)
    for whose in (
        "uid=-1",
        "uid=x",
        f"uid={1 << 31}",
        "tenant=",
        "tenant=key-ada",
        "tenant=session-1",
        "tenant=..",
        "x=1",
    ):
        with pytest.raises(SyscallError, match="wanted uid=N"):
            curve_keys.named(ADA[0], "ada", whose)
    for address in ("", "1", "host", "host:", "host:x", "host:70000", ":1", "::1:1", "a b:1", "tcp://"):
        with pytest.raises(SyscallError, match="is no address"):
            curve_keys.host_and_port(address)
    assert curve_keys.host_and_port("tcp://[::1]:7") == ("::1", 7)


def talking() -> tuple[Any, bytes]:
    """The kernel's side of a connection that is up, and a message that comes by it."""
    server, client = curve.Incoming(SERVER[1]), curve.Incoming(SERVER[1])
    server._stage, server._key = 2, os.urandom(32)
    client._key = server._key
    return server, frame(b"\x07MESSAGE" + client._numbered(b"\0" + b"pay" * 30, b"CurveZMQMESSAGEC"))


@given(at=st.integers(min_value=0, max_value=1 << 16), bit=st.integers(min_value=0, max_value=7), cut=st.integers(1, 200))
@settings(max_examples=200, deadline=None)
def test_no_bit_of_a_message_can_be_changed_however_it_is_cut(at: int, bit: int, cut: int) -> None:
    server, said = talking()
    changed = bytearray(said)
    changed[at % len(said)] ^= 1 << bit
    with suppress(zmtp.Broken):
        for start in range(0, len(said), cut):
            server.put(bytes(changed[start : start + cut]))
            found = server.next(lambda size: "")
            assert found is None or isinstance(found, zmtp.Refused), "nothing of it is taken"


@given(st.binary(max_size=700), st.sampled_from([b"HELLO", b"INITIATE", b"READY", b"ERROR", b"PING", b"MESSAGE", b""]))
@settings(max_examples=200, deadline=None)
def test_whatever_a_stranger_says_it_is_no_message_and_no_key(said: bytes, name: bytes) -> None:
    server = curve.Incoming(SERVER[1])
    server.put(CURVE_GREETING + zmtp.command(name, said) + said)
    with suppress(zmtp.Broken):
        while (found := server.next(lambda size: "")) is not None:
            assert isinstance(found, zmtp.Pong | zmtp.Refused)


class Stranger:
    def __init__(self, host: str) -> None:
        self.host = host


def test_a_flood_from_one_place_makes_room_at_its_own_cost() -> None:
    gate = gates.Gate.__new__(gates.Gate)
    hosts = ["10.0.0.1", "2001:db8::1", "10.0.0.2", "2001:db8::2", "2001:db8::3"]
    gate.strangers = dict.fromkeys(map(Stranger, hosts))
    assert gate.one_too_many().host == "2001:db8::1", "the oldest of that network, not the oldest of all"

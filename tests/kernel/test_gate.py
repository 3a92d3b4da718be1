"""The gate for programs on other machines: CURVE with official ZeroMQ clients, and whoever else may come along."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import zmq
from zmq.utils import z85

from tests.booted import PATIENCE
from tests.doorway import Doorway, apart, until
from tests.zmtp_client import GREETING, frame, ready

pytest.importorskip("nacl", reason="CURVE needs the extra `net`")
from llmasos.kernel.edge import gate as gates
from llmasos.syscalls import curve, curve_keys, zmtp
from llmasos.syscalls.errno import Errno, SyscallError

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
        self.door.open_gate(
            self.gate, listener, lambda all: self.changes.extend((one.what, one.key.name) for one in all)
        )

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
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(way.door.run)
            nursery.start_soon(way.door.keep_time)
            try:
                yield way
            finally:
                nursery.cancel_scope.cancel()
                way.door.close()


@contextmanager
def dealer(address: str, key: Pair | None, server: bytes = SERVER[0]) -> Iterator[tuple[Any, Any]]:
    """libzmq's own client, and the monitor of what becomes of its connection."""
    raw = zmq.Context.instance().socket(zmq.DEALER)
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


def test_messages_of_an_official_client_come_and_go_encrypted(tmp_path: Path) -> None:
    async def main() -> None:
        async with gateway(tmp_path) as way:
            with dealer(way.address, ADA) as (raw, _):
                raw.setsockopt(zmq.HEARTBEAT_IVL, 20)
                bodies = [bytes([size % 251]) * size for size in (0, 1, 222, 223, 255, 256, 5000, 70_000, 3 << 20)]
                for body in bodies:
                    raw.send(body)
                assert [await apart(raw.recv) for _ in bodies] == bodies
                (peer,) = way.door._peers.values()
                assert (peer.os_pid, peer.uid, peer.tenant) == (0, os.getuid(), "key-ada")
                await until(lambda: not way.door.waiting)
                assert (way.door.everybody.received, len(way.gate.strangers)) == (0, 0)
            await until(lambda: way.gone)
            assert (len(way.door), way.door.everybody.connections, way.door._owners, way.door._processes) == (0, 0, {}, {})

    trio.run(main)

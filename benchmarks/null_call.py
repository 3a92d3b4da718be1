"""The price of a system call: the round trip of `null` through a real kernel process, both clients, against two bare
pyzmq processes that echo the same number of bytes over the same kind of socket.

The three are measured in turns, a few hundred calls each, and medians over all turns compared, so that a busy machine
slows them alike. A simulated device stands in for a real one: no call reaches it.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import trio
import zmq

from benchmarks.report import Figure
from llmasos.syscalls import blocking, client, wire
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Null

TURNS = 12
CALLS = 300  # of each kind in one turn
IN_FLIGHT = 64
PIPELINED = 8_000
TARGET = 2.0  # times the bare echo

_ECHO = """
import sys, zmq
socket = zmq.Context().socket(zmq.ROUTER)
socket.bind(sys.argv[1])
reply = bytes.fromhex(sys.argv[2])
poller = zmq.Poller()
poller.register(socket, zmq.POLLIN)
poller.register(sys.stdin.fileno(), zmq.POLLIN)
while True:
    ready = dict(poller.poll())
    if socket in ready:
        peer, _ = socket.recv_multipart()
        socket.send_multipart((peer, reply))
    else:
        break
"""


@contextlib.contextmanager
def kernel(directory: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A kernel process that ends with this one. `more`: words of its command line."""
    command = [
        sys.executable,
        "-m",
        "llmasos.kernel.edge.boot",
        "--runtime",
        os.fspath(directory),
        "--die-with-parent",
    ]
    command += ["--quiet", "--device", "sim", *more]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def connect(directory: Path, process: subprocess.Popen[bytes]) -> blocking.Client:
    while True:
        try:
            return blocking.connect(directory, name="null_call")
        except SyscallError as error:
            if error.errno is not Errno.ECONNREFUSED or process.poll() is not None:
                raise
            time.sleep(0.02)


@contextlib.contextmanager
def echo(directory: Path) -> Iterator[zmq.Socket[bytes]]:
    """Two bare pyzmq processes: the socket of this one, connected to the other, which echoes."""
    endpoint = f"ipc://{directory}/echo.sock"
    reply = wire.encode_reply(1000, Errno.OK, None).hex()
    process = subprocess.Popen([sys.executable, "-c", _ECHO, endpoint, reply], stdin=subprocess.PIPE)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(endpoint)
    try:
        yield socket
    finally:
        socket.close()
        context.term()
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def timed(call: Callable[[], object], count: int) -> list[float]:
    """Microseconds of each call."""
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e6)
    return times


async def round_trips(kernel_client: client.Client, count: int) -> list[float]:
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        await kernel_client(Null())
        times.append((time.perf_counter() - begin) * 1e6)
    return times


async def pipelined(kernel_client: client.Client) -> float:
    """Calls a second with IN_FLIGHT of them in flight."""

    async def some() -> None:
        for _ in range(PIPELINED // IN_FLIGHT):
            await kernel_client(Null())

    begin = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(IN_FLIGHT):
            nursery.start_soon(some)
    return PIPELINED / (time.perf_counter() - begin)


def bare_pipelined(socket: zmq.Socket[bytes], frame: bytes) -> float:
    begin = time.perf_counter()
    for _ in range(IN_FLIGHT):
        socket.send(frame)
    for _ in range(PIPELINED - IN_FLIGHT):
        socket.recv()
        socket.send(frame)
    for _ in range(IN_FLIGHT):
        socket.recv()
    return PIPELINED / (time.perf_counter() - begin)


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="llmasos-") as place:
        directory = Path(place)
        runtime = directory / "run"
        with kernel(runtime) as process, echo(directory) as socket, connect(runtime, process) as plain:
            return trio.run(_measure, plain, socket, runtime)


async def _measure(plain: blocking.Client, socket: zmq.Socket[bytes], directory: Path) -> list[Figure]:
    frame = wire.encode_request(1000, Null())

    def bare() -> None:
        socket.send(frame)
        socket.recv()

    reference: list[float] = []
    one: list[float] = []
    other: list[float] = []
    async with client.connect(directory, name="null_call") as kernel_client:
        for turn in range(TURNS + 1):
            samples = (
                timed(bare, CALLS),
                timed(lambda: plain(Null()), CALLS),
                await round_trips(kernel_client, CALLS),
            )
            if turn:  # the first warms up
                for kept, new in zip((reference, one, other), samples, strict=True):
                    kept += new
        rates = [(bare_pipelined(socket, frame), await pipelined(kernel_client)) for _ in range(3)]
    echoed = statistics.median(reference)
    told = "bare pyzmq echo"
    return [
        Figure("null call, blocking client", statistics.median(one), "us", echoed, told, TARGET),
        Figure("null call, async client", statistics.median(other), "us", echoed, told, TARGET),
        Figure(
            f"null calls pipelined, {IN_FLIGHT} in flight",
            statistics.median(rate for _, rate in rates),
            "calls/s",
            statistics.median(rate for rate, _ in rates),
            told,
            better="higher",
        ),
    ]

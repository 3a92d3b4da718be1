"""What a program notices of another that drives the kernel's budgets to their ends: its null calls, while that one floods
the kernel with short calls, feeds a million tokens again and again, sends messages of endless parts, asks for long
answers and does not read them, leaves calls waiting, or spawns and forks without end.

Quiet and busy turns alternate, so that a slow machine slows both alike. The other program is an OS process of its own
that is stopped (SIGSTOP) in the quiet turns; it begins anew when it is cut off.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.null_call import connect, kernel, timed
from benchmarks.report import Figure
from llmasos.syscalls import blocking, runtime
from llmasos.syscalls.table import Null

TURNS = 6
CALLS = 300  # of one turn
SETTLE = 0.3  # seconds until the other is at its work
MEDIAN, P99 = 2.0, 20.0  # times the usual; milliseconds

_BEGIN = """
import sys, itertools, socket, zmq
from llmasos.syscalls import wire
from llmasos.syscalls.table import *
place = sys.argv[1]
def program(hwm=1000):
    raw = zmq.Context.instance().socket(zmq.DEALER)
    raw.set_hwm(hwm)
    raw.connect("ipc://" + place + "/kernel.sock")
    raw.send(wire.encode_request(0, Attach("busy")))
    raw.recv()
    return raw
def ask(raw, call, seq=1):
    raw.send(wire.encode_request(seq, call))
    return wire.result(wire.decode_reply(raw.recv()), call)
raw = program()
"""
_WORK = {
    "short calls": """
for seq in itertools.count(1):
    raw.send(wire.encode_request(seq, Null()))
    while raw.poll(0): raw.recv()
""",
    "a million tokens a call": """
pid = ask(raw, Spawn("sim:1b", [1]))
frame = wire.encode_request(1, Feed(pid, [100_000] * (1 << 20)))
while True:
    raw.send(frame); raw.recv()
""",
    "empty lists by the million": """
frame = bytes.fromhex("94012a28") + b"\\x93\\x01\\x91\\x01\\xdd\\x00\\x60\\x00\\x00" + b"\\x90" * 0x600000
while True:
    raw.send(frame); raw.recv()
""",
    "15 MiB frames of four": """
four = [program(2) for _ in range(4)]
frame = bytes(15 << 20)
while True:
    for one in four: one.send(frame)
    for one in four: one.recv()
""",
    "endless parts": """
while True:
    one = socket.socket(socket.AF_UNIX); one.connect(place + "/kernel.sock")
    try:
        one.sendall(b"\\xff" + bytes(8) + b"\\x7f\\x03\\x00NULL" + bytes(48))
        one.sendall(b"\\x04\\x1c\\x05READY\\x0bSocket-Type\\x00\\x00\\x00\\x06DEALER")
        while True: one.sendall(b"\\x03" + (1 << 16).to_bytes(8, "big") + bytes(1 << 16))
    except OSError: one.close()
""",
    "answers that nobody reads": """
pid = ask(raw, Spawn("sim:1b", [1]))
ask(raw, Fork(pid, 256)); ask(raw, Fork(pid, 256))
while True:
    deaf = [program(1) for _ in range(20)]
    for seq in range(20):
        for one in deaf:
            try: one.send(wire.encode_request(seq, Ps()), zmq.NOBLOCK)
            except zmq.Again: pass
    for one in deaf: one.close(0)
""",
    "calls that wait": """
pid = ask(raw, Spawn("sim:1b", [1]))
while True:
    one = program(10_000)
    for seq in range(1, 6000): one.send(wire.encode_request(seq, Read(pid, follow=True, position=1)))
    for _ in range(1000): one.recv()
    one.close(0)
""",
    "forks": """
pid = ask(raw, Spawn("sim:1b", [1] * 1000))
while True:
    for child in ask(raw, Fork(pid, 16)): ask(raw, Kill(child)); ask(raw, Wait(child))
""",
}


@contextlib.contextmanager
def busy(directory: Path, work: str) -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, "-c", _BEGIN + work, os.fspath(directory)]
    process = subprocess.Popen(words, env=runtime.environment())
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run() -> list[Figure]:
    figures = []
    for name, work in _WORK.items():
        with tempfile.TemporaryDirectory(prefix="llmasos-") as place:
            directory = Path(place) / "run"
            with kernel(directory) as process, connect(directory, process) as program:
                figures += _measure(name, work, directory, program)
    return figures


def _measure(name: str, work: str, directory: Path, program: blocking.Client) -> list[Figure]:
    quiet: list[float] = []
    disturbed: list[float] = []

    def null() -> object:
        return program(Null())

    timed(null, CALLS)
    with busy(directory, work) as other:
        time.sleep(3 * SETTLE)
        for _ in range(TURNS):
            other.send_signal(signal.SIGCONT)
            time.sleep(SETTLE)
            disturbed += timed(null, CALLS)
            if other.poll() is not None:
                raise RuntimeError(f"{name}: the other program has ended")
            other.send_signal(signal.SIGSTOP)
            time.sleep(SETTLE)
            quiet += timed(null, CALLS)
    usual, worst = statistics.median(quiet), statistics.quantiles(disturbed, n=100)[98] / 1e3
    median = statistics.median(disturbed)
    return [
        Figure(f"null call beside {name}, median", median, "us", usual, "nothing beside it", MEDIAN),
        Figure(f"null call beside {name}, p99", worst, "ms", target=P99),
        Figure(f"null call in turns with {name}, p99", statistics.quantiles(quiet, n=100)[98] / 1e3, "ms"),
    ]

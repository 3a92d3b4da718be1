"""Very many at once: 10,000 connected programs and 100,000 LLM processes on one kernel with the simulated device.

What a connected program takes of the kernel's memory stands beside what a bare ROUTER takes for a connection, measured in
the same run. What a sleeping process takes is without the four bytes of each of its tokens; it has decoded, so its pages
are there. Pauses are those of Python's collector of garbage in the kernel, the longest of each phase. The programs are in
8 OS processes. It needs `ulimit -n` of 20,000, less with CROWD=1000,10000 (programs, processes).
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.null_call import connect, timed
from benchmarks.report import Figure
from llmasos.syscalls.records import Signal
from llmasos.syscalls.table import GroupKill, Models, Null

PROGRAMS, PROCESSES = (int(word) for word in os.environ.get("CROWD", "10000,100000").split(","))
HOSTS = 8
TOKENS, DECODED = 8, 4  # of each process
PROGRAM_BYTES, PROCESS_BYTES = 12_000, 4_000
PAUSE_MS = 20.0
SETTLE_SECONDS = 3.0

_ECHO = """
import resource, sys, zmq
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
socket = zmq.Context().socket(zmq.ROUTER)
socket.bind(sys.argv[1])
while True:
    socket.send_multipart(socket.recv_multipart())
"""
# A kernel that notes in a mapped file how long its collector's longest pause was, in time of the processor (other
# programs of the machine have theirs) and by the clock.
_KERNEL = """
import gc, mmap, os, struct, sys, time
from llmasos.kernel.edge import boot
file = os.open(sys.argv.pop(1), os.O_RDWR)
seen, begun = mmap.mmap(file, 4096), [0.0, 0.0]
def note(phase, about):
    now = time.thread_time(), time.perf_counter()
    if phase == "start":
        begun[:] = now
    else:
        longest = struct.unpack("dd", seen[:16])
        seen[:16] = struct.pack("dd", *(max(n - b, l) for n, b, l in zip(now, begun, longest)))
gc.callbacks.insert(0, note)
sys.exit(boot.main())
"""


class Pauses:
    """What the kernel's collector has noted since the last look."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(4096))
        with path.open("r+b") as file:
            self._seen = mmap.mmap(file.fileno(), 4096)

    def take(self) -> tuple[float, float]:
        """Milliseconds of the longest pause, of the processor and by the clock; begins anew."""
        used, passed = struct.unpack("dd", self._seen[:16])
        self._seen[:16] = bytes(16)
        return 1e3 * used, 1e3 * passed


class Host:
    """An OS process with very many programs (benchmarks/_crowd.py)."""

    def __init__(self, place: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks._crowd", os.fspath(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, *what: Any) -> None:
        assert self._process.stdin is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)

    def told(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a host of programs has died")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextlib.contextmanager
def hosts(place: Path) -> Iterator[list[Host]]:
    found = [Host(place) for _ in range(HOSTS)]
    try:
        yield found
    finally:
        for host in found:
            host.close()


def all_do(some: list[Host], *what: Any) -> float:
    """Seconds until all have done it."""
    begin = time.perf_counter()
    for host in some:
        host.tell(*what)
    for host in some:
        host.told()
    return time.perf_counter() - begin


def bare(place: Path) -> float:
    """Bytes that a bare ROUTER takes for each connection."""
    path = place / "echo.sock"
    with subprocess.Popen([sys.executable, "-c", _ECHO, f"ipc://{path}"]) as router:
        try:
            while not path.exists():
                time.sleep(0.02)
            with hosts(path) as some:
                all_do(some, "connect", 8)  # what the first ones take
                before = psutil.Process(router.pid).memory_info().rss
                all_do(some, "connect", PROGRAMS // HOSTS)
                return (psutil.Process(router.pid).memory_info().rss - before) / PROGRAMS
        finally:
            router.kill()


@contextlib.contextmanager
def kernel(place: Path) -> Iterator[tuple[subprocess.Popen[bytes], Pauses]]:
    pauses = Pauses(place / "pauses")
    words = [sys.executable, "-c", _KERNEL, f"{place}/pauses", "--runtime", f"{place}/run", "--die-with-parent"]
    words += ["--device", "sim:time_scale=0,max_runs=256,step_tokens=4096,block_bytes=4096", "--quiet"]
    process = subprocess.Popen([*words, "--journal", f"{place}/run"], stdin=subprocess.PIPE)
    try:
        yield process, pauses
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def run() -> list[Figure]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="llmasos-") as name:
        place = Path(name)
        reference = bare(place)
        with kernel(place) as (process, pauses):
            connect(place / "run", process).close()
            with hosts(place / "run") as some:
                return _measure(place / "run", process, pauses, some, reference)


def _measure(
    directory: Path, process: subprocess.Popen[bytes], pauses: Pauses, some: list[Host], reference: float
) -> list[Figure]:
    os_process, programs, each = psutil.Process(process.pid), PROGRAMS // HOSTS, PROCESSES // PROGRAMS
    figures: list[Figure] = []

    def resident() -> int:
        time.sleep(SETTLE_SECONDS)
        return os_process.memory_info().rss

    def paused(when: str) -> None:
        used, passed = pauses.take()
        figures.append(Figure(f"longest pause of the collector, {when}", used, "ms", target=PAUSE_MS))
        figures.append(Figure("  by the clock", passed, "ms"))

    all_do(some, "attach", 8)
    all_do(some, "spawn", 1, TOKENS)
    before = resident()
    pauses.take()
    took = all_do(some, "attach", programs - 8)
    attached = resident()
    paused(f"{PROGRAMS:,} programs attach")
    beyond = (attached - before) / (PROGRAMS - 8 * HOSTS) - reference
    figures += [
        Figure("a bare ROUTER's memory of a connection", reference, "bytes"),
        Figure("memory of a connected program beyond that", beyond, "bytes", target=PROGRAM_BYTES),
        Figure("attach, programs in 8 OS processes", (PROGRAMS - 8 * HOSTS) / took, "/s", better="higher"),
    ]
    took = all_do(some, "spawn", each, TOKENS)
    figures.append(Figure(f"spawn, {PROCESSES:,} in all", PROCESSES / took, "/s", better="higher"))
    paused(f"{PROCESSES:,} processes are spawned")
    took = all_do(some, "decode", DECODED)
    figures.append(Figure(f"decode of {DECODED} tokens by each", DECODED * PROCESSES / took, "tokens/s", better="higher"))
    paused("they decode")
    asleep = (resident() - attached) / PROCESSES - 4 * (TOKENS + DECODED)
    figures.append(Figure("memory of a sleeping process beside its tokens", asleep, "bytes", target=PROCESS_BYTES))
    some[0].tell("ps")
    rows, seconds, longest = some[0].told()
    figures += [Figure(f"ps of {rows:,} rows", seconds, "s"), Figure("of that the longest answer", 1e3 * longest, "ms")]
    with connect(directory, process) as client:
        figures.append(Figure("null call meanwhile, median", sorted(timed(lambda: client(Null()), 300))[150], "us"))
        figures.append(Figure("models", timed(lambda: client(Models()), 1)[0] / 1e3, "ms"))
        paused("ps, null, models")
        one = timed(lambda: client(GroupKill("/users", Signal.KILL), timeout=600), 1)[0]
        figures.append(Figure("group_kill of all of them", one / 1e6, "s"))
        paused("they end")
    return figures

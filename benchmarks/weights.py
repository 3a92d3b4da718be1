"""Weights in less memory than they need.

(a) Two yardstick models in memory for one, requests to them in turns, through the whole system: what a request costs
more that finds its weights evicted, beside reading the bytes of the installed file from the page cache. (b) One with half
the memory for what a step reads: tokens a second beside how often the bytes that a step streams can be read, from the
page cache into a window of memory as large as the driver's, and from the disk, the file being dropped from the page cache
after each step, but for the window that has been read ahead by then, and memory said to be short. All in the same run.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from benchmarks.report import Figure
from benchmarks.yardstick import ensure_yardstick, prompts

DTYPE = "int8"
ROUNDS = 7
STEPS, COLD_STEPS = 40, 12
FRAMES = 16
TRIES = 5
PIECE = 1 << 20
PAGE_IN_TARGET, STREAM_TARGET = 1.5, 0.7


def run(rounds: int = ROUNDS, steps: int = STEPS) -> list[Figure]:
    from llmasos.drivers.cpu import share_cores

    share_cores()
    with tempfile.TemporaryDirectory() as store:
        return [_turns(store, rounds), *_streamed(store, steps)]


def _installed(store: str, model: Path) -> Path:
    return next(path for path in Path(store).glob(f"{model.name}-{DTYPE}-*") if path.name[0] != ".")


def _read(path: Path) -> float:
    """Seconds for reading a file from the page cache into fresh memory."""
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        file.readall()
    return time.perf_counter() - start


def _turns(store: str, rounds: int) -> Figure:
    from llmasos.syscalls.table import Decode, Models
    from llmasos.userland.sdk.system import System

    models = [ensure_yardstick(), ensure_yardstick(seed=1)]
    flags = ["--device", f"cpu:installed={store},dtype={DTYPE},kv_bytes=1GiB,weight_bytes=1GiB"]
    with System.connect(boot=True, flags=flags, name="benchmark") as system:
        processes = [
            system.spawn(str(model), tokens, dtype=DTYPE) for model, tokens in zip(models, prompts(2), strict=True)
        ]
        evicted: list[float] = []
        resident: list[float] = []
        read: list[float] = []
        for _ in range(rounds + 1):
            for process, model in zip(processes, models, strict=True):
                for times in (evicted, resident):
                    start = time.perf_counter()
                    system(Decode(process.pid, 1))
                    times.append(time.perf_counter() - start)
                read.append(_read(_installed(store, model)))
        faults = sum(model.faults for model in system(Models()))
        assert faults >= 2 * rounds, f"{faults} faults in {rounds} rounds: there was memory for both"
    size = _installed(store, models[0]).stat().st_size
    page_in = statistics.median(evicted[2:]) - statistics.median(resident[2:])
    return Figure(
        f"page-in for a request, two models of {size / 1e6:.0f} MB in memory for one",
        page_in * 1000,
        "ms",
        statistics.median(read[2:]) * 1000,
        "reading its bytes from the page cache",
        PAGE_IN_TARGET,
        "lower",
    )


class _Reading:
    """Reading parts (offsets and sizes) of a file, from the page cache or the disk, into a window of memory that is used
    over and over: by one thread and by two in turns."""

    def __init__(self, path: Path, parts: list[tuple[int, int]], window: int) -> None:
        self._path, self._window = path, window
        self._pieces = [at + first for at, size in parts for first in range(0, size - PIECE + 1, PIECE)]
        self._seconds: dict[int, list[float]] = {1: [], 2: []}

    def once(self) -> None:
        threads = 1 if len(self._seconds[1]) == len(self._seconds[2]) else 2
        start = time.perf_counter()
        team = [threading.Thread(target=self._part, args=(number, threads)) for number in range(threads)]
        for thread in team:
            thread.start()
        for thread in team:
            thread.join()
        self._seconds[threads].append(time.perf_counter() - start)

    def _part(self, number: int, threads: int) -> None:
        buffers = [memoryview(bytearray(PIECE)) for _ in range(self._window // PIECE // threads)]
        with self._path.open("rb", buffering=0) as file:
            for turn, at in enumerate(self._pieces[number::threads]):
                os.preadv(file.fileno(), [buffers[turn % len(buffers)]], at)

    @property
    def bandwidth(self) -> float:
        """Bytes a second, of one thread or two, whichever is better."""
        return len(self._pieces) * PIECE / min(map(statistics.median, self._seconds.values()))


def _drop(path: Path) -> None:
    """Out of the page cache with what of a file is not mapped just now."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _anonymous() -> int:
    """Bytes of this process that are in memory and no cache of a file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def _streamed(store: str, steps: int) -> list[Figure]:
    from llmasos.drivers.cpu import open_device
    from llmasos.drivers.cpu.native import stream
    from llmasos.drivers.cpu.native.image import NativeImage
    from llmasos.drivers.cpu.native.installed_file import _read_header
    from llmasos.drivers.engine.engine import Engine
    from llmasos.drivers.protocol import Load, Run, Sample, Step
    from llmasos.syscalls.records import Sampler

    model = ensure_yardstick()
    device = open_device({"dtype": DTYPE, "installed": store, "early": "no"})
    assert isinstance(device, Engine)
    load = Load(1, 1, str(model), DTYPE, FRAMES)
    device.fetch(load, lambda fraction: None)()  # installs it
    device.unload(1)
    path = _installed(store, model)
    with path.open("rb") as file:
        header, start = _read_header(file.fileno())
    weights = sum(page.size for page in header.pages)
    room = weights // 2
    tokens = prompts(1)[0]

    def speed(count: int, between: Callable[[], None]) -> float:
        """Tokens a second; `between` is done before each."""
        token, times = 5, []
        for step in range(count + 1):
            between()
            begin = time.perf_counter()
            run = [token] if step else tokens
            position = len(tokens) + step - 1 if step else 0
            blocks = [] if step else list(range(FRAMES))
            sample = Sample(Sampler(), position + len(run), True)
            done = device.step(Step(1, [Run(1, 1, position, run, FRAMES - len(blocks), blocks, sample)]))
            times.append(time.perf_counter() - begin)
            token = done.results[0].token
        device.drop([1])
        return 1 / statistics.median(times[1:])

    def rest() -> None:
        """Nothing."""

    before = _anonymous()
    device.fetch(msgspec.structs.replace(load, room=room), lambda fraction: None)()
    image = device._images[1]
    assert isinstance(image, NativeImage)
    parts = [(start + header.pages[stretch.layer].offset, stretch.size) for stretch in image._network.streamed]
    streamed = sum(size for _, size in parts)
    window = sum(size for _, size in parts[: stream.WINDOW])
    speed(5, rest)
    warm = speed(steps, rest)
    taken = _anonymous() - before
    cached = _Reading(path, parts, window)
    for _ in range(2 * TRIES):
        cached.once()
    stream.available = lambda: 0
    speed(2, rest)
    disk = _Reading(path, parts[stream.WINDOW :], window)  # the others are there when a step begins
    with path.open("rb") as file:
        os.fsync(file.fileno())  # what is not on the disk yet cannot be dropped

    def read_and_drop() -> None:
        """Beside each step the reading of as much: what the disk gives changes from minute to minute."""
        _drop(path)
        disk.once()
        _drop(path)

    cold = speed(COLD_STEPS, read_and_drop)
    device.unload(1)
    device.fetch(load, lambda fraction: None)()
    whole = speed(steps, rest)
    device.unload(1)
    name = f"a model that reads {weights / 1e6:.0f} MB a step with {room / 1e6:.0f} MB for it"
    return [
        Figure(
            f"{name}, streaming {streamed / 1e6:.0f} MB",
            warm,
            "tok/s",
            cached.bandwidth / streamed,
            "reading these from the page cache",
            STREAM_TARGET,
            "higher",
        ),
        Figure(
            f"{name}, {(streamed - window) / 1e6:.0f} MB from the disk",
            cold,
            "tok/s",
            disk.bandwidth / (streamed - window),
            "reading as many from it, in turns",
            STREAM_TARGET,
            "higher",
        ),
        Figure(f"{name}, from the page cache", warm, "tok/s", whole, "all in memory", None, "higher"),
        Figure(
            f"{name}: what it takes, buffers included",
            taken / 1e6,
            "MB",
            room / 1e6,
            "that",
            1.0,
            "lower",
        ),
    ]


if __name__ == "__main__":
    from benchmarks.report import table

    print(table(run()))

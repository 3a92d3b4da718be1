"""Checkpoint and restore of a 4,096-token process of the yardstick model (int8), with its KV.

Through the whole system: two system calls, kernel, driver and disk. A restore ends when the process can go on; beside
it the same tokens are computed again by the same kernel, to the same point, in the same run. A checkpoint ends when the
image is on the disk; beside it the same bytes are written bare, with one fsync. The disk is what lies under the temporary
directory; what is read is in its page cache.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.report import Figure
from benchmarks.yardstick import ensure_yardstick, prompts

ROUNDS = 7
TOKENS = 4096
RESTORE_TARGET = 50.0
_POLL = 0.001


def run(rounds: int = ROUNDS) -> list[Figure]:
    """Milliseconds of a restore and of computing instead, of a checkpoint and of writing the bytes."""
    from llmasos.syscalls.records import Signal
    from llmasos.syscalls.table import Checkpoint, Decode, Getinfo, Kill, Restore, Spawn, Wait
    from llmasos.userland.sdk.system import System

    log = (prompts(1)[0] * TOKENS)[:TOKENS]
    flags = ["--device", "cpu:dtype=int8", "--kv-bytes", "1GiB", "--quiet"]
    times: dict[str, list[float]] = {"restore": [], "prefill": [], "checkpoint": [], "write": []}
    with tempfile.TemporaryDirectory() as directory, System.connect(boot=True, flags=flags) as system:
        image, bare = Path(directory, "image"), Path(directory, "bare")
        model = str(ensure_yardstick())

        def end(pid: int) -> None:
            system(Kill(pid, Signal.KILL))
            system(Wait(pid))

        def fresh() -> None:
            """The model in memory, and nothing in its frames that could be found there instead."""
            system.evict(model)
            system.load(model)

        pid = system(Spawn(model, tokens=log))
        first = system(Decode(pid, 1)).tokens
        size = system(Checkpoint(pid, str(image))).bytes
        end(pid)
        raw = image.read_bytes()
        for number in range(rounds + 1):
            fresh()
            start = time.perf_counter()
            pid = system(Restore(str(image)))
            restored = time.perf_counter() - start
            if system(Getinfo(pid)).cached != TOKENS:
                raise RuntimeError("the KV of the image was not taken")
            start = time.perf_counter()
            system(Checkpoint(pid, str(image)))
            saved = time.perf_counter() - start
            start = time.perf_counter()
            _write(bare, raw)
            written = time.perf_counter() - start
            again = system(Decode(pid, 1)).tokens
            end(pid)
            fresh()
            start = time.perf_counter()
            pid = system(Spawn(model, tokens=[*log, *first]))
            while system(Getinfo(pid)).cached < TOKENS:
                time.sleep(_POLL)
            computed = time.perf_counter() - start
            if system(Decode(pid, 1)).tokens != again:
                raise RuntimeError("what was restored does not go on as what was computed")
            end(pid)
            if number:
                for name, seconds in zip(times, (restored, computed, saved, written), strict=True):
                    times[name].append(seconds)
    restore, prefill, checkpoint, write = (statistics.median(seconds) * 1000 for seconds in times.values())
    name = f"{TOKENS:,} tokens with their KV, {size / 1e6:.0f} MB"
    return [
        Figure(f"restore of {name}", restore, "ms", prefill, "computing them again"),
        Figure(
            f"restore of {name}: times faster than computing",
            prefill / restore,
            "x",
            target=RESTORE_TARGET,
            better="higher",
        ),
        Figure(f"checkpoint of {name}", checkpoint, "ms", write, "writing the bytes bare, with one fsync"),
    ]


def _write(path: Path, raw: bytes) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    try:
        left = memoryview(raw)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    from benchmarks.report import table

    print(table(run()))

"""A context switch: the KV of a 4,096-token process of the yardstick model (int8) out to a lower tier and back.

Both through the engine's own steps: the disk tier beside encrypting, writing, reading and decrypting the same bytes bare,
a frame at a time in one thread; the host memory tier (what a GPU's driver has) beside copying the bytes twice; and both
beside computing the tokens again. All in the same run, in turns; the disk is what lies under the temporary directory,
mostly its page cache.
"""

from __future__ import annotations

import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial

from benchmarks.report import Figure
from benchmarks.yardstick import ensure_yardstick, prompts

ROUNDS = 7
TOKENS = 4096
DISK_TARGET, HOST_TARGET = 2.0, 1.5
_STEP = 256  # tokens of a prompt in a step


def run(rounds: int = ROUNDS) -> list[Figure]:
    """Milliseconds out and in again."""
    from llmasos.drivers.cpu import open_device, share_cores
    from llmasos.drivers.protocol import BLOCK_TOKENS, Load, Move, Run, Sample, Step
    from llmasos.syscalls.records import Sampler

    share_cores()
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from llmasos.drivers.engine.engine import Engine
    from llmasos.drivers.engine.host_places import HostPlaces

    frames = TOKENS // BLOCK_TOKENS
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile(dir=directory) as file:
        device = open_device({"dtype": "int8", "swapdir": directory})
        assert isinstance(device, Engine)
        device._below = [*device._below, HostPlaces]
        device.fetch(Load(1, 1, str(ensure_yardstick()), "int8", frames, [frames, frames]), lambda fraction: None)()
        log = (prompts(1)[0] * TOKENS)[:TOKENS]
        table = list(range(frames))

        def prefill() -> int:
            device.drop([1])
            token = -1
            for start in range(0, TOKENS, _STEP):
                sample = Sample(Sampler(), TOKENS, True) if start + _STEP == TOKENS else None
                keep, new = (frames, []) if start else (0, table)
                part = Run(1, 1, start, log[start : start + _STEP], keep, new, sample)
                (result,) = device.step(Step(1, [part])).results
                token = result.token
            return token

        def switch(tier: int) -> None:
            moves = [Move(1, 1, frame, tier, frame) for frame in table]
            device.step(Step(1, [], outs=moves))
            device.step(Step(1, [], ins=moves))

        raw = device._images[1].slab.some(0, frames)
        size = raw.shape[1]
        key = AESGCM(secrets.token_bytes(32))

        def bare() -> None:
            for frame in table:
                sealed = key.encrypt(frame.to_bytes(12, "little"), raw[frame].data, None)
                os.pwrite(file.fileno(), sealed, frame * len(sealed))
            for frame in table:
                held = os.pread(file.fileno(), size + 16, frame * (size + 16))
                raw[frame] = memoryview(key.decrypt(frame.to_bytes(12, "little"), held, None))

        beside = raw.copy()

        def copies() -> None:
            beside[:] = raw
            raw[:] = beside

        first = prefill()
        began = time.perf_counter()
        again = prefill()
        computed = (time.perf_counter() - began) * 1000
        medians = _medians((partial(switch, 1), bare, partial(switch, 2), copies), rounds)
        last = Run(1, 1, TOKENS - 1, log[-1:], 0, table, Sample(Sampler(), TOKENS, True), log[:-1])
        (result,) = device.step(Step(1, [last])).results
        if not first == again == result.token:
            raise RuntimeError("the frames that came back are not those that went out")
        device.unload(1)
    name = f"context switch of {TOKENS:,} tokens, {frames * size / 1e6:.0f} MB"
    return [
        Figure(f"{name}: disk tier", medians[0], "ms", medians[1], "encrypt, write, read, decrypt bare", DISK_TARGET),
        Figure(f"{name}: host memory tier", medians[2], "ms", medians[3], "copying the bytes twice", HOST_TARGET),
        Figure(f"{name}: disk tier", medians[0], "ms", computed, "computing the tokens again"),
        Figure(f"{name}: host memory tier", medians[2], "ms", computed, "computing the tokens again"),
    ]


def _medians(works: tuple[Callable[[], None], ...], rounds: int) -> list[float]:
    """Milliseconds of each, all taking turns; the first round warms."""
    times: list[list[float]] = [[] for _ in works]
    for number in range(rounds + 1):
        for work, seconds in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            if number:
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) * 1000 for seconds in times]


if __name__ == "__main__":
    from benchmarks.report import table

    print(table(run()))

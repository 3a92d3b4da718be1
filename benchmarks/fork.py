"""What a fork costs in the kernel core: a process of 4,096 tokens, its page table shared copy-on-write.

The reference is a null call through the same core: copying nothing.
"""

from __future__ import annotations

import gc
import statistics
import time

from benchmarks._core import Core
from benchmarks.report import Figure
from llmasos.syscalls.table import Exit, Fork, Null, Spawn, Wait

TOKENS = 4096
FORKS = 500
TARGET_MS = 1.0


def run() -> list[Figure]:
    core = Core(frames=1024, max_runs=16, step_tokens=256, context=8192)
    parent = core.call(Spawn("sim", tokens=[i % 1000 for i in range(TOKENS)]))
    core.run(2 * TOKENS // 256)
    forks: list[float] = []
    nulls: list[float] = []
    gc.collect()
    for _ in range(FORKS):
        for call, times in ((Null(), nulls), (Fork(parent), forks)):
            event = core.syscall(call)
            start = time.perf_counter()
            actions = core.kernel.handle(event, core.now)
            times.append(time.perf_counter() - start)
            core.take(actions)
        child = max(row.pid for row in core.kernel.table)
        shared = core.kernel.table.llm(child).table.frames
        if len(shared) != TOKENS // 16:
            raise RuntimeError(f"the child maps {len(shared)} frames of {TOKENS // 16}")
        core.call(Exit(child))
        core.call(Wait(child))
    fork, null = (1e3 * statistics.median(t) for t in (forks, nulls))
    return [
        Figure(f"fork of {TOKENS:,} tokens", fork, "ms", target=TARGET_MS),
        Figure("fork beside a null call", fork, "ms", null, "null call in the core"),
    ]

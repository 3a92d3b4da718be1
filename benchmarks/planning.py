"""What deciding costs: the kernel core plans a step for 16 of 10,000 processes that want the device.

Measured in `Kernel.handle` of a step's results: planning alone, and the whole of it (16 tokens appended, results
accounted, the next step planned and written). Then again with 100,000 more processes asleep in the table; both kernels
take turns, so that a busy machine slows them alike.
"""

from __future__ import annotations

import gc
import statistics
import time
from typing import Any

from benchmarks._core import Core
from benchmarks.report import Figure
from llmasos.kernel.devices import steps
from llmasos.syscalls.table import Decode, Spawn

READY = 10_000
SLEEPING = 100_000
RUNS = 16
ROUNDS = 20
STEPS = 50  # in one round
TARGET_MS = 0.5
TARGET_SLEEPERS = 1.1


def _ready(sleeping: int) -> Core:
    core = Core(frames=2 * READY, max_runs=RUNS, step_tokens=256, context=512)
    for _ in range(sleeping):
        core.call(Spawn("sim", tokens=[1]))
    for i in range(READY):
        pid = core.call(Spawn("sim", tokens=[i + 1]))
        core.call(Decode(pid, 400, wait=False))
    core.run(2 * READY // RUNS)  # every one has decoded a token or two
    return core


def _round(core: Core, whole: list[float], planning: list[float]) -> None:
    module: Any = steps
    plan = module.plan_step

    def timed(*args: Any) -> Any:
        start = time.perf_counter()
        result = plan(*args)
        planning.append(time.perf_counter() - start)
        return result

    module.plan_step = timed
    try:
        for _ in range(STEPS):
            event = core.results()
            start = time.perf_counter()
            actions = core.kernel.handle(event, core.now)
            whole.append(time.perf_counter() - start)
            core.take(actions)
            if core.step is None or len(core.step.runs) != RUNS:
                raise RuntimeError(f"a step was not {RUNS} runs: {core.step}")
    finally:
        module.plan_step = plan


def run() -> list[Figure]:
    awake, crowded = _ready(0), _ready(SLEEPING)
    times: list[list[float]] = [[], [], [], []]
    gc.collect()
    gc.freeze()
    try:
        for _ in range(ROUNDS):
            _round(awake, times[0], times[1])
            _round(crowded, times[2], times[3])
    finally:
        gc.unfreeze()
    whole, plan, crowded_whole, crowded_plan = (1e3 * statistics.median(t) for t in times)
    sleepers = f"with {SLEEPING:,} asleep"
    return [
        Figure(f"planning a step for {RUNS} of {READY:,}", plan, "ms", target=TARGET_MS),
        Figure(f"results and planning, {RUNS} of {READY:,}", whole, "ms"),
        Figure(f"planning, {sleepers}", crowded_plan, "ms", plan, "none asleep", TARGET_SLEEPERS),
        Figure(f"results and planning, {sleepers}", crowded_whole, "ms", whole, "none asleep", TARGET_SLEEPERS),
    ]

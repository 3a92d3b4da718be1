"""What one event may take: the longest of those in which 10,000 processes that decode are signalled, end, or get their
device or their model back.

Only `Kernel.handle` is timed, in time of the processor, with the collector off; behind the longest event stands what all
of them took together. MEMBERS=100000 is for another number of processes.
"""

from __future__ import annotations

import gc
import os
import time

from benchmarks._core import Core
from benchmarks.report import Figure
from llmasos.drivers.protocol import SIZES, VERSION, Hello, Load, Loaded
from llmasos.kernel.events import Action, Disconnected, DriverExited, Event, FromDevice, Send, Tick
from llmasos.syscalls.records import Signal, Tier
from llmasos.syscalls.table import Decode, GroupKill, Spawn

MEMBERS = int(os.environ.get("MEMBERS", "10000"))
TARGET_MS = 20.0


def _crowd() -> Core:
    core = Core(frames=2 * MEMBERS, max_runs=256, step_tokens=4096, context=512, journal=True)
    pids = [core.call(Spawn("sim", tokens=[n % 30_000, n // 30_000, 5, 7])) for n in range(MEMBERS)]
    core.run(2 * MEMBERS)
    for pid in pids:
        core.call(Decode(pid, 400, wait=False))
    gc.collect()
    gc.freeze()
    return core


def _timed(core: Core, event: Event) -> tuple[list[float], list[Action]]:
    """Milliseconds of an event, and of each of those that follow until all that it began is done; what the kernel did."""
    times: list[float] = []
    done: list[Action] = []
    while True:
        begin = time.thread_time()
        done += core.kernel.handle(event, core.now)
        times.append(1e3 * (time.thread_time() - begin))
        if not core.kernel.pieces:
            return times, done
        core.now += 1
        event = Tick()


def _figures(name: str, times: list[float], target: float | None = TARGET_MS) -> list[Figure]:
    return [
        Figure(f"{name}: the longest event", max(times), "ms", target=target),
        Figure("  all of them together", sum(times), "ms"),
    ]


def _device_back(core: Core) -> list[Figure]:
    lost, _ = _timed(core, DriverExited("d", 1, "killed"))
    hello = Hello(VERSION, "sim", 1, "", [Tier("ram", 1 << 50, 1.0)], ["sim"], ["bf16"], [], SIZES)
    up, done = _timed(core, FromDevice("d", 2, hello))
    ref = next(one.message.ref for one in done if isinstance(one, Send) and isinstance(one.message, Load))
    there, _ = _timed(core, FromDevice("d", 2, Loaded(ref, 1)))
    return [
        *_figures("their driver dies", lost, None),
        *_figures("their device comes up", up),
        *_figures("their model is in memory", there),
    ]


def run() -> list[Figure]:
    figures: list[Figure] = []
    gc.disable()
    try:
        for signal in (Signal.STOP, Signal.KILL):
            core = _crowd()
            times, _ = _timed(core, core.syscall(GroupKill("/users", signal)))
            figures += _figures(f"group_kill {signal.name} of {MEMBERS:,}", times)
        figures += _figures(f"a program with {MEMBERS:,} ends", _timed(_crowd(), Disconnected(1))[0])
        return figures + _device_back(_crowd())
    finally:
        gc.enable()
        gc.unfreeze()

"""What a lasting system costs that nobody uses: the memory of kernel and driver with an agent on the embedded model that
has spoken, and how often they wake in a minute.

Memory is what the two would give back if they ended (USS, and RSS beside it): the interpreter's pages are shared with
others. Wake-ups are the voluntary context switches of all their threads, as the operating system counts them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.report import Figure
from llmasos.userland.sdk.system import System

MEMORY_MB, WAKE_UPS = 250.0, 2.0
SETTLE_SECONDS, MINUTE = 15.0, 60.0  # the kernel traces for ten seconds after the last reader


def wake_ups(processes: list[psutil.Process]) -> int:
    """Voluntary context switches of all threads since their start."""
    total = 0
    for process in processes:
        for status in Path(f"/proc/{process.pid}/task").glob("*/status"):
            lines = status.read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return total


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="llmasos-idle-") as place:
        environment = {**os.environ, "LLMASOS_RUNTIME": str(Path(place, "run"))}
        llmasos = [sys.executable, "-m", "llmasos"]
        subprocess.run([*llmasos, "boot", "--detach", "--debuggable"], env=environment, check=True, capture_output=True)
        try:
            with System.connect(Path(place, "run")) as system:
                agent = system.spawn(name="alice", detached=True)
                agent.ask("My name is Ada.")
                kernel = psutil.Process(system.kernel.boot.os_pid)
            both = [kernel, *kernel.children(recursive=True)]
            time.sleep(SETTLE_SECONDS)
            before = wake_ups(both)
            time.sleep(MINUTE)
            woken = wake_ups(both) - before
            resident = sum(process.memory_info().rss for process in both) / 1e6
            own = sum(process.memory_full_info().uss for process in both) / 1e6
        finally:
            subprocess.run([*llmasos, "halt"], env=environment, check=True, capture_output=True)
    return [
        Figure("memory of an idle kernel and driver, embedded model (RSS)", resident, "MB", target=MEMORY_MB),
        Figure("the same without what they share with others (USS)", own, "MB"),
        Figure("wake-ups of both in a minute", woken, "", target=WAKE_UPS),
    ]

"""What a piece of work in a thread took is given back to the system, whatever threads there were before."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from llmasos.syscalls import runtime

WORKED = """
import ctypes, sys, threading
from llmasos.syscalls.spare_memory import give_back, one_pool

def resident() -> int:
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def work() -> None:
    together.wait()
    pieces = [bytearray(3000) for _ in range(1000)]
    together.wait()

if sys.argv[1] == "one":
    one_pool()
bytearray(4 << 20)  # from here on glibc keeps ends of pools that are shorter
before = resident()
together = threading.Barrier(6)
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
give_back()
print(resident() - before)
"""


@pytest.mark.processes
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library than glibc")
def test_threads_of_one_pool_leave_nothing_behind() -> None:
    left = {
        pools: int(
            subprocess.run(
                [sys.executable, "-c", WORKED, pools],
                env=runtime.environment(),
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for pools in ("one", "many")
    }
    assert left["one"] < 3 << 20 < left["many"], "each of six threads took three megabytes"

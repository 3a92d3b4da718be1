"""The swap file fails, one way at a time, under a real driver: no wrong token, nothing lost, and the log says what.

The faults are injected in the driver's own process, between it and the operating system (tests/system/faults).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos.syscalls.table import BootInfoCall, Dmesg
from llmasos.userland.sdk.system import System
from tests.system.swapping import agents, end, little_memory, turns

MOVED_OUT, MOVED_IN = "could not be moved out", "could not be moved in"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults") / "plan"


@pytest.fixture(scope="module")
def system(plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with little_memory(tmp_path_factory.mktemp("swap"), plan) as system:
        yield system


@pytest.fixture(scope="module")
def wanted(cpu_system: System) -> list[list[int]]:
    """What the agents say where there is memory for all."""
    roomy = agents(cpu_system)
    said = turns(cpu_system, roomy)
    end(roomy)
    return said


@pytest.mark.parametrize(
    ("fault", "lines"),
    [
        ("pwritev 1 9999 full", [MOVED_OUT, "No space left on device"]),
        ("pwritev 3 3 full", [MOVED_OUT, "No space left on device"]),
        ("pwritev 1 9 eio", [MOVED_OUT, "Input/output error"]),
        ("pwritev 2 4 short", [MOVED_OUT, "bytes 12 were written"]),
        ("pwritev 1 9999 flipped", [MOVED_IN, "is damaged"]),
        ("pwritev 5 5 flipped", [MOVED_IN, "is damaged"]),
        ("pread 1 9999 eio", [MOVED_IN, "cannot be read: Input/output error"]),
        ("pread 4 4 eio", [MOVED_IN, "cannot be read: Input/output error"]),
        ("pread 2 2 short", [MOVED_IN, "is damaged"]),
        ("pread 1 1 emptied", [MOVED_IN, "holds something else"]),
        ("pwritev 1 1 kill", ["driver died: killed by SIGKILL"]),
        ("pread 7 7 kill", ["driver died: killed by SIGKILL"]),
    ],
)
def test_a_fault_of_the_swap_file_costs_time_and_nothing_else(
    system: System,
    wanted: list[list[int]],
    plan: Path,
    fault: str,
    lines: list[str],
) -> None:
    before = system(Dmesg())[-1].seq
    deaths = system(BootInfoCall()).devices[0].restarts
    processes = agents(system)
    plan.write_text(fault)
    try:
        said = turns(system, processes)
        assert plan.with_name("plan.happened").exists(), "the fault has not happened"
    finally:
        plan.unlink(missing_ok=True)
        plan.with_name("plan.happened").unlink(missing_ok=True)
    assert said == wanted
    log = "\n".join(line.text for line in system(Dmesg(after=before)))
    for line in lines:
        assert line in log, log
    assert system(BootInfoCall()).devices[0].restarts - deaths == ("kill" in fault)
    end(processes)  # what they leave behind harms nobody
    again = agents(system)
    assert turns(system, again) == wanted
    end(again)

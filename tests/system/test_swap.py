"""Swap through the whole system: agents that do not fit into the KV memory together go on as if they did."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos.syscalls.records import State
from llmasos.syscalls.table import BootInfoCall, Decode, StatsCall
from llmasos.userland.sdk.system import System
from tests.booted import eventually
from tests.system.swapping import AGENTS, DECODED, TURNS, agents, end, little_memory, turns


@pytest.fixture(scope="module")
def swap_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("swap")


@pytest.fixture(scope="module")
def system(swap_directory: Path) -> Iterator[System]:
    with little_memory(swap_directory) as system:
        yield system


def test_turns_are_those_of_agents_that_have_memory_and_nothing_is_computed_twice(
    system: System, cpu_system: System, swap_directory: Path
) -> None:
    roomy = agents(cpu_system)
    wanted = turns(cpu_system, roomy)
    end(roomy)
    processes = agents(system)
    assert turns(system, processes) == wanted
    rows = [process.info() for process in processes]
    assert sum(row.usage.preemptions for row in rows) >= AGENTS * (TURNS - 1)
    assert [row.usage.computed for row in rows] == [row.length - 1 for row in rows]
    assert sum(row.swapped for row in rows) > 0
    counters = system(StatsCall())
    assert counters.moved_out > 0
    assert counters.moved_in > 0
    assert os.listdir(swap_directory) == []
    end(processes)


def test_stop_frees_memory_at_once_and_cont_goes_on(system: System) -> None:
    (process, *others) = agents(system)
    end(others)
    first = system(Decode(process.pid, DECODED)).tokens
    process.stop()
    eventually(lambda: process.info().state is State.STOPPED, "it stops")
    row = process.info()
    assert row.pages == 0
    assert row.swapped > 0
    process.cont()
    second = system(Decode(process.pid, DECODED)).tokens
    assert process.info().usage.computed == process.info().length - 1
    (fresh, *others) = agents(system)
    assert system(Decode(fresh.pid, 2 * DECODED)).tokens == first + second
    end([process, fresh, *others])


def test_what_lay_in_the_file_of_a_driver_that_died_is_computed_again(system: System, cpu_system: System) -> None:
    roomy = agents(cpu_system)
    wanted = turns(cpu_system, roomy)
    end(roomy)
    processes = agents(system)
    system(Decode(processes[-1].pid, 1))
    (device,) = system(BootInfoCall()).devices
    os.kill(device.os_pid, signal.SIGKILL)
    eventually(
        lambda: system(BootInfoCall()).devices[0].incarnation > device.incarnation,
        "the driver is started again",
    )
    said = turns(system, processes)
    assert said[:-1] == wanted[:-1]
    assert (said[-1])[: len(wanted[-1]) - 1] == wanted[-1][1:]
    end(processes)

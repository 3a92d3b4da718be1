"""A kernel with a journal that is killed and boots again, and what tests of that ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmasos.simulator import Prog, Simulation
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.records import (
    Sampler,
)

WARM = Sampler(temperature=1.0, seed=11)


def reboot(sim: Simulation, *programs: Prog) -> None:
    sim.kill()
    sim.boot_again()
    for program in programs:
        program.come_back()


def fails(call: Callable[[], Any]) -> SyscallError:
    with pytest.raises(SyscallError) as caught:
        call()
    return caught.value


def log_of(sim: Simulation, pid: int) -> list[int]:
    return list(sim.kernel.table.llm(pid).log)

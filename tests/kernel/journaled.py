"""A kernel with a journal that is killed and boots again, and what tests of that ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmasos.kernel.journal.records import Frame
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


def frames_written(sim: Simulation) -> list[Frame]:
    """The frames of the journal from here on, as they are written."""
    written: list[Frame] = []
    whole = sim._append
    sim._append = lambda append: (written.append(append.frame), whole(append))[1]  # type: ignore[method-assign]
    return written


def fails(call: Callable[[], Any]) -> SyscallError:
    with pytest.raises(SyscallError) as caught:
        call()
    return caught.value


def log_of(sim: Simulation, pid: int) -> list[int]:
    return list(sim.kernel.table.llm(pid).log)

"""Programs of several users in one kernel, the rights that they hand on, and how their calls fail."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from llmasos.simulator import Prog, Simulation, simulate
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Needs

ANN, BEN, CID = 1001, 1002, 1003
SEE, READ, CONTROL, LIMITS = (int(one) for one in (Needs.SEE, Needs.READ, Needs.CONTROL, Needs.LIMITS))


@dataclass
class Neighbours:
    """A program of each of three users."""

    sim: Simulation = field(default_factory=lambda: simulate(256))

    def __post_init__(self) -> None:
        self.ann, self.ben, self.cid = (
            self.sim.program(name, uid=uid) for name, uid in (("a", ANN), ("b", BEN), ("c", CID))
        )


def refused(program: Prog, call: Any) -> tuple[Errno, str]:
    """How a call fails, and the reason."""
    with pytest.raises(SyscallError) as caught:
        program.call(call)
    return caught.value.errno, caught.value.reason


def errno_of(program: Prog, call: Any) -> Errno:
    """How a call fails."""
    return refused(program, call)[0]

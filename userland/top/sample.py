"""What the kernel says of itself at one moment: the answers of five calls, of which `top` shows nothing but this.

All of it is asked for in one go, once an interval; between two samples `top` makes no call. So what it costs the kernel
is known, and the same records are what a recording keeps (record.py).
"""

from __future__ import annotations

import msgspec

from llmasos.syscalls.records import BootInfo, GroupInfo, ModelInfo, ProcessInfo, Stats
from llmasos.syscalls.table import BootInfoCall, Models, StatsCall
from llmasos.userland.programs import groups, ps
from llmasos.userland.programs.ps import Kernel


class Sample(msgspec.Struct, frozen=True):
    """The kernel's tables and counters at `at` seconds after its boot."""

    boot: BootInfo  # without the ticket
    stats: Stats
    models: list[ModelInfo]
    groups: list[GroupInfo]  # parents first
    rows: list[ProcessInfo]  # by pid

    @property
    def at(self) -> float:
        return self.stats.uptime


def take(kernel: Kernel) -> Sample:
    """Ask the kernel. Raises SyscallError."""
    boot = msgspec.structs.replace(kernel(BootInfoCall()), ticket=b"")  # a secret of this connection
    return Sample(boot, kernel(StatsCall()), kernel(Models()), groups.read(kernel), ps.processes(kernel))

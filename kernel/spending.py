"""What programs make the kernel itself keep: calls that wait, readers of the trace. By program, by owner, in all, as
syscalls/budgets.py says. (Logs and rows of the process table are in the ledger of the groups, bytes on their way are the
edge's.)

A call that waits is charged when it is put into a line and discharged when it is answered, so a copy of the core charges
the same. The kernel's own calls, one for each process that came back with the journal, are charged to nobody: of these
there are as many as the process table has rows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from llmasos.kernel.objects.owner import Owner
from llmasos.kernel.objects.process import INIT_PID, Program
from llmasos.kernel.objects.request import Request
from llmasos.syscalls.budgets import PARKED, PARKED_BYTES, TRACERS, Allowance
from llmasos.syscalls.records import Budget
from llmasos.syscalls.table import Trace


@dataclass(slots=True)
class Parked:
    """Of one program, one owner, or all."""

    calls: int = 0
    bytes: int = 0
    tracers: int = 0


class Spending:
    def __init__(self) -> None:
        self.all = Parked()
        self._owners: dict[Owner, Parked] = {}
        self._programs: dict[Program, Parked] = {}
        self.refused: Counter[str] = Counter()

    def park(self, request: Request) -> None:
        """Charge a call that begins to wait. Harmless if it waits already."""
        before = request.program.parked.get(request.seq)
        if before is request:
            return
        if before is not None:  # its number was given again
            self._charge(before, -1)
        request.program.parked[request.seq] = request
        self._charge(request, 1)

    def unpark(self, request: Request) -> None:
        """Discharge a call that has been answered. Harmless if it has not waited."""
        if request.program.parked.get(request.seq) is request:
            del request.program.parked[request.seq]
            self._charge(request, -1)

    def _charge(self, request: Request, sign: int) -> None:
        if request.program.pid == INIT_PID:
            return
        program, tracer = request.program, isinstance(request.call, Trace)
        for parked in (
            self._programs.setdefault(program, Parked()),
            self._owners.setdefault(program.owner, Parked()),
            self.all,
        ):
            parked.calls += sign
            parked.bytes += sign * request.size
            parked.tracers += sign * tracer
        if not self._programs[program].calls:
            del self._programs[program]
        if not self._owners[program.owner].calls:
            del self._owners[program.owner]

    def check(self, request: Request) -> None:
        """EAGAIN if this call is one too many to wait."""
        program = request.program
        if program.pid == INIT_PID:
            return
        own = self._programs.get(program)
        if own is None and not self.all.calls:
            return
        tracer = isinstance(request.call, Trace)
        names = f"program {program.pid}", f"owner {program.owner.name}", "all programs"
        levels = own or Parked(), self._owners.get(program.owner) or Parked(), self.all
        for index, (whose, parked) in enumerate(zip(names, levels, strict=True)):
            self._check(PARKED, whose, parked.calls, 1, index)
            self._check(PARKED_BYTES, whose, parked.bytes, request.size, index)
            if tracer:
                self._check(TRACERS, whose, parked.tracers, 1, index)

    def _check(self, budget: Allowance, whose: str, used: int, more: int, index: int) -> None:
        most = (budget.each, budget.owner, budget.all)[index]
        if used and used + more > most:
            self.refused[budget.name] += 1
            raise budget.refuse(whose, used, most)

    def told(self) -> list[Budget]:
        """For `stats`."""
        programs, everybody, refused = self._programs.values(), self.all, self.refused
        calls = max((one.calls for one in programs), default=0)
        size = max((one.bytes for one in programs), default=0)
        tracers = max((one.tracers for one in programs), default=0)
        return [
            PARKED.told(everybody.calls, refused[PARKED.name], calls),
            PARKED_BYTES.told(everybody.bytes, refused[PARKED_BYTES.name], size),
            TRACERS.told(everybody.tracers, refused[TRACERS.name], tracers),
        ]

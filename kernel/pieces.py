"""Work on very many processes goes on in pieces, one in each of the next events, between which programs are heard.

As Linux's long loops call `cond_resched`, but as data: a piece of work is an object that knows how far it has come, so a
copy of the core goes on with the same. Those that are under way take turns; so an event has one piece, however many there
are. One that lets no step begin goes on alone, so that devices wait for no other, and has not begun while another does:
between two of them each device has its chance. What is done for few (`AT_ONCE`) is done in its own event.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection

from llmasos.kernel.marks import stale
from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.state import System

AT_ONCE = 256  # processes in one piece, which takes some milliseconds


class Piecework(ABC):
    """Work under way. `holds`: no step is begun before it is done."""

    holds = False

    @abstractmethod
    def some(self, system: System) -> bool:
        """Do the next piece; whether there is more."""


class Settling(Piecework):
    """Very many processes whose states may be others."""

    def __init__(self, processes: Collection[LLMProcess], *, holds: bool) -> None:
        self.left, self.holds = list(processes)[::-1], holds

    def some(self, system: System) -> bool:
        for _ in range(min(AT_ONCE, len(self.left))):
            stale(system, self.left.pop())
        return bool(self.left)


def begin(system: System, work: Piecework) -> None:
    """Do it in the events to come."""
    system.pieces.append(work)
    if system.next_piece is None:
        system.next_piece = system.timers.at(system.now + 1, _next, None)


def stale_all(system: System, processes: Collection[LLMProcess], *, holds: bool = False) -> None:
    """The states of all these may be others, for a reason that the journal does not record. `holds`: some may be queued
    that cannot run any more, so nothing is planned until all are settled."""
    if len(processes) > AT_ONCE:
        begin(system, Settling(processes, holds=holds))
    else:
        for process in processes:
            stale(system, process)


def held(system: System) -> bool:
    """Whether work is under way before whose end no step begins."""
    return any(work.holds for work in system.pieces)


def _next(system: System, nothing: None) -> None:
    """A piece. The next one is a moment later, and not at once: what is due now is all done in one event."""
    work = next((one for one in system.pieces if one.holds), system.pieces[0])
    system.pieces.remove(work)
    if work.some(system):
        system.pieces.append(work)
    elif work.holds:
        system.pumped.update(system.devices)
    system.next_piece = system.timers.at(system.now + 1, _next, None) if system.pieces else None

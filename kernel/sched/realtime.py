"""REALTIME processes: which of them a device can take, and what happens when one has used up its budget.

A device takes reserves (objects/reserve.py) up to four fifths of its time together, those of processes that sleep
included, so that each can be kept whatever the others do, and everybody else gets the rest.
"""

from __future__ import annotations

from msgspec.structs import replace

from llmasos.kernel.clock import SECOND
from llmasos.kernel.marks import stale
from llmasos.kernel.objects.device import Device
from llmasos.kernel.objects.owner import Owner
from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.objects.reserve import Reserve
from llmasos.kernel.state import System
from llmasos.syscalls import pids
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.limits import REALTIME_SHARE
from llmasos.syscalls.records import SchedClass

_NAMED = 4  # processes that an error names
_MOST = int(REALTIME_SHARE * SECOND)  # billionths


def check_reserve(system: System, device: Device, pid: int, wanted: Reserve, owner: Owner) -> None:
    """EBUSY if a device cannot give process `pid` the reserve beside those that it has promised; says to `owner` whose
    those are, as far as it may know."""
    others = {other: held for other, held in device.reserves.items() if other != pid}
    taken = sum(held.share for held in others.values())
    if taken + wanted.share <= _MOST:
        return
    named: list[str] = []
    hidden = 0
    for other, held in sorted(others.items(), key=lambda item: -item[1].share):
        process = system.table.find(other)
        if process is not None and owner.over(process.owner) and len(named) < _NAMED:
            named.append(f"{_percent(held.share)} process {pids.shown(other)} ({process.name})")
        else:
            hidden += held.share
    whose = ", ".join([*named, *([f"{_percent(hidden)} others"] if hidden else [])])
    there = f"{_percent(taken)} are reserved ({whose})" if taken else "nothing is reserved"
    raise Errno.EBUSY(
        f"{_percent(wanted.share)} more of the time of {device.name} would be too much: of at most {_percent(_MOST)} "
        f"{there}; ask for a smaller budget, or take one back (sched_class fair)"
    )


def _percent(share: int) -> str:
    return f"{100 * share / SECOND:.3g}%"


def grant(system: System, process: LLMProcess, device: Device, wanted: Reserve) -> None:
    """Make a process REALTIME on a device, its own or the one that it moves to; `check_reserve` has been asked. What it
    has used of an earlier reserve it has used of this one."""
    old = process.reserve
    withdraw(process)
    process.reserve = device.reserves[process.pid] = wanted
    if old is None:
        wanted.woke(system.now)
    else:
        wanted.left, wanted.ends = min(old.left, wanted.budget), old.ends
    wanted.since = old.since if old is not None and device is process.device else system.now
    _watch(system, process, wanted)
    process.traits = replace(process.traits, sched_class=SchedClass.REALTIME)


def withdraw(process: LLMProcess) -> None:
    """The process has no reserve any more."""
    process.device.release_reserve(process.pid)
    process.reserve = None


def spent(system: System, process: LLMProcess, held: Reserve, time: int) -> None:
    """A step has used that much of a process's budget."""
    held.refill(system.now)
    held.left -= time
    _watch(system, process, held)


def _watch(system: System, process: LLMProcess, held: Reserve) -> None:
    if not held.open and held.timer is None:
        held.timer = system.timers.at(held.ends, _refill, process)


def _refill(system: System, process: LLMProcess) -> None:
    """The period of a process that had used up its budget ends."""
    held = process.reserve
    if held is None:
        return
    held.timer = None
    held.refill(system.now)
    if not held.open:  # it used more than a period's
        _watch(system, process, held)
        return
    held.since = system.now
    process.device.queue_of(process).withdraw(process)  # its place there is another
    stale(system, process)

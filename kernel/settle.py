"""The one place that decides which state a process is in, from the facts; and preemption, which takes all pages of one.

Only reconciling (core.py) and planning, which is its last part, call `settle`; everybody else marks a process as stale.
"""

from __future__ import annotations

from llmasos.drivers.protocol import Move
from llmasos.kernel.marks import dirty, freed, stale, want
from llmasos.kernel.objects.device import UP
from llmasos.kernel.objects.image import EVICTED, RESIDENT, Image
from llmasos.kernel.objects.process import LLMProcess, Process, Program
from llmasos.kernel.state import System
from llmasos.syscalls.records import State, WaitFor


def settle(system: System, process: Process) -> None:
    """Put a process that is not in a step into the state its facts ask for."""
    if process.is_zombie():
        return
    if isinstance(process, Program):  # it is not back yet, waits for a child, or simply has not called
        here = WaitFor.CHILD if process.ended else WaitFor.INPUT
        process.enter(State.BLOCKED, here if process.grace is None else WaitFor.RETURN, system.now)
    if not isinstance(process, LLMProcess):
        return
    if process.running:
        process.count_load()
        return
    device, image, queued = process.device, process.image, process.ticket > 0
    state, wait = _state(process)
    if wait not in (WaitFor.PAGEIN, WaitFor.QUOTA):
        unthrottle(process)
        if image is not None:
            image.starved.pop(process.pid, None)
    if state is State.STOPPED and image is not None and image.swap.total and process.table.frames:
        take_pages(system, process)  # at once, so that others need not wait for it when they want them
    if state is State.READY:
        slept = process.state not in (State.READY, State.RUNNING) and process.wait not in (WaitFor.PAGEIN, WaitFor.QUOTA)
        process.enter(state, wait, system.now)
        if process.reserve is not None and not queued:
            (process.reserve.woke if slept else process.reserve.refill)(system.now)
        if not queued:
            device.queue_of(process).put(process, woke=slept)
        dirty(system, device)
    else:
        process.enter(state, wait, system.now)
        device.queue_of(process).withdraw(process)
    note_fault(system, process)


def settle_stale(system: System) -> None:
    """Settle all processes that are marked, in the order in which they were."""
    while system.stale:
        settle(system, system.stale.popitem(last=False)[1])


def _state(process: LLMProcess) -> tuple[State, WaitFor]:
    """The state that the facts of a process ask for, and what it waits for in it."""
    image = process.image
    if process.stopped:
        return State.STOPPED, WaitFor.NONE
    if process.device.state != UP:
        return State.BLOCKED, WaitFor.DEVICE
    if image is None:
        return State.BLOCKED, WaitFor.WEIGHTS
    if process.pid in image.starved:
        return State.BLOCKED, WaitFor.PAGEIN if process.over_limit is None else WaitFor.QUOTA
    if not process.todo:
        return State.BLOCKED, WaitFor.INPUT
    if process.throttled_by is not None:
        return State.BLOCKED, WaitFor.QUOTA
    if image.state != RESIDENT:
        return State.BLOCKED, WaitFor.WEIGHTS
    return State.READY, WaitFor.NONE


def unthrottle(process: LLMProcess) -> None:
    """Its control group throttles it no longer."""
    if process.throttled_by is not None:
        process.throttled_by.line.pop(process.pid, None)
        process.throttled_by = None


def note_fault(system: System, process: LLMProcess) -> None:
    """Record a fault if a process, which has a new state, wants to run and its weights are evicted."""
    image = process.image
    if image is None or image.state != EVICTED or process.pid not in image.active:
        return
    if image.held and not image.faulted:
        image.faulted = True
        image.faults += 1
        system.counters["faults"] += 1
        system.emit("mem.fault", process.pid, process.device.name, image.size, image.name)
    want(system, process.device, image)


def take_pages(system: System, victim: LLMProcess) -> None:
    """Preempt: drop all pages of a process that is not in a step. Its token log brings them back."""
    image = victim.mapped
    pages = len(victim.table.frames)
    if victim.todo == 0:
        victim.ahead = False  # it sleeps on; its pages come back when it is fed, truncated or decoded
    moved = _move_out(system, victim, image)
    image.cut(victim, 0)
    freed(system)
    victim.quantum_used, victim.turn = 0, system.now
    victim.taken = True
    victim.preempted = victim.state in (State.READY, State.BLOCKED) and victim.todo > 0
    victim.account.preemptions += 1
    system.counters["preemptions"] += 1
    detail = f"{moved} moved out" if moved else ""
    system.emit("mem.preempt", victim.pid, victim.device.name, pages, detail)


def _move_out(system: System, victim: LLMProcess, image: Image) -> int:
    """Have the next step move as many of a process's pages as it can to a lower tier, if that pays; returns how many."""
    if not image.swap.total or not image.swap_cost.pays:
        return 0
    if image.swap.free < len(victim.table.frames):  # copies of what has frames can be made again
        for holder in image.holders.values():
            if holder is not victim and not holder.running and holder.table.kept:
                holder.table.trim(image.swap, 0)
                # The ready may be planned just now, and find out by that.
                if holder.state is State.BLOCKED:
                    stale(system, holder)
    moves = victim.table.move_out(image.pool, image.swap)
    device = victim.device
    device.outs += [Move(image.id, victim.pid, frame, slot.tier, slot.number) for frame, slot in moves]
    dirty(system, device)
    return len(moves)

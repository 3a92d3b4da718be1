"""The plan of a step: which processes, how many tokens of each, in which frames.

There is no prefill/decode split: each chosen process has tokens not yet computed. The run queue gives the processes in
order of class and key. One that needs a single token gets it; prompts share the rest of the step's token budget in order,
so a long prompt takes one slot of the batch and never the others' tokens. Beside processes that need one token, prompts
get at most `stream_tokens` together, because the former wait for the whole step. Prompts and others get frames in the
order of class and key: from the pool, then from processes that sleep, then from weaker ones (preemption). A process that
can have none waits as BLOCKED(pagein).

Planning costs O(chosen): nothing here walks the process table or the queue, except the search for a victim among the
holders of pages, when memory is short.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import msgspec

from llmasos.drivers.protocol import Copy, Move, Run, Sample
from llmasos.kernel.clock import nanoseconds
from llmasos.kernel.enforce import hold_back
from llmasos.kernel.marks import stale
from llmasos.kernel.objects.device import Device
from llmasos.kernel.objects.image import Image
from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.reclaim import grown, make_room, moves_pay
from llmasos.kernel.sched.run_queue import claim, rank
from llmasos.kernel.settle import settle
from llmasos.kernel.state import System
from llmasos.syscalls.records import State, WaitFor

_AGED_EVERY = 4  # at most every fourth step begins with a process that has waited too long for a stronger class
_WOKEN = 8  # processes waiting for frames that are tried again per step


@dataclass(slots=True)
class Plan:
    runs: list[Run]
    copies: list[Copy]
    ins: list[Move]
    processes: list[LLMProcess]
    tokens: int
    passed: list[LLMProcess]


def plan_step(system: System, device: Device) -> Plan:
    """Choose and prepare the next step; it has no runs if nobody can run. Chosen processes are marked (`running` > 0)."""
    if device.queue.idle and device.suspect is None and not any(image.starved for image in device.images.values()):
        return Plan([], [], [], [], 0, [])  # as after each call that ends or feeds a process that sleeps
    _wake_starved(system, device)
    plan = _fill(system, device, desperate=False)
    while not plan.runs and device.queue:  # the first processes found no frames; the next may need none
        plan = _fill(system, device, desperate=False)
    while not plan.runs and (first := _first_claim(device, system.config.quantum)) is not None:
        # All that want to run wait for frames that others hold that wait too: one of them must take what it needs.
        image = first.mapped
        del image.starved[first.pid]
        image.drop_imports(device.part)
        settle(system, first)
        plan = _fill(system, device, desperate=True)
        able = plan.runs or first.pid not in image.starved or first.over_limit is not None
        assert able, "the first claim can take every frame"
    if not plan.runs:
        return plan
    _allow_guesses(device, plan)
    waiting = bool(device.queue) or any(any(device.here(i.starved.values())) for i in device.images.values())
    if ranked := [process for process in plan.processes if process.ranked]:
        device.queue.policy.planned(min(ranked, key=lambda p: (rank(p.sched_class), p.key)), waiting)
    return plan


def _first_claim(device: Device, quantum: int) -> LLMProcess | None:
    found = (p for image in device.images.values() for p in device.here(image.starved.values()))
    starved = (p for p in found if p.over_limit is None)
    return min(starved, key=lambda p: claim(p, quantum), default=None)


def _wake_starved(system: System, device: Device) -> None:
    """Try processes again that wait for frames: several, when frames are available or a sleeper holds some; the one with
    the first claim, when another that waits holds some; and the one that has waited longest, when it has waited too long
    and another has had its turn, whose pages it then takes."""
    aging, quantum = nanoseconds(system.config.aging_seconds), system.config.quantum
    for image in device.images.values():
        starved, holders = image.starved, device.here(image.holders.values())
        waiting = device.here(starved.values())
        first = next(iter(waiting), None)
        if first is None:
            continue
        if image.pool.available_to(device.part) or not device.queue or any(p.sleeps for p in holders):
            woken = list(islice(waiting, _WOKEN))
        elif len(waiting) > 1 and moves_pay(image) and any(p.pid in starved for p in holders):
            woken = [min(waiting, key=lambda p: claim(p, quantum))]
        elif system.now - first.since >= aging and any(p.outran(quantum) for p in holders):
            woken = [first]
        else:
            continue
        for process in woken:
            del starved[process.pid]
            settle(system, process)


def _fill(system: System, device: Device, *, desperate: bool) -> Plan:
    aging = nanoseconds(system.config.aging_seconds)
    plan = Plan([], [], [], [], 0, [])
    left, slots = device.step_tokens, device.max_runs
    passed: list[LLMProcess] = []
    aged = None
    if device.queue.steps % _AGED_EVERY == 0:
        aged = _take_suspect(device) or device.queue.take_aged(system.now - aging)
    while slots and left:
        chosen: list[tuple[LLMProcess, Image, int]] = []
        alone = False
        while not alone and len(chosen) < min(slots, left) and (process := aged or device.queue.take()) is not None:
            aged = None
            if process.crashes and (plan.runs or chosen):
                # A suspect of a driver's death runs alone, so that the innocent are cleared.
                passed.append(process)
                if device.suspect is None and system.now - process.since >= aging:
                    device.suspect = process
                continue
            if hold_back(system, process):
                continue
            image = process.mapped
            gained = _reuse(process, image)
            if process.todo:
                chosen.append((process, image, gained))
                alone = process.crashes > 0
            else:  # the prefix cache had all tokens that were to be computed ahead
                _count_reused(process, gained)
                stale(system, process)
        if not chosen:
            break
        allotted = _allot(device, plan, [process for process, _, _ in chosen], left)
        for (process, image, gained), (tokens, pages) in zip(chosen, allotted, strict=True):
            preempted = pages and not process.table.frames  # by a process before it, just now
            if tokens and not preempted and _admit(system, process, image, tokens, plan, desperate):
                _count_reused(process, gained)
                left -= process.running
                slots = 0 if alone else slots - 1
                continue
            # It had no pages before and cannot run, so it holds back none from others.
            if gained and gained == process.table.cached:
                image.cut(process, 0)
            if not tokens:
                slots -= 1  # processes behind it do not get the place that it could not use
                plan.passed.append(process)
            if not tokens or preempted:
                passed.append(process)
    for process in passed:
        device.queue.put(process)
    return plan


def _take_suspect(device: Device) -> LLMProcess | None:
    """Take the suspect that was passed over for too long off the queue, if it still wants this device. Meanwhile it may
    have moved to another device, and be queued there."""
    suspect = device.suspect
    if suspect is not None and device.queue_of(suspect) is not device.queue:
        return None  # it is not its turn
    device.suspect = None
    if suspect is None or suspect.ticket <= 0 or suspect.device is not device:
        return None
    device.queue_of(suspect).withdraw(suspect)
    return suspect


def _reuse(process: LLMProcess, image: Image) -> int:
    """Map the frames of its context that others have computed already; returns the number of tokens."""
    if process.table.cached >= len(process.log) - 1:
        return 0
    gained = process.table.reuse(image.pool, process.log)
    if gained:
        image.hold(process)
    return gained


def _count_reused(process: LLMProcess, gained: int) -> None:
    process.account.reused += gained
    process.device.reused += gained


def _allot(device: Device, plan: Plan, chosen: list[LLMProcess], left: int) -> list[tuple[int, bool]]:
    """For each chosen process: how many of the `left` tokens it gets beside what is planned already (0 for a prompt if
    those before it take them all), and whether it has pages. The caller chooses at most `left` processes."""
    allotted = []
    todos = [process.todo for process in chosen]
    streams = todos.count(1)
    planned = sum(len(run.tokens) == 1 for run in plan.runs)
    spare = left - streams
    if streams or planned:
        spare = max(0, min(spare, device.stream_tokens - (plan.tokens - planned)))
    for process, todo in zip(chosen, todos, strict=True):
        tokens = 1 if todo == 1 else min(todo, spare)
        if todo > 1:
            spare -= tokens
        allotted.append((tokens, bool(process.table.frames)))
    return allotted


def _admit(system: System, process: LLMProcess, image: Image, tokens: int, plan: Plan, desperate: bool) -> bool:
    """Give the process frames for up to `tokens` tokens and for those that are moved in for it, and enter its run in the
    plan; or leave it BLOCKED(pagein)."""
    table, pool = process.table, image.pool
    tokens = min(tokens, max(1, process.group.tokens_left()))
    process.running = tokens  # from here on it is never a victim
    back = process.returning
    tokens = make_room(system, image, process, tokens, back, desperate and not plan.runs)
    if tokens <= 0:
        process.running = 0
        image.starved[process.pid] = process
        process.enter(State.BLOCKED, WaitFor.PAGEIN if process.over_limit is None else WaitFor.QUOTA, system.now)
        return False
    frames = len(table.frames)
    process.running = tokens
    process.over_limit = None
    if back:
        process.swapped_in = back
        moves = table.move_in(pool, back)
        plan.ins += [Move(image.id, process.pid, frame, slot.tier, slot.number) for frame, slot in moves]
    copied = table.extend(pool, tokens)
    if copied is not None:
        plan.copies.append(Copy(image.id, *copied))
    image.hold(process)
    if len(table.frames) > frames:
        grown(system, image, process)
    if process.preempted:
        process.preempted = False
        process.account.refaults += 1
        process.device.refaults += 1
    plan.runs.append(_run(image, process, tokens))
    plan.processes.append(process)
    plan.tokens += tokens
    process.enter(State.RUNNING, WaitFor.NONE, system.now)
    return True


def _allow_guesses(device: Device, plan: Plan) -> None:
    """Give the spare rows of a small step to runs that decode, as far as there are free frames (Run.ahead)."""
    spare = device.guess_rows - plan.tokens
    if spare <= 0:
        return
    able = [i for i, run in enumerate(plan.runs) if run.sample is not None and _may_guess(plan.processes[i])]
    for waiting, i in zip(range(len(able), 0, -1), able, strict=True):
        run, process = plan.runs[i], plan.processes[i]
        pool, table = device.images[run.image].pool, process.table
        room = min(table.room(pool), table.room_of_group(pool)[0])
        ahead = min(spare // waiting, process.guessable, room - process.running)
        if ahead <= 0:
            continue
        table.extend(pool, process.running + ahead)
        blocks = run.blocks + table.frames[table.sent :]
        plan.runs[i] = msgspec.structs.replace(run, blocks=blocks, ahead=ahead)
        table.sent = len(table.frames)
        process.guessing = ahead
        spare -= ahead


def _may_guess(process: LLMProcess) -> bool:
    return process.image is not None and process.image.guesses and process.guessable > 0


def _run(image: Image, process: LLMProcess, tokens: int) -> Run:
    """The run as the driver gets it: only what it has not been told before."""
    table, log, decoding = process.table, process.log, process.decoding
    position = table.cached
    end = position + tokens
    sample: Sample | None = None
    if decoding is not None and end == len(log):
        sample = Sample(process.traits.sampler, end, decoding.append, decoding.logprobs)
    history = log[:position].tolist() if process.driver_log < position else None
    run = Run(
        ctx=process.pid,
        image=image.id,
        position=position,
        tokens=log[position:end].tolist(),
        keep=table.sent,
        blocks=table.frames[table.sent :],
        sample=sample,
        history=history,
    )
    table.sent = len(table.frames)
    process.driver_log = end
    return run

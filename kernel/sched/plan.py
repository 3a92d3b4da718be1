"""The plan of a step: which processes, how many tokens of each, in which frames.

There is no prefill/decode split: each chosen process has tokens not yet computed. The run queue gives the processes in
order of class and key; one that needs a single token gets it, prompts share what is left of the step's token budget in
order, so a long prompt takes one slot of the batch and never the others' tokens. Beside processes that need one token
prompts get no more than `stream_tokens`: those wait for the whole step. Frames are given in the order of class and key,
to prompts and to the others: from the pool, then from processes that sleep, then from weaker ones (preemption); a process
that can have none waits as BLOCKED(pagein).

Planning costs O(chosen): nothing here walks the process table or the queue, except the search for a victim among the
holders of pages, when memory is short.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import msgspec

from drivers.protocol import Copy, Move, Run, Sample
from kernel.groups.group import Group
from kernel.objects.device import Device
from kernel.objects.image import Image
from kernel.objects.process import LLMProcess
from kernel.sched.run_queue import rank
from syscalls.records import State, WaitFor

_AGED_EVERY = (
    4  # at most every fourth step begins with a process that has waited too long for a stronger class
)
_LOOKED_AT = (
    64  # sleepers, the longest idle first, among which those of groups above `kv_high` are looked for
)
_WOKEN = 8  # processes waiting for frames that are tried again per step


class Pager(Protocol):
    """What the planner asks of the core."""

    def take_pages(self, victim: LLMProcess, now: float) -> None:
        """Drop all pages of a process that is not in a step."""

    def settle(self, process: LLMProcess, now: float) -> None:
        """Put a process in the state its facts ask for."""

    def hold_back(self, process: LLMProcess, now: float) -> bool:
        """Whether a process must wait for its control group; then it does."""

    def grew(self, process: LLMProcess, now: float) -> None:
        """A process has more frames than before."""

    def group_victim(self, group: Group, wanting: LLMProcess, now: float) -> LLMProcess | None:
        """Whose pages to take when a process cannot grow for its group's limit; None: it waits."""


@dataclass(slots=True)
class Plan:
    runs: list[Run]
    copies: list[Copy]
    ins: list[Move]
    processes: list[LLMProcess]
    tokens: int


def plan_step(device: Device, pager: Pager, now: float, aging: float, quantum: int) -> Plan | None:
    """Choose and prepare the next step, or None if nobody can run. Chosen processes are marked (`running` > 0)."""
    _wake_starved(device, pager, now, aging, quantum)
    plan = _fill(device, pager, now, aging, quantum, desperate=False)
    while not plan.runs and device.queue:  # the first ones found no frames; the next may need none
        plan = _fill(device, pager, now, aging, quantum, desperate=False)
    while not plan.runs and (first := _first_claim(device, quantum)) is not None:
        # Everybody who wants to run waits for frames that others who also wait hold: one must take what it needs.
        assert first.image is not None
        del first.image.starved[first.pid]
        first.image.take_back()
        pager.settle(first, now)
        plan = _fill(device, pager, now, aging, quantum, desperate=True)
        able = plan.runs or first.pid not in first.image.starved or first.short is not None
        assert able, "the first claim can take every frame"
    if not plan.runs:
        return None
    _allow_guesses(device, plan)
    waiting = bool(device.queue) or any(image.starved for image in device.images.values())
    strongest = min(plan.processes, key=lambda p: (rank(p.sched_class), p.key))
    device.queue.policy.planned(strongest, waiting)
    return plan


def claim(process: LLMProcess, quantum: int) -> tuple[int, bool, float, int]:
    """The order of claims to frames when nobody can run otherwise; the smallest is the first.

    It is not the order of the run queue: that changes with every token, and two processes that do not fit together
    would take the pages from each other for ever. Who got pages keeps the claim until it is a quantum of new tokens
    further; who lost them goes to the end of the line.
    """
    return rank(process.sched_class), process.outran(quantum), process.turn, process.pid


def _first_claim(device: Device, quantum: int) -> LLMProcess | None:
    starved = (p for image in device.images.values() for p in image.starved.values() if p.short is None)
    return min(starved, key=lambda p: claim(p, quantum), default=None)


def _wake_starved(device: Device, pager: Pager, now: float, aging: float, quantum: int) -> None:
    """Who waits for frames is tried again when there are some, or a sleeper has some; the first claim when another who
    waits has some; and who has waited long for one that has had its turn: then it takes that one's pages."""
    for image in device.images.values():
        starved, holders = image.starved, image.holders.values()
        if not starved:
            continue
        first = next(iter(starved.values()))
        if image.pool.available or not device.queue or any(p.sleeps for p in holders):
            woken = list(starved.values())[:_WOKEN]
        elif len(starved) > 1 and _moves(image) and any(p.pid in starved for p in holders):
            woken = [min(starved.values(), key=lambda p: claim(p, quantum))]
        elif now - first.since >= aging and any(p.outran(quantum) for p in holders):
            woken = [first]
        else:
            continue
        for process in woken:
            del starved[process.pid]
            pager.settle(process, now)


def _moves(image: Image) -> bool:
    """Whether the pages of a process that loses them come back cheaply."""
    return image.swap.total > 0 and image.swap_cost.pays


def _fill(device: Device, pager: Pager, now: float, aging: float, quantum: int, *, desperate: bool) -> Plan:
    plan = Plan([], [], [], [], 0)
    left, slots = device.step_tokens, device.max_runs
    passed: list[LLMProcess] = []
    aged = None
    if device.steps % _AGED_EVERY == 0:
        aged = _take_suspect(device) or device.queue.take_aged(now - aging)
    while slots and left:
        chosen: list[tuple[LLMProcess, int]] = []
        while len(chosen) < min(slots, left) and (process := aged or device.queue.take()) is not None:
            aged = None
            if process.crashes:  # a suspect of a driver's death runs alone, so that the innocent are cleared
                if plan.runs or chosen:
                    passed.append(process)
                    if device.suspect is None and now - process.since >= aging:
                        device.suspect = process
                    continue
                slots = 1
            if pager.hold_back(process, now):
                continue
            gained = _reuse(process)
            if process.todo:
                chosen.append((process, gained))
            else:  # the prefix cache had everything that was to be computed ahead
                _count_reused(device, process, gained)
                pager.settle(process, now)
        if not chosen:
            break
        allotted = _allot(device, plan, [process for process, _ in chosen], left)
        for (process, gained), (tokens, pages) in zip(chosen, allotted, strict=True):
            robbed = pages and not process.table.frames  # by one before it, just now
            if (
                tokens
                and not robbed
                and _admit(device, process, tokens, plan, pager, now, quantum, desperate)
            ):
                _count_reused(device, process, gained)
                left -= process.running
                slots -= 1
                continue
            if (
                gained and gained == process.table.cached
            ):  # who had nothing and cannot run keeps nothing from others
                _give_back(process)
            if not tokens:
                slots -= 1  # nobody behind it gets what it could not
            if not tokens or robbed:
                passed.append(process)
    for process in passed:
        device.queue.put(process)
    return plan


def _take_suspect(device: Device) -> LLMProcess | None:
    """The suspect that was passed over for too long, if it still wants the device (it may have moved to another one
    meanwhile, and be queued there); it is no longer queued."""
    suspect, device.suspect = device.suspect, None
    if suspect is None or not suspect.ticket or suspect.device is not device:
        return None
    device.queue.withdraw(suspect)
    return suspect


def _reuse(process: LLMProcess) -> int:
    """Map what others have computed already of its context; returns how many tokens."""
    image, table = process.image, process.table
    assert image is not None
    if table.cached >= len(process.log) - 1:
        return 0
    gained = table.reuse(image.pool, process.log)
    if gained:
        image.hold(process)
    return gained


def _give_back(process: LLMProcess) -> None:
    """Map nothing any more; what has a name stays cached."""
    image = process.image
    assert image is not None
    process.table.cut(image.pool, 0)
    image.let_go(process)


def _count_reused(device: Device, process: LLMProcess, gained: int) -> None:
    process.account.reused += gained
    device.reused += gained


def _allot(device: Device, plan: Plan, chosen: list[LLMProcess], left: int) -> list[tuple[int, bool]]:
    """How many of `left` tokens each gets beside what is planned already, none if it is a prompt and those before it take
    them all; and whether it has pages. No more are chosen than there are tokens."""
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


def _admit(
    device: Device,
    process: LLMProcess,
    tokens: int,
    plan: Plan,
    pager: Pager,
    now: float,
    quantum: int,
    desperate: bool,
) -> bool:
    """Give the process frames for up to `tokens`, and for what is moved in for it, and enter its run, or leave it
    BLOCKED(pagein)."""
    image, table = process.image, process.table
    assert image is not None
    pool = image.pool
    tokens = min(tokens, max(1, process.group.tokens_left()))
    process.running = tokens  # from here on it is nobody's victim
    back = process.returning
    tokens = _make_room(image, process, tokens, back, pager, now, quantum, desperate and not plan.runs)
    if tokens <= 0:
        process.running = 0
        image.starved[process.pid] = process
        process.enter(State.BLOCKED, WaitFor.PAGEIN if process.short is None else WaitFor.QUOTA, now)
        return False
    frames = len(table.frames)
    process.running = tokens
    process.short = None
    if back:
        process.returned = back
        moves = table.move_in(pool, back)
        plan.ins += [Move(image.id, process.pid, frame, slot.tier, slot.number) for frame, slot in moves]
    copied = table.extend(pool, tokens)
    if copied is not None:
        plan.copies.append(Copy(image.id, *copied))
    image.hold(process)
    if len(table.frames) > frames:
        pager.grew(process, now)
    if process.robbed:
        process.robbed = False
        process.account.refaults += 1
        device.refaults += 1
    plan.runs.append(_run(image, process, tokens))
    plan.processes.append(process)
    plan.tokens += tokens
    process.enter(State.RUNNING, WaitFor.NONE, now)
    return True


def _make_room(
    image: Image,
    process: LLMProcess,
    tokens: int,
    back: int,
    pager: Pager,
    now: float,
    quantum: int,
    desperate: bool,
) -> int:
    """Take pages from others until there is room for `tokens` beside the `back` that are moved in; returns for how many
    there is. If for none, `short` says whose limit that is."""
    pool, table = image.pool, process.table
    while True:
        room = table.room(pool) - back
        own, group = table.room_of_group(pool)
        own -= back
        if room >= tokens <= own:
            return tokens
        if group is not None and own < tokens:
            victim, process.short = pager.group_victim(group, process, now), group
        else:
            victim, process.short = find_victim(image, process, quantum, desperate, now), None
        if victim is None:
            return min(tokens, room, own)
        pager.take_pages(victim, now)


def _allow_guesses(device: Device, plan: Plan) -> None:
    """Rows that a small step has to spare go to runs that decode, as far as there are free frames (Run.ahead)."""
    spare = device.guess_rows - plan.tokens
    if spare <= 0:
        return
    able = [i for i, run in enumerate(plan.runs) if run.sample is not None and _may_guess(plan.processes[i])]
    for waiting, i in zip(range(len(able), 0, -1), able, strict=True):
        run, process = plan.runs[i], plan.processes[i]
        assert process.image is not None
        pool, table = process.image.pool, process.table
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
        sample = Sample(process.sampler, end, decoding.append, decoding.logprobs)
    history = log[:position] if process.driver_log < position else None
    run = Run(
        ctx=process.pid,
        image=image.id,
        position=position,
        tokens=log[position:end],
        keep=table.sent,
        blocks=table.frames[table.sent :],
        sample=sample,
        history=history,
    )
    table.sent = len(table.frames)
    process.driver_log = end
    return run


def find_victim(
    image: Image, wanting: LLMProcess, quantum: int, desperate: bool, now: float
) -> LLMProcess | None:
    """Whose pages to take: a sleeper's, one of a group above its `kv_high` first, by the image's policy; else the
    weakest process of a weaker class; else, in the same class, one behind in the queue whose quantum is used up. Never
    on an arrival tie: that ping-pongs.

    Where moving pages pays, before any of these that could run, one that waits for frames itself: the last claim gives
    way to an earlier one. Otherwise many would hold what they cannot use, each for want of one frame more.

    `desperate`: nobody at all could run otherwise, so the last claim gives way to an earlier one wherever it is.
    """
    own: tuple[float, ...] = (
        claim(wanting, quantum) if desperate else (rank(wanting.sched_class), wanting.key)
    )
    worst: LLMProcess | None = None
    worst_order: tuple[float, ...] = (-1,)
    over = [p for p in islice(_sleepers(image, wanting), _LOOKED_AT) if p.group.over_high() is not None]
    sleeper = image.victims.choose(over or _sleepers(image, wanting), now)
    if sleeper is not None:
        return sleeper
    stuck: LLMProcess | None = None
    last_claim = claim(wanting, quantum)
    cheap = _moves(image)
    for holder in _others(image, wanting):
        order: tuple[float, ...] = (
            claim(holder, quantum) if desperate else (rank(holder.sched_class), holder.key)
        )
        yields = order > own and (desperate or order[0] > own[0] or holder.outran(quantum))
        if desperate and holder.wait is WaitFor.QUOTA:  # whatever its claim, it cannot run
            return holder
        if cheap and holder.pid in image.starved and claim(holder, quantum) > last_claim:
            stuck, last_claim = holder, claim(holder, quantum)
        if yields and order > worst_order:
            worst, worst_order = holder, order
    return stuck or worst


def _sleepers(image: Image, wanting: LLMProcess) -> Iterator[LLMProcess]:
    return (holder for holder in _others(image, wanting) if holder.sleeps)


def _others(image: Image, wanting: LLMProcess) -> Iterator[LLMProcess]:
    return (holder for holder in image.holders.values() if not holder.running and holder is not wanting)

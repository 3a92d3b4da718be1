"""Which process loses its pages when memory is short: on a device, to one that grows; in a control group, to a limit.

In order: what is free or cached, then processes that sleep, then weaker ones. settle.py takes the pages of a victim
(`take_pages`); enforce.py acts on the other limits of groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from llmasos.kernel.clock import SECOND
from llmasos.kernel.enforce import at_limit, holders, pause
from llmasos.kernel.groups.group import Group
from llmasos.kernel.marks import freed
from llmasos.kernel.objects.image import Image
from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.sched.run_queue import claim, rank
from llmasos.kernel.settle import take_pages
from llmasos.kernel.state import System
from llmasos.syscalls.records import KvAction, WaitFor

_UNTIED_PAUSE = SECOND
_LOOKED_AT = 64  # sleepers, the longest idle first, among which those of groups above `kv_high` are looked for


def make_room(system: System, image: Image, process: LLMProcess, tokens: int, back: int, desperate: bool) -> int:
    """Take pages from others until there is room for `tokens` beside the `back` that are moved in. Returns the number of
    tokens that there is room for; if 0, the process's `over_limit` names the group whose limit that is."""
    pool, table = image.pool, process.table
    while True:
        room = table.room(pool) - back
        own, group = table.room_of_group(pool)
        own -= back
        if room >= tokens <= own:
            return tokens
        if group is not None and own < tokens:
            victim, process.over_limit = _group_victim(system, group, image, process), group
        else:
            victim, process.over_limit = (_victim(image, process, system.config.quantum, desperate, system.now), None)
        if victim is None:
            return min(tokens, room, own)
        take_pages(system, victim)


def moves_pay(image: Image) -> bool:
    """Whether the pages of a process that loses them come back cheaply."""
    return image.swap.total > 0 and image.swap_cost.pays


def _victim(image: Image, wanting: LLMProcess, quantum: int, desperate: bool, now: int) -> LLMProcess | None:
    """The process to take pages from: a sleeper, one of a group above its `kv_high` first, by the image's policy; else
    the weakest process of a weaker class; else, in the same class, one behind in the queue whose quantum is used up.
    Never on an arrival tie: that ping-pongs.

    Where moving pages pays, a process that waits for frames itself yields before any of these that could run: the last
    claim gives way to an earlier one. Otherwise many would hold frames that they cannot use, each one frame short.

    `desperate`: no process could run otherwise, so the last claim gives way to an earlier one wherever it is.
    """
    own: tuple[int, ...] = claim(wanting, quantum) if desperate else (rank(wanting.sched_class), wanting.key)
    worst: LLMProcess | None = None
    worst_order: tuple[int, ...] = (-1,)
    over = [p for p in islice(_sleepers(image, wanting), _LOOKED_AT) if p.group.over_high() is not None]
    sleeper = image.victims.choose(over or _sleepers(image, wanting), now)
    if sleeper is not None:
        return sleeper
    stuck: LLMProcess | None = None
    last_claim = claim(wanting, quantum)
    cheap = moves_pay(image)
    for holder in _others(image, wanting):
        order: tuple[int, ...] = claim(holder, quantum) if desperate else (rank(holder.sched_class), holder.key)
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
    """Of the same part, if there is a partition: it gets no frames of another."""
    part = wanting.table.part
    others = (holder for holder in image.holders.values() if not holder.running and holder is not wanting)
    return (holder for holder in others if holder.table.part == part)


# --- control groups ---


def grown(system: System, image: Image, process: LLMProcess) -> None:
    """A process has grown. If that took a group above its `kv_high`, its sleepers lose their pages; if it is above even
    then, the process makes a pause."""
    high = process.group.over_high()
    if high is None:
        return
    limit = high.settings.kv_high
    high.events["kv_high"] += 1
    while high.kv > limit and (sleeper := _sleeper_of(system, high, image, process)) is not None:
        take_pages(system, sleeper)
    if high.kv > limit and process.table.cached >= process.high_water:  # rebuilding what it had is no growth
        pause(system, process, high)


def _group_victim(system: System, group: Group, image: Image, process: LLMProcess) -> LLMProcess | None:
    """The process that a group at its `kv_max` takes pages from for one that is to grow, if it is to spill; or None."""
    if group.settings.kv_action is KvAction.SPILL:
        if (sleeper := _sleeper_of(system, group, image, process)) is not None:
            return sleeper
        quantum = system.config.quantum
        others = [p for p in holders(system, group) if p is not process and not p.running]
        last = max(others, key=lambda p: claim(p, quantum), default=None)
        if last is not None and claim(last, quantum) > claim(process, quantum):
            return last
    at_limit(system, process, group)
    if group.settings.kv_action is KvAction.WAIT:
        system.timers.at(system.now, _untie, group)
    return None


def _untie(system: System, group: Group) -> None:
    """If all that hold pages of a group wait for each other at its limit, nobody will ever release any: the last claim
    gives way, and pauses, so that the others get what it had. One that sleeps may be told to release its pages: as long
    as there is one, all wait."""
    images = [image for device in system.devices.values() for image in device.images.values()]
    stuck = [p for image in images for p in image.starved.values() if p.over_limit and p.over_limit.below(group)]
    if len(stuck) < 2 or any(holder not in stuck for holder in holders(system, group)):
        return
    if any(_may_grow(p) for p in stuck):
        return  # one has given way just now
    victim = max(stuck, key=lambda p: claim(p, system.config.quantum))
    if not victim.table.frames and group.kv_room()[0] < victim.mapped.frame_bytes:
        return  # the others have more than the limit, which was lowered, allows even one
    group.events["kv_untied"] += 1
    if group.events["kv_untied"] == 1:
        text = f"the processes that hold KV of group {group.path} wait for each other at its kv_max; the last one"
        system.log("warning", f"{text}, {victim.pid} ({victim.name}), gives its pages up and computes them again", victim)
    victim.pause = system.now + _UNTIED_PAUSE
    if victim.table.frames:
        take_pages(system, victim)
    freed(system)


def _may_grow(process: LLMProcess) -> bool:
    """Whether there are frames for a token more of it: free ones, and in its group."""
    pool, table = process.mapped.pool, process.table
    return min(table.room(pool), table.room_of_group(pool)[0]) > process.returning


def sleepers(system: System, group: Group) -> list[LLMProcess]:
    """Those of a subtree that have pages and want nothing, the longest asleep first."""
    return sorted((p for p in holders(system, group) if p.sleeps), key=lambda p: p.since)


def _sleeper_of(system: System, group: Group, image: Image, wanting: LLMProcess) -> LLMProcess | None:
    """The sleeper of a group that loses its pages to a process that runs `image`: the one that the image's policy chooses
    among its own, else the one longest asleep."""
    asleep = [p for p in sleepers(system, group) if p is not wanting]
    alike = image.victims.choose((p for p in asleep if p.image is image), system.now)
    return alike or next(iter(asleep), None)

"""What happens to processes whose control group has reached a limit: held back, slowed down, failed or killed.

The ladder when memory is short is, in order: cached prefixes give way (FramePool.alloc), models without processes are
evicted (kernel/models/loading.py), sleepers lose their pages to lower tiers or altogether, those of groups above
`kv_high` first (kernel/reclaim.py), growth above `kv_high` is slowed down, and at `kv_max` what the group's
`kv_action` says is done.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmasos.kernel.clock import SECOND
from llmasos.kernel.groups.group import Group
from llmasos.kernel.life import exit_process, fail_decoding, interrupt_decoding
from llmasos.kernel.marks import freed, stale
from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.settle import take_pages
from llmasos.kernel.state import System
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import Finish, KvAction, Signal, State, WaitFor

_LONGEST_PAUSE = 2 * SECOND  # as in Linux's mem_cgroup_handle_over_high


def hold_back(system: System, process: LLMProcess) -> bool:
    """Whether a process that was to run must wait for its group. Then it is BLOCKED(quota) until it may go on."""
    group = process.group
    if process.pause > system.now:
        _throttle(system, process, group, "a pause")
        system.timers.at(process.pause, _go_on, process)
    elif (narrow := process.oversize) is not None and narrow.settings.kv_action in (KvAction.SPILL, KvAction.WAIT):
        _throttle(system, process, narrow, "kv_max")
        narrow.line[process.pid] = None
        system.timers.at(system.now, _hold_out, (process, narrow))
    elif (spent := group.exhausted()) is not None:
        _throttle(system, process, spent, "tokens_total")
        spent.line[process.pid] = None
        if process.decoding is not None:
            system.timers.at(system.now, _end_spent, process)
    elif (slow := group.obstacle(system.now)) is not None:
        _throttle(system, process, slow, "tokens_max")
        slow.line[process.pid] = None
        if slow.timer is None:
            slow.timer = system.timers.at(system.now + slow.wait(system.now), _serve, slow)
    else:
        return False
    return True


def _throttle(system: System, process: LLMProcess, group: Group, why: str) -> None:
    process.throttled_by = group
    process.enter(State.BLOCKED, WaitFor.QUOTA, system.now)
    group.events["held"] += 1
    if system.trace.on:
        system.emit("group.held", process.pid, process.device.name, detail=f"{group.path}: {why}")


def _go_on(system: System, process: LLMProcess) -> None:
    if process.throttled_by is not None and process.pause <= system.now and process.pid not in process.throttled_by.line:
        process.throttled_by = None
        stale(system, process)


def _hold_out(system: System, held: tuple[LLMProcess, Group]) -> None:
    """A process cannot go on until a limit is raised, lowered as it was below what it has. Say so, and let others of the
    group have its pages, if the group is to spill."""
    process, group = held
    if process.throttled_by is not group:
        return
    if process.over_limit is not group:
        process.over_limit = group
        group.events["kv_max"] += 1
        most = process.mapped.tokens_in(group.settings.kv_max)
        system.log(
            "warning",
            f"process {process.pid} waits: its context of {len(process.log)} tokens is longer than the {most} that "
            f"kv_max of group {group.path} allows now ({group.settings.kv_max:,} bytes); raise it, or compact it",
            process,
        )
    if group.settings.kv_action is KvAction.SPILL and process.table.frames:
        take_pages(system, process)


def _end_spent(system: System, process: LLMProcess) -> None:
    if process.group.exhausted() is not None:
        interrupt_decoding(system, process, Finish.BUDGET)


def _serve(system: System, group: Group) -> None:
    """Let as many processes go on as the rate allows tokens, and the next ones when these have used theirs."""
    group.timer = None
    if (left := group.wait(system.now)) > 0:
        group.timer = system.timers.at(system.now + left, _serve, group)
        return
    count = group.allowance(system.now)
    _release(system, group, count)
    if group.line and group.settings.tokens_max:
        group.timer = system.timers.at(system.now + group.time_for(count), _serve, group)


def _release(system: System, group: Group, count: int) -> None:
    for pid in list(group.line)[:count]:
        del group.line[pid]
        process = system.table.llm(pid)
        process.throttled_by = None
        stale(system, process)


def relax(system: System, group: Group) -> None:
    """The limits of a group have changed: processes that wait for one try again."""
    for one in system.groups.below(group):
        if one.timer is not None:
            one.timer.cancel()
            one.timer = None
        _release(system, one, len(one.line))
        for pid in list(one.members):
            if isinstance(process := system.table.find(pid), LLMProcess) and process.pause > system.now:
                process.pause = system.now
                _go_on(system, process)
    freed(system)


def pause(system: System, process: LLMProcess, high: Group) -> None:
    """Make a process that has grown pause: the longer, the further `high` is above its `kv_high`."""
    limit = high.settings.kv_high
    process.pause = system.now + _LONGEST_PAUSE * min(limit, high.kv - limit) // limit
    system.emit("mem.high", process.pid, process.device.name, high.kv - limit, high.path)


def at_limit(system: System, process: LLMProcess, group: Group) -> None:
    """A process cannot grow: its group has what `kv_max` allows, and no other process loses pages for it. It waits,
    unless the group's `kv_action` says otherwise; that is done once the step is planned."""
    action = group.settings.kv_action
    if process.over_limit is not group:
        group.events["kv_max"] += 1
        system.timers.at(system.now, _recharge, group)
    if action is KvAction.FAIL:
        system.timers.at(system.now, _fail, (process, group))
    elif action is KvAction.KILL:
        system.timers.at(system.now, _kill_largest, (process, group))


def _recharge(system: System, group: Group) -> None:
    """Charge frames that a group pays for, but that only processes of others still map, to those others."""
    moved = False
    for device in system.devices.values():
        for image in device.images.values():
            own: set[int] = set()
            foreign: dict[int, Group] = {}
            for holder in image.holders.values():
                if holder.group.below(group):
                    own.update(holder.table.frames)
                else:
                    foreign.update(dict.fromkeys(holder.table.frames, holder.group))
            for frame, payer in foreign.items():
                before = image.pool.payers[frame]
                if frame not in own and before is not None and before.below(group):
                    image.pool.charge(frame, payer)
                    moved = True
    if moved:
        freed(system)


def _fail(system: System, stuck: tuple[LLMProcess, Group]) -> None:
    process, group = stuck
    if process.over_limit is not group or process.wait is not WaitFor.QUOTA:
        return
    group.events["kv_fail"] += 1
    process.mapped.starved.pop(process.pid, None)
    process.over_limit = None
    reason = (
        f"process {process.pid} cannot grow: group {group.path} has {group.kv:,} bytes of KV, its kv_max is "
        f"{group.settings.kv_max:,}; end or truncate others of it, or raise that"
    )
    system.log("warning", reason, process)
    fail_decoding(system, process, reason, Errno.EDQUOT)


def _kill_largest(system: System, stuck: tuple[LLMProcess, Group]) -> None:
    process, group = stuck
    if process.over_limit is not group or process.wait is not WaitFor.QUOTA:
        return
    if group.kv + process.mapped.frame_bytes <= group.settings.kv_max:  # somebody has made room since
        freed(system)
        return
    members = list(holders(system, group))
    if any(p.dying is not None for p in members):
        return
    scores = sorted(((*_paid_for(p, group), -p.pid, p) for p in members), key=lambda s: s[:3], reverse=True)
    scores = [score for score in scores if score[1]]
    if not scores:
        return
    # A size of 0: all of it is shared, and the last process that maps it need not copy it any more.
    size, _, _, victim = scores[0]
    group.events["kv_kill"] += 1
    table = ", ".join(
        f"{p.pid} ({p.name}) {alone:,}" + (f" and {mapped - alone:,} shared" if mapped > alone else "")
        for alone, mapped, _, p in scores[:8]
    )
    system.log(
        "error",
        f"group {group.path} is at its kv_max of {group.settings.kv_max:,} bytes: killed process {victim.pid} "
        f"({victim.name}), the largest; bytes of KV by process: {table}",
    )
    system.emit("mem.kill", victim.pid, victim.device.name, size, group.path)
    reason = f"out of memory: it had the most KV of group {group.path}, which was at its kv_max"
    exit_process(system, victim, 128 + int(Signal.KILL), reason)


def holders(system: System, group: Group) -> Iterator[LLMProcess]:
    """The processes of a subtree that have pages."""
    for device in system.devices.values():
        for image in device.images.values():
            yield from (holder for holder in image.holders.values() if holder.group.below(group))


def _paid_for(process: LLMProcess, group: Group) -> tuple[int, int]:
    """Bytes that the group would pay less if the process were gone, and what it pays of all that the process maps."""
    image = process.image
    if image is None:
        return 0, 0
    pool, alone, mapped = image.pool, 0, 0
    for frame in process.table.frames:
        payer = pool.payers[frame]
        if payer is not None and payer.below(group):
            mapped += 1
            alone += pool.refs[frame] == 1
    return alone * image.frame_bytes, mapped * image.frame_bytes

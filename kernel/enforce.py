"""What happens to processes whose control group has reached a limit: held back, slowed down, failed or killed.

The ladder when memory is short is, in order: cached prefixes give way (FramePool.alloc), models without processes are
evicted (kernel/models/loading.py), sleepers lose their pages to lower tiers or altogether, those of groups above
`kv_high` first (kernel/sched/plan.py), growth above `kv_high` is slowed down, and at `kv_max` what the group's
`kv_action` says is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kernel.groups.group import Group
from kernel.life import exit_process, fail_decoding, interrupt_decoding
from kernel.objects.process import LLMProcess
from kernel.sched.plan import claim
from syscalls.errno import Errno
from syscalls.records import Finish, KvAction, Signal, State, WaitFor

if TYPE_CHECKING:
    from kernel.core import Kernel

_LONGEST_PAUSE = 2.0  # seconds, as in Linux's mem_cgroup_handle_over_high


def hold_back(kernel: Kernel, process: LLMProcess, now: float) -> bool:
    """Whether a process that was to run must wait for its group. Then it is BLOCKED(quota) until it may go on."""
    group = process.group
    if process.pause > now:
        _hold(kernel, process, group, "a pause above kv_high", now)
        kernel.timers.at(process.pause, lambda then: _go_on(kernel, process, then))
    elif (spent := group.exhausted()) is not None:
        _hold(kernel, process, spent, "tokens_total", now)
        spent.line[process.pid] = process
        if process.decoding is not None:
            kernel.timers.at(now, lambda then: _end_spent(kernel, process, then))
    elif (slow := group.obstacle(now)) is not None:
        _hold(kernel, process, slow, "tokens_max", now)
        slow.line[process.pid] = process
        if slow.timer is None:
            slow.timer = kernel.timers.at(now + slow.wait(now), lambda then: _serve(kernel, slow, then))
    else:
        return False
    return True


def _hold(kernel: Kernel, process: LLMProcess, group: Group, why: str, now: float) -> None:
    process.held = group
    process.enter(State.BLOCKED, WaitFor.QUOTA, now)
    group.events["held"] += 1
    if kernel.trace.on:
        kernel.emit(now, "group.held", process.pid, process.device.name, detail=f"{group.path}: {why}")


def _go_on(kernel: Kernel, process: LLMProcess, now: float) -> None:
    if process.held is not None and process.pause <= now and process.pid not in process.held.line:
        process.held = None
        kernel.settle(process, now)


def _end_spent(kernel: Kernel, process: LLMProcess, now: float) -> None:
    if process.group.exhausted() is not None:
        interrupt_decoding(kernel, process, Finish.BUDGET, now)


def _serve(kernel: Kernel, group: Group, now: float) -> None:
    """As many go on as the rate allows tokens; the next ones when these will have used theirs."""
    group.timer = None
    if (left := group.wait(now)) > 0:
        group.timer = kernel.timers.at(now + left, lambda then: _serve(kernel, group, then))
        return
    count = group.allowance(now)
    _release(kernel, group, count, now)
    if group.line and group.settings.tokens_max:
        moment = now + count / group.settings.tokens_max
        group.timer = kernel.timers.at(moment, lambda then: _serve(kernel, group, then))


def _release(kernel: Kernel, group: Group, count: int, now: float) -> None:
    for process in list(group.line.values())[:count]:
        del group.line[process.pid]
        process.held = None
        kernel.settle(process, now)


def relax(kernel: Kernel, group: Group, now: float) -> None:
    """The limits of a group have changed: whoever waits for one looks again."""
    for one in kernel.groups.below(group):
        if one.timer is not None:
            one.timer.cancel()
            one.timer = None
        _release(kernel, one, len(one.line), now)
        for pid in list(one.members):
            if isinstance(process := kernel.table.find(pid), LLMProcess) and process.pause > now:
                process.pause = now
                _go_on(kernel, process, now)
    kernel.freed()


def mind_high(kernel: Kernel, process: LLMProcess, now: float) -> None:
    """A process has grown. If that took a group above its `kv_high`, its sleepers lose their pages; if it still is above,
    the process makes a pause before it goes on, the longer the further above."""
    high = process.group.over_high()
    if high is None:
        return
    limit = high.settings.kv_high
    high.events["kv_high"] += 1
    while high.kv > limit and (sleeper := sleeper_of(kernel, high, process, now)) is not None:
        kernel.take_pages(sleeper, now)
    if high.kv > limit and process.table.cached >= process.reached:  # rebuilding what it had is no growth
        process.pause = now + _LONGEST_PAUSE * min(1.0, high.kv / limit - 1.0)
        kernel.emit(now, "mem.high", process.pid, process.device.name, high.kv - limit, high.path)


def holders(kernel: Kernel, group: Group) -> Iterator[LLMProcess]:
    """The processes of a subtree that have pages and are in no step."""
    for device in kernel.devices.values():
        for image in device.images.values():
            for holder in image.holders.values():
                if not holder.running and holder.group.below(group):
                    yield holder


def sleepers(kernel: Kernel, group: Group) -> list[LLMProcess]:
    """Those of a subtree that have pages and want nothing, the longest asleep first."""
    return sorted((p for p in holders(kernel, group) if p.sleeps), key=lambda p: p.since)


def sleeper_of(kernel: Kernel, group: Group, wanting: LLMProcess, now: float) -> LLMProcess | None:
    """The sleeper of a group that is to lose its pages, which a policy says where the model is the same."""
    asleep = [p for p in sleepers(kernel, group) if p is not wanting]
    image = wanting.image
    assert image is not None
    alike = image.victims.choose((p for p in asleep if p.image is image), now)
    return alike or next(iter(asleep), None)


def victim(kernel: Kernel, group: Group, process: LLMProcess, now: float) -> LLMProcess | None:
    """A process cannot grow, since its group has what `kv_max` allows: whose pages to take. None: it waits, unless the
    group is to do something else, which happens once the step is planned."""
    action = group.settings.kv_action
    if action is KvAction.SPILL:
        if (sleeper := sleeper_of(kernel, group, process, now)) is not None:
            return sleeper
        quantum = kernel.config.quantum
        others = [p for p in holders(kernel, group) if p is not process]
        last = max(others, key=lambda p: claim(p, quantum), default=None)
        if last is not None and claim(last, quantum) > claim(process, quantum):
            return last
    if process.short is not group:
        group.events["kv_max"] += 1
        kernel.timers.at(now, lambda then: _recharge(kernel, group))
    if action is KvAction.FAIL or len(process.log) > process.context:
        kernel.timers.at(now, lambda then: _fail(kernel, process, group, then))
    elif action is KvAction.KILL:
        kernel.timers.at(now, lambda then: _kill_largest(kernel, process, group, then))
    return None


def _recharge(kernel: Kernel, group: Group) -> None:
    """Frames that a group pays for, but that only others still map, are paid for by those."""
    moved = False
    for device in kernel.devices.values():
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
        kernel.freed()


def _fail(kernel: Kernel, process: LLMProcess, group: Group, now: float) -> None:
    if process.short is not group or process.wait is not WaitFor.QUOTA:
        return
    group.events["kv_fail"] += 1
    assert process.image is not None
    process.image.starved.pop(process.pid, None)
    process.short = None
    reason = (
        f"process {process.pid} cannot grow: group {group.path} has {group.kv:,} bytes of KV, its kv_max is "
        f"{group.settings.kv_max:,}; end or truncate others of it, or raise it (group_set)"
    )
    kernel.log(now, "warning", reason)
    fail_decoding(kernel, process, reason, now, Errno.EDQUOT)
    kernel.settle(process, now)


def _kill_largest(kernel: Kernel, process: LLMProcess, group: Group, now: float) -> None:
    if process.short is not group or process.wait is not WaitFor.QUOTA:
        return
    assert process.image is not None
    if group.kv + process.image.frame_bytes <= group.settings.kv_max:  # somebody has made room since
        kernel.freed()
        return
    members = [
        p
        for device in kernel.devices.values()
        for image in device.images.values()
        for p in image.holders.values()
        if p.group.below(group)
    ]
    if any(p.dying is not None for p in members):
        return
    scores = sorted(((*_paid_for(p, group), -p.pid, p) for p in members), key=lambda s: s[:3], reverse=True)
    scores = [score for score in scores if score[1]]
    if not scores:
        return
    # A size of 0: all of it is shared, and who is left in the end need not copy it any more.
    size, _, _, victim = scores[0]
    group.events["kv_kill"] += 1
    table = ", ".join(
        f"{p.pid} ({p.name}) {alone:,}" + (f" and {mapped - alone:,} shared" if mapped > alone else "")
        for alone, mapped, _, p in scores[:8]
    )
    kernel.log(
        now,
        "error",
        f"group {group.path} is at its kv_max of {group.settings.kv_max:,} bytes: killed process {victim.pid} "
        f"({victim.name}), the largest; bytes of KV by process: {table}",
    )
    kernel.emit(now, "mem.kill", victim.pid, victim.device.name, size, group.path)
    reason = f"out of memory: it had the most KV of group {group.path}, which was at its kv_max"
    exit_process(kernel, victim, 128 + int(Signal.KILL), reason, now)


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

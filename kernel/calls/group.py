"""The group family: group_create group_set group_stat group_remove group_move."""

from __future__ import annotations

from itertools import islice
from typing import cast

from llmasos.kernel.calls.lookup import at_boundary, reachable_group
from llmasos.kernel.enforce import relax
from llmasos.kernel.groups.group import Group
from llmasos.kernel.marks import freed, touch
from llmasos.kernel.objects.process import LLMProcess, Program
from llmasos.kernel.objects.request import Request
from llmasos.kernel.reclaim import sleepers
from llmasos.kernel.settle import release, settle, take_pages
from llmasos.kernel.state import System
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import GroupInfo, GroupSettings, Right
from llmasos.syscalls.table import GroupCreate, GroupMove, GroupRemove, GroupSet, GroupStat


def group_create(system: System, request: Request) -> GroupInfo:
    call = cast(GroupCreate, request.call)
    check_settings(call.settings)
    group = system.groups.create(call.path, request.program.group, call.settings)
    try:
        _check_below(request.program, group)
    except SyscallError:
        system.groups.remove(group)
        raise
    system.journal.group_set(group)
    system.emit("group.create", request.program.pid, detail=group.path)
    return info(system, group)


def group_set(system: System, request: Request) -> GroupSettings:
    call = cast(GroupSet, request.call)
    group = system.groups.find(call.path, request.program.group)
    _check_below(request.program, group)
    check_settings(call.settings)
    if group.parent is None and call.settings.pids_max:
        raise SyscallError(
            Errno.EINVAL, "the root group takes no pids_max: nobody could attach to take it back; set it on /users"
        )
    old = group.settings
    group.change(call.settings)
    system.journal.group_set(group)
    most = call.settings.kv_max
    for sleeper in sleepers(system, group):
        if not most or group.kv <= most:
            break
        take_pages(system, sleeper)
    relax(system, group)
    system.emit("group.set", request.program.pid, detail=group.path)
    return old


def group_stat(system: System, request: Request) -> list[GroupInfo]:
    call = cast(GroupStat, request.call)
    top = system.groups.find(call.path, request.program.group)
    if not call.below:
        return [info(system, top)]
    return [info(system, group) for group in islice(system.groups.below(top), call.start, call.start + call.limit)]


def group_remove(system: System, request: Request) -> None:
    call = cast(GroupRemove, request.call)
    group = system.groups.find(call.path, request.program.group)
    _check_below(request.program, group)
    system.groups.remove(group)
    system.journal.group_removed(group)
    system.emit("group.remove", request.program.pid, detail=group.path)


def group_move(system: System, request: Request) -> object:
    call = cast(GroupMove, request.call)
    process = system.table.get(call.pid) if call.pid else request.program
    group = reachable_group(system, request.program, call.path)
    if not isinstance(process, LLMProcess | Program):
        raise SyscallError(
            Errno.EINVAL, f"process {process.pid} is of kind {process.kind.value} and stays in {process.group.path}"
        )
    if not process.group.below(request.program.group) and not request.program.rights & int(Right.ADMIN):
        raise SyscallError(
            Errno.EPERM, f"process {process.pid} is not in {request.program.group.path}, the group of the caller"
        )
    if isinstance(process, LLMProcess):
        if process.birth is not None:
            raise SyscallError(Errno.EBUSY, f"process {process.pid} is still waiting for its model")
        if process.running:
            return at_boundary(process, request)
    old = process.group
    if group is old:
        return None
    group.check_pids(1, already=old)
    if isinstance(process, LLMProcess):
        image = process.image
        if image is not None:
            group.check_weights(image.id, image.weight_bytes, image.name)
        release(process)
        process.pause = system.now
        process.move_to(group, system.now)
    else:
        process.group = group
    group.enter(process.pid)
    old.leave(process.pid)
    touch(system, process)
    system.journal.left(old)
    system.emit("group.move", process.pid, detail=f"{old.path} -> {group.path}")
    if isinstance(process, LLMProcess):
        settle(system, process)
    freed(system)
    return None


def make(system: System, path: str, settings: GroupSettings) -> None:
    """A group of the configuration, and those it is in; the kernel's own get the settings."""
    check_settings(settings)
    group = system.groups.root
    for name in path.strip("/").split("/"):
        group = group.children.get(name) or system.groups.create(name, group, GroupSettings())
    group.change(settings)


def _check_below(program: Program, group: Group) -> None:
    """EPERM if a program may not change a group: its own limits, and those of others, are not its to set."""
    if program.rights & int(Right.ADMIN) or (group is not program.group and group.below(program.group)):
        return
    raise SyscallError(
        Errno.EPERM, f"group {group.path} is not below {program.group.path}, the group of the caller, which gave up ADMIN"
    )


def check_settings(settings: GroupSettings) -> None:
    if settings.kv_max and settings.kv_high > settings.kv_max:
        raise SyscallError(
            Errno.EINVAL, f"kv_high ({settings.kv_high}) is above kv_max ({settings.kv_max}) and would never be reached"
        )


def info(system: System, group: Group) -> GroupInfo:
    """A group as a record."""
    return GroupInfo(
        path=group.path,
        settings=group.settings,
        kv=group.kv,
        swap=group.swap,
        weights=group.weights,
        tokens=group.tokens,
        pids=group.pids,
        processes=sorted(group.members),
        events=dict(group.events),
        pressure=group.pressure.info(system.now),
    )

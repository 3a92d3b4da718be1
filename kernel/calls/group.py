"""The group family: group_create group_set group_stat group_remove group_move group_kill."""

from __future__ import annotations

from itertools import islice

from llmasos.kernel import grants
from llmasos.kernel.calls.info import row
from llmasos.kernel.calls.process import signal_llm
from llmasos.kernel.enforce import relax
from llmasos.kernel.groups.group import Group
from llmasos.kernel.marks import changed, freed
from llmasos.kernel.objects.process import LLMProcess, Program
from llmasos.kernel.objects.request import Request
from llmasos.kernel.reclaim import sleepers
from llmasos.kernel.rights import called, granted_on, rights_on, written
from llmasos.kernel.settle import take_pages, unthrottle
from llmasos.kernel.state import System
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import GroupInfo, GroupSettings, Signal
from llmasos.syscalls.table import GroupCreate, GroupKill, GroupMove, GroupRemove, GroupSet, GroupStat, Needs


def group_create(system: System, request: Request, call: GroupCreate, place: tuple[Group, str]) -> GroupInfo:
    """Row 80 of the table, `GroupCreate`."""
    check_settings(call.settings)
    group = system.groups.create(*place, call.settings)
    system.journal.group_set(group)
    system.emit("group.create", request.program.pid, detail=group.path)
    return info(system, request.program, group)


def group_set(system: System, request: Request, call: GroupSet, group: Group) -> GroupSettings:
    """Row 81 of the table, `GroupSet`."""
    check_settings(call.settings)
    if group.parent is None and call.settings.pids_max:
        why = "the root group takes no pids_max: nobody could attach to take it back; set it on /users"
        raise Errno.EINVAL(why)
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


def group_stat(system: System, request: Request, call: GroupStat, top: Group) -> list[GroupInfo]:
    """Row 82 of the table, `GroupStat`."""
    program = request.program
    if not call.below:
        return [info(system, program, top)]
    seen = (group for group in system.groups.below(top) if rights_on(system, program, group))
    return [info(system, program, group) for group in islice(seen, call.start, call.start + call.limit)]


def group_remove(system: System, request: Request, call: GroupRemove, group: Group) -> None:
    """Row 83 of the table, `GroupRemove`."""
    system.groups.remove(group)
    system.journal.group_removed(group)
    system.emit("group.remove", request.program.pid, detail=group.path)


def group_move(system: System, request: Request, call: GroupMove, process: LLMProcess | Program, group: Group) -> None:
    """Row 84 of the table, `GroupMove`."""
    old = process.group
    if group is old:
        return
    if not group.owner.over(process.owner):  # or it would be in the hands of whoever sets the group's limits
        pid = called(system, request.program, process.pid)
        raise Errno.EPERM(
            f"process {pid} is not of the owner of group {group.path}, and stays in groups of its own owner"
        )
    group.check_pids(1, already=old)
    if isinstance(process, LLMProcess):
        image = process.image
        if image is not None:
            group.check_weights(image.id, image.weight_bytes, image.name)
        unthrottle(process)
        process.pause = system.now
        process.move_to(group, system.now)
    else:
        process.group = group
    group.enter(process.pid, process.kept)
    old.leave(process.pid, process.kept)
    if isinstance(process, LLMProcess):
        grants.left(system, process, old)
    changed(system, process)
    system.journal.left(old)
    system.emit("group.move", process.pid, detail=f"{old.path} -> {group.path}")
    freed(system)


def group_kill(system: System, request: Request, call: GroupKill, top: Group) -> int:
    """Row 85 of the table, `GroupKill`."""
    inside = sorted(pid for group in system.groups.below(top) for pid in group.members)
    found = [
        process
        for pid in inside
        if isinstance(process := system.table.find(pid), LLMProcess)
        and rights_on(system, request.program, process) & Needs.CONTROL
    ]
    processes = [process for process in found if not process.is_zombie()]
    if call.signal not in (Signal.INT, Signal.KILL, Signal.TERM, Signal.CONT, Signal.STOP):
        why = f"{call.signal.name} is sent by the kernel only; send INT, TERM, KILL, STOP or CONT"
        raise Errno.EINVAL(why)
    for process in processes:
        system.emit(f"sig.{call.signal.name.lower()}", process.pid, detail=f"from {written(system, request.program.pid)}")
        signal_llm(system, process, call.signal, request.program)
    return len(processes)


def make(system: System, path: str, settings: GroupSettings) -> None:
    """Make a group of the configuration, and those above it; if there is one already, it gets the settings."""
    check_settings(settings)
    group = system.groups.root
    for name in path.strip("/").split("/"):
        group = group.children.get(name) or system.groups.create(group, name, GroupSettings())
    group.change(settings)


def check_settings(settings: GroupSettings) -> None:
    if settings.kv_max and settings.kv_high > settings.kv_max:
        raise Errno.EINVAL(f"kv_high ({settings.kv_high:,}) has no effect above kv_max ({settings.kv_max:,})")


def info(system: System, program: Program, group: Group) -> GroupInfo:
    """A group as a record; of what others share in it only the number of processes, and of what limits all its
    settings."""
    if not program.owner.over(group.owner):
        home = system.groups.home(program.owner)
        settings = group.settings if home.below(group) else GroupSettings()
        inside = map(system.table.find, sorted(group.members) if program.granted_groups else ())
        granted = [one.pid for one in inside if one is not None and granted_on(program, one)]
        return GroupInfo(group.path, settings, 0, 0, 0, 0, group.pids, granted, {}, {})
    view = system.table.view(program.owner, everybody=system.config.show_all)
    return row(
        GroupInfo,
        group,
        processes=sorted(pid for pid in group.members if pid in view),
        events=dict(group.events),
        pressure=group.pressure.info(system.now),
    )

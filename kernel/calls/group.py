"""The group family: group_create group_set group_stat group_remove group_move group_kill."""

from __future__ import annotations

from itertools import islice

from llmasos.kernel import desk, grants, pieces
from llmasos.kernel.calls.info import row
from llmasos.kernel.calls.process import signal_llm
from llmasos.kernel.enforce import relax
from llmasos.kernel.groups.group import Group
from llmasos.kernel.marks import changed, freed
from llmasos.kernel.objects.process import LLMProcess, Process, Program
from llmasos.kernel.objects.request import Channel, Request
from llmasos.kernel.reclaim import sleepers
from llmasos.kernel.rights import called, granted_on, rights_on, written
from llmasos.kernel.settle import take_pages, unthrottle
from llmasos.kernel.state import System
from llmasos.kernel.wait import Waiting, wait, wake
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import GroupInfo, GroupSettings, Signal
from llmasos.syscalls.table import GroupCreate, GroupKill, GroupMove, GroupRemove, GroupSet, GroupStat, Needs

_ROWS = 4096  # of the process table that are looked at in one event, which takes a millisecond


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


def group_kill(system: System, request: Request, call: GroupKill, top: Group) -> int | Waiting:
    """Row 85 of the table, `GroupKill`."""
    if call.signal not in (Signal.INT, Signal.KILL, Signal.TERM, Signal.CONT, Signal.STOP):
        why = f"{call.signal.name} is sent by the kernel only; send INT, TERM, KILL, STOP or CONT"
        raise Errno.EINVAL(why)
    killing = request.begun if isinstance(request.begun, Killing) else Killing(request.program, call.signal, top)
    if top.pids <= pieces.AT_ONCE and request.begun is None:
        killing.send(system, killing.inside(system))
    elif not killing.ended:
        request.begun = killing
        pieces.begin(system, killing)
        return wait(killing.done)
    return killing.count


class Killing(desk.Begun, pieces.Piecework):
    """A signal on its way to the members of a group, in order of pid. Of very many some get it in each event, and no step
    begins before all have it. It goes on though the group ends with its last process; it stops if the call is taken
    back.

    Who comes in meanwhile gets it too, if his pid is still ahead. KILL and TERM are sent to the others as well, until the
    group has nobody left who lives on."""

    def __init__(self, program: Program, signal: Signal, top: Group) -> None:
        self.program, self.signal, self.top, self.held = program, signal, top, top
        self.done = Channel()
        self.after = self.count = 0
        self.ended = False

    def undo(self, system: System, error: SyscallError) -> None:
        self.ended = True

    def inside(self, system: System) -> list[LLMProcess]:
        """Those of the group that live, and to whom the program may send signals."""
        members = sorted(pid for group in system.groups.below(self.top) for pid in group.members)
        return [one for pid in members if (one := self._reached(system, system.table.find(pid))) is not None]

    def _reached(self, system: System, one: Process | None) -> LLMProcess | None:
        if not isinstance(one, LLMProcess) or one.is_zombie():
            return None
        return one if rights_on(system, self.program, one) & Needs.CONTROL else None

    def send(self, system: System, processes: list[LLMProcess]) -> None:
        sender, self.count = written(system, self.program.pid), self.count + len(processes)
        for process in processes:
            system.emit(f"sig.{self.signal.name.lower()}", process.pid, detail=f"from {sender}")
            signal_llm(system, process, self.signal, self.program)

    def some(self, system: System) -> bool:
        if self.ended:
            return False
        self.holds = True  # from the first that gets it; before that others' steps may begin
        found: list[LLMProcess] = []
        rows = system.table.after(self.after, _ROWS)
        for one in rows:
            self.after = one.pid
            if one.group.below(self.top) and (process := self._reached(system, one)) is not None:
                found.append(process)
                if len(found) == pieces.AT_ONCE:
                    break
        if not rows and self.signal in (Signal.KILL, Signal.TERM):
            found = [one for one in self.inside(system) if one.dying is None]
        self.send(system, found[: pieces.AT_ONCE])
        if rows or len(found) > pieces.AT_ONCE:
            return True
        self.ended = True
        wake(system, self.done)
        return False


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

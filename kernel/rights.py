"""Which rights a program has on an object: the one place that answers it.

Each row of the ABI table says which right its call needs on each object that it names (syscalls/table.py, Needs), and
dispatch asks here. A program has every right on what belongs to its owner, or to one whom that is over: a uid is over
its tenants, the machine's operator over everybody. It has none on what is others', and what it may not see does not
exist: where a pid or a path leads is decided by its owner and its spelling, before any object is looked at. Devices serve
everybody; the groups above one's own, and other users' homes, can be seen. Grants (objects/grant.py) add rights on
processes of others; a group on which a program has one can be seen, and not changed. A confined program has itself and
its grants, and nothing else.
"""

from __future__ import annotations

from llmasos.kernel.groups.group import Group, GroupTree, names
from llmasos.kernel.objects.device import Device
from llmasos.kernel.objects.grant import Grant, Thing, covers
from llmasos.kernel.objects.image import Image
from llmasos.kernel.objects.owner import Owner
from llmasos.kernel.objects.process import INIT_PID, Process, Program
from llmasos.kernel.objects.request import Request
from llmasos.kernel.state import System
from llmasos.syscalls import pids
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Kind, Right
from llmasos.syscalls.table import CONFINED, Needs, Touches

ALL = int(Needs.ALL)
_SEE = int(Needs.SEE)
_SERVED = int(Needs.SEE | Needs.CHARGE)
_HOME = int(Needs.ALL & ~(Needs.LIMITS | Needs.ADMINISTER))  # a user does not set the limits of his own home
_READER = int(Right.CONTROL)  # what `read` needs


def rights_on(system: System, program: Program, thing: object) -> int:
    """The rights (bits of Needs) that a program has on a process, a group, a device, a model in memory, or the owner of
    something that is no more."""
    owner = program.owner
    if program.confined:
        return _confined(program, thing)
    if owner.operator:
        return ALL
    match thing:
        case Process():
            if owner.over(thing.owner):
                return ALL
            seen = _SEE if system.config.show_all or thing.kind in (Kind.INIT, Kind.DRIVER) else 0
            return seen | granted_on(program, thing)
        case Group():
            if owner.over(thing.owner):
                return _HOME if thing.parent is None or not owner.over(thing.parent.owner) else ALL
            return _SEE if _sees_group(system, program, thing.path) else 0
        case Image():
            if thing.owners and all(map(owner.over, thing.owners)):
                return ALL
            return _SERVED if is_shown(system, owner, thing) else 0
        case Device():
            return _SERVED
        case Owner():
            return ALL if owner.over(thing) else 0
    return 0


def _confined(program: Program, thing: object) -> int:
    """Those of a program that has given up all but what it was granted: nothing is its own but itself."""
    if isinstance(thing, Group):
        return _SEE if _is_granted(program, thing.path) else 0
    if not isinstance(thing, Process):
        return 0
    if thing is program:
        return ALL
    return granted_on(program, thing) | (_SEE if thing.kind is Kind.INIT else 0)


def granted_on(program: Program, process: Process) -> int:
    """The rights that a program has on a process by grants."""
    held = program.granted.get(process.pid, 0)
    for group, rights in program.granted_groups.items():
        if covers(group, process):
            held |= rights
    return held


def owns(program: Program, thing: Thing) -> bool:
    """Whether a process or group is as the program's own, so that it has every right on it without a grant."""
    return program.owner.over(thing.owner) and not program.confined


def told_all(program: Program) -> bool:
    """Whether it is told what is the operator's to know: paths, drivers' words, how much the kernel has to do."""
    return program.owner.operator and not program.confined


def concerns(program: Program, grant: Grant) -> bool:
    """Whether a program holds a grant, or one that it was made of, or has what it is on: so it may take it back."""
    return any(one.holder is program for one in grant.lineage()) or owns(program, grant.thing)


def needed(request: Request, touches: Touches) -> int:
    """The rights that a call needs on an object that it names."""
    needs = int(touches.needs)
    for more in touches.more:
        value = getattr(request.call, more.field)
        if value if more.value is None else value == more.value:
            needs |= int(more.needs)
    return needs


def check_confined(request: Request) -> None:
    """EPERM if the call is one that a confined program can not make."""
    if type(request.call) not in CONFINED:
        raise Errno.EPERM(
            f"{request.entry.name} is no call of a confined program, which reaches the processes that it was granted and "
            "nothing else"
        )


def may_read(system: System, program: Program, thing: object) -> bool:
    """Whether a program may read the log of a process (or of all that an owner has), as `read` would let it."""
    return bool(program.rights & _READER) and bool(rights_on(system, program, thing) & int(Needs.READ))


def is_shown(system: System, owner: Owner, image: Image) -> bool:
    """Whether an owner gets to know that a model is in memory: it is known to all by its name, or he has asked for it."""
    return owner.operator or image.path in system.config.models.values() or any(map(owner.over, image.owners))


def knows_model(system: System, program: Program, image: Image) -> bool:
    """Whether a program gets to know it: its owner does, or it was granted a process that has it."""
    granted = any(pid in image.users for pid in _granted(program))
    return granted or (not program.confined and is_shown(system, program.owner, image))


# --- what programs name ---------------------------------------------------------------------------------------------


def inward(system: System, program: Program, pid: int) -> int:
    """The pid of the process that a program calls `pid`: of a number, its own user's."""
    space = program.owner.space
    if pid > pids.MOST:
        return pids.plain(pid)
    return pid if not space or pid in system.table.shared else pids.pid_of(space, pid)


def called(system: System, program: Program, pid: int) -> int:
    """A pid as a reason tells a program: the operator's, plain numbers, could be taken for one of its own."""
    return pid if not program.owner.space or pid in system.table.shared else pids.foreign(pid)


def written(system: System, pid: int) -> int:
    """A pid in a text that may be read by others than the user whose number it is (outward.py translates it)."""
    return pid if len(system.owners) == 1 or pid in system.table.shared else pids.foreign(pid)


def row(system: System, program: Program, pid: int) -> Process | None:
    """The process that a program calls `pid`, a zombie too; None: it is not there, or not for that program."""
    pid = inward(system, program, pid)
    if program.confined:
        own = pid in (INIT_PID, program.pid)
        return system.table.find(pid) if own else _granted_row(system, program, pid)
    found = system.table.view(program.owner, everybody=system.config.show_all).get(pid)
    return _granted_row(system, program, pid) if found is None else found


def rows(system: System, program: Program, after: int, limit: int) -> list[Process]:
    """At most `limit` rows that a program sees behind that of the pid `after`, in order."""
    after = inward(system, program, after) if after else 0
    more, found = _granted(program), list[Process]()
    if program.confined:
        more |= {INIT_PID, program.pid}
    else:
        found = system.table.view(program.owner, everybody=system.config.show_all).after(after, limit)
        more -= {one.pid for one in found}
    if not more:
        return found
    granted = [one for pid in more if pid > after and (one := _seen(system, program, pid)) is not None]
    return sorted([*found, *granted], key=lambda one: one.pid)[:limit]


def _granted(program: Program) -> set[int]:
    """The pids on which a program may have rights by grants: those of all that is in a group, programs too."""
    found = set(program.granted)
    for top in program.granted_groups:
        for one in GroupTree.below(top):
            found |= one.members
    return found


def _granted_row(system: System, program: Program, pid: int) -> Process | None:
    inside = (pid in one.members for top in program.granted_groups for one in GroupTree.below(top))
    return _seen(system, program, pid) if pid in program.granted or any(inside) else None


def _seen(system: System, program: Program, pid: int) -> Process | None:
    row = system.table.find(pid)
    own = program.confined and pid in (INIT_PID, program.pid)
    return row if row is not None and (own or granted_on(program, row)) else None


def gone(pid: int) -> SyscallError:
    """Of a process that has exited, that never was, or that the caller may not see."""
    return Errno.ESRCH(f"no process {pids.shown(pid)}: it has exited, or never was; `ps` lists the processes")


def owner(system: System, program: Program, name: str) -> Owner:
    """The owner of that name (a uid, or `uid/tenant`). ESRCH: there is none, or the program's is not over it."""
    uid, slash, tenant = name.partition("/")
    base = system.owners.key(int(uid)) or system.owners.operator.name
    found = system.owners.get(f"{base}{slash}{tenant}")
    if found is None or program.confined or not program.owner.over(found):
        raise Errno.ESRCH(f"no owner {name} is here, or it is not yours to reach; your own is {program.owner.name}")
    return found


def group(system: System, program: Program, path: str, base: Group) -> Group:
    """The group of a path, which is relative to `base` unless it begins with a slash; to the program's own if `base` has
    ended while the call waited. ENOENT."""
    base = program.group if base.ended else base
    full = path if path.startswith("/") or not path else f"{base.path.rstrip('/')}/{path}"
    owner, walked = program.owner, "/"
    for name in names(full) if not told_all(program) else ():
        above, walked = walked, f"{walked.rstrip('/')}/{name}"
        if not _sees_group(system, program, walked):
            if program.confined:
                raise Errno.ENOENT(f"no group {name!r} in {above}, or none that this program was granted")
            own = system.groups.home(owner).path.removeprefix(above).strip("/").partition("/")[0]
            raise Errno.ENOENT(f"no group {name!r} in {above}, which has: {own or 'nothing'}")
    return system.groups.find(path, base)


def _sees_group(system: System, program: Program, path: str) -> bool:
    """By the path alone: one's home, what is in it and what it is in; that other users are there; and what one was
    granted."""
    if program.granted_groups and _is_granted(program, path):
        return True
    if program.confined:
        return False
    home, group = f"{system.groups.home(program.owner).path}/", f"{path.rstrip('/')}/"
    if home.startswith(group) or group.startswith(home):
        return True
    above, _, name = path.rpartition("/")
    return above == _USERS and name in system.groups.homes


def _is_granted(program: Program, path: str) -> bool:
    """Whether a group is one on which a program has a grant, or is in such a one, or has one in it."""
    group = f"{path.rstrip('/')}/"
    granted = [f"{one.path}/" for one in program.granted_groups]
    return any(group.startswith(one) or one.startswith(group) for one in granted)


_USERS = "/users"

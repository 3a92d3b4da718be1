"""The objects that a call names, found and tested as its row of the ABI table says (syscalls/table.py, Touches).

`find` returns the object, which the call's handler gets typed, or what the call has to wait for first.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeVar, assert_never

from llmasos.kernel import rights
from llmasos.kernel.groups.group import Group, split
from llmasos.kernel.objects.device import Device
from llmasos.kernel.objects.image import Image
from llmasos.kernel.objects.process import LLMProcess, Process, Program
from llmasos.kernel.objects.process_table import only_llm
from llmasos.kernel.objects.request import Request
from llmasos.kernel.state import System
from llmasos.kernel.wait import Waiting, wait
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Right
from llmasos.syscalls.shown import NOT_YOURS, REFERENCE, SIMULATED, UNKNOWN, file_of
from llmasos.syscalls.table import Names, Needs, Touches, When

T = TypeVar("T")


def find(system: System, request: Request, touches: Touches) -> Any:
    """The object of a field, or Waiting. What the caller may not see is not there; EPERM where it may not do this."""
    named, program = getattr(request.call, touches.field), request.program
    if touches.optional and not named:
        return None
    match touches.what:
        case Names.RUNNER:
            return _runner(request, touches, only_llm(_living(system, request, touches, named)))
        case Names.LLM:
            return only_llm(_living(system, request, touches, named))
        case Names.LOG:
            return only_llm(_row(system, request, touches, named, zombies=LLMProcess))
        case Names.PROCESS:
            return _living(system, request, touches, named) if named else program
        case Names.ROW:
            return _row(system, request, touches, named) if named else program
        case Names.CHILD:
            child = rights.row(system, program, named) if named else None
            return child and _allowed(system, request, touches, child)
        case Names.MEMBER:
            return _member(request, touches, _living(system, request, touches, named) if named else program)
        case Names.GROUP:
            return _group(system, request, touches, named)
        case Names.PLACE:
            return _place(program, _group(system, request, touches, named))
        case Names.RULED:
            return _ruled(program, _group(system, request, touches, named))
        case Names.PARENT:
            above, name = split(named)
            return _parent(program, _group(system, request, touches, above), name, named)
        case Names.DEVICE:
            return _allowed(system, request, touches, system.device_named(named))
        case Names.MODEL:
            if touches.optional and not named:
                return ""
            check_shown(system, request, touches.what, named)
            return _model(system, request, touches, system.config.models.get(named, named))
        case Names.FILE | Names.TARGET:
            check_shown(system, request, touches.what, named)
            return _file(named)
        case Names.OWNER:
            return _allowed(system, request, touches, rights.owner(system, program, named))
        case _:
            assert_never(touches.what)


def _allowed(system: System, request: Request, touches: Touches, thing: T) -> T:
    """The object, or EPERM where the caller has not the rights on it that the call needs."""
    held = rights.rights_on(system, request.program, thing)
    if held != rights.ALL and (lacking := rights.needed(request, touches) & ~held):
        what = " and ".join(need.name or "" for need in Needs if need & lacking and need is not Needs.ALL)
        on = _called(system, request, thing)
        raise Errno.EPERM(f"{request.entry.name} needs the right {what} on {on}, which is not yours to use so")
    return thing


def _called(system: System, request: Request, thing: object) -> str:
    match thing:
        case Process():
            return f"process {rights.called(system, request.program, thing.pid)}"
        case Group():
            return f"group {thing.path}"
        case Image():
            return f"model {thing.name}, which others use too"
        case Device():
            return f"device {thing.name}"
    return str(thing)


def _model(system: System, request: Request, touches: Touches, path: str) -> str:
    """The path of a model. If it is in memory, the caller must have the rights on it there."""
    if touches.more or touches.needs & Needs.ADMINISTER:
        for device in system.devices.values():
            for image in device.images.values():
                if image.path == path and rights.is_shown(system, request.program.owner, image):
                    _allowed(system, request, touches, image)
    return path


# --- processes ------------------------------------------------------------------------------------------------------


def _row(system: System, request: Request, touches: Touches, pid: int, zombies: type[Process] = Process) -> Process:
    """The row of a pid, or ESRCH. Zombies are there if they are of the kind `zombies`."""
    process = rights.row(system, request.program, pid)
    if process is None or (process.is_zombie() and not isinstance(process, zombies)):
        raise rights.gone(pid)
    return _allowed(system, request, touches, process)


def _living(system: System, request: Request, touches: Touches, pid: int) -> Process:
    """The living process of a pid, or ESRCH."""
    process = rights.row(system, request.program, pid)
    if process is None or process.is_zombie():
        raise rights.gone(pid)
    return _allowed(system, request, touches, process)


def _runner(request: Request, touches: Touches, process: LLMProcess) -> LLMProcess | Waiting:
    check_model(process)
    if touches.idle and process.decoding is not None:
        why = f"cannot {request.entry.name} process {process.pid} while it decodes; wait for it, or send it INT first"
        raise Errno.EBUSY(why)
    if touches.alone:
        check_alone(process, request)
    early = process.pausing if touches.when is When.IN_TURN else process.running
    if process.saved is not None or (touches.when is not When.NOW and early):
        return wait(process.boundary)
    return process


def check_model(process: LLMProcess) -> None:
    """EBUSY if the process has no model, unless it is about to have it back (`saved`)."""
    if process.stranded:
        why = f"process {process.pid} has not got its model back ({process.stranded}); its log can be read"
        raise Errno.EBUSY(why)
    if process.image is None and process.saved is None:
        raise Errno.EBUSY(f"process {process.pid} is still waiting for its model")


def check_alone(process: LLMProcess, request: Request) -> None:
    """EBUSY if another call is giving the process another model or device."""
    other = process.transition
    if other is not None and other is not request:
        raise Errno.EBUSY(
            f"process {process.pid} is being changed by {other.entry.name} (program {other.program.pid}) already; wait "
            "for that, or cancel it"
        )


def _member(request: Request, touches: Touches, process: Process) -> LLMProcess | Program | Waiting:
    program, pid = request.program, process.pid
    if not isinstance(process, LLMProcess | Program):
        why = f"process {pid} is of kind {process.kind.value} and stays in {process.group.path}"
        raise Errno.EINVAL(why)
    if not _reaches(program, process.group):
        raise Errno.EPERM(f"process {pid} is not in {program.group.path}, the group of the caller")
    if isinstance(process, LLMProcess):
        if process.birth is not None:
            raise Errno.EBUSY(f"process {pid} is still waiting for its model")
        if process.running and touches.when is When.BOUNDARY:
            return wait(process.boundary)
    return process


# --- control groups -------------------------------------------------------------------------------------------------


def _group(system: System, request: Request, touches: Touches, path: str) -> Group:
    return _allowed(system, request, touches, rights.group(system, request.program, path, request.base))


def _is_admin(program: Program) -> bool:
    """Whether a program reaches all groups on which it has rights. One that gave up ADMIN does not; users other than the
    operator never had it."""
    return bool(program.rights & int(Right.ADMIN)) or not program.owner.operator


def _reaches(program: Program, group: Group) -> bool:
    """Whether a group is the program's own or below that, or the program may reach all."""
    return group.below(program.group) or _is_admin(program)


def _place(program: Program, group: Group) -> Group:
    if not _reaches(program, group):
        why = (
            f"group {group.path} is not in {program.group.path}, the group of program {program.pid}, which gave up ADMIN"
        )
        raise Errno.EPERM(why)
    return group


def _ruled(program: Program, group: Group) -> Group:
    if not _reaches(program, group) or (group is program.group and not _is_admin(program)):
        raise _not_below(program, group.path)
    return group


def _parent(program: Program, parent: Group, name: str, path: str) -> tuple[Group, str]:
    if not _reaches(program, parent):
        raise _not_below(program, path)
    return parent, name


def _not_below(program: Program, path: str) -> SyscallError:
    why = f"group {path} is not below {program.group.path}, the group of the caller, which gave up ADMIN"
    return Errno.EPERM(why)


# --- files ----------------------------------------------------------------------------------------------------------


def is_file(what: Names, name: str, models: Collection[str]) -> bool:
    """Whether a name that a call gives is looked for among files: a path, or a model that is not known by name. (What the
    options of a simulated one name is, too.)"""
    known = what is Names.MODEL and (not name or name in models or SIMULATED.fullmatch(name))
    return what in (Names.FILE, Names.TARGET, Names.MODEL) and not known


def check_shown(system: System, request: Request, what: Names, name: str) -> None:
    """EPERM where the kernel would open a file by its own right for a user who may have none on it: he has not shown it.
    EAGAIN: it was shown to an earlier kernel, or not for this call."""
    if not system.config.shared:
        return
    if REFERENCE.search(name):
        raise Errno.EAGAIN(f"{name} {UNKNOWN}")
    if request.program.owner.machine or not is_file(what, name, system.config.models):
        return  # (other operators have every right over the kernel, and none on files)
    if request.files is None or file_of(name) not in request.files:
        raise Errno.EPERM(
            f"{name} {NOT_YOURS}; programs that use the client library show such a file (docs/files.md); or use a model "
            "that the kernel knows by name (`models` lists them)"
        )


def _file(path: str) -> str:
    if not path.startswith("/") or path.endswith("/"):
        raise Errno.EINVAL(f"an absolute path of a file was wanted, found {path!r}")
    return path

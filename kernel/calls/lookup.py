"""The objects that a call names, found and tested as its row of the ABI table says (syscalls/table.py, Touches).

`find` returns the object, which the call's handler gets typed, or what the call has to wait for first.
"""

from __future__ import annotations

from typing import Any, assert_never

from llmasos.kernel.groups.group import Group
from llmasos.kernel.objects.process import LLMProcess, Process, Program
from llmasos.kernel.objects.request import Request
from llmasos.kernel.state import System
from llmasos.kernel.wait import Waiting, wait
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Right
from llmasos.syscalls.table import Names, Touches, When


def find(system: System, request: Request, touches: Touches) -> Any:
    """The object of a field, or Waiting."""
    named = getattr(request.call, touches.field)
    table, groups = system.table, system.groups
    match touches.what:
        case Names.RUNNER:
            return _runner(request, touches, table.llm(named))
        case Names.LLM:
            return table.llm(named)
        case Names.LOG:
            process = table.find(named)
            return process if isinstance(process, LLMProcess) else table.llm(named)
        case Names.PROCESS:
            return table.get(named) if named else request.program
        case Names.ROW:
            return (table.find(named) or table.get(named)) if named else request.program
        case Names.MEMBER:
            return _member(request.program, touches, table.get(named) if named else request.program)
        case Names.GROUP:
            return groups.find(named, request.base)
        case Names.PLACE:
            return _place(request.program, groups.find(named, request.base))
        case Names.RULED:
            return _ruled(request.program, groups.find(named, request.base))
        case Names.PARENT:
            return _parent(request.program, *groups.parent_of(named, request.base), named)
        case Names.DEVICE:
            return None if touches.optional and not named else system.device_named(named)
        case Names.MODEL:
            return system.config.models.get(named, named)
        case Names.FILE:
            return _file(named)
        case _:
            assert_never(touches.what)


# --- processes ------------------------------------------------------------------------------------------------------


def _runner(request: Request, touches: Touches, process: LLMProcess) -> LLMProcess | Waiting:
    check_model(process)
    if touches.idle and process.decoding is not None:
        why = f"cannot {request.entry.name} process {process.pid} while it decodes; wait for it, or send it INT first"
        raise Errno.EBUSY(why)
    if touches.alone:
        check_alone(process, request)
    early = process.boundary if touches.when is When.IN_TURN else process.running
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


def _member(program: Program, touches: Touches, process: Process) -> LLMProcess | Program | Waiting:
    pid = process.pid
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


def _is_admin(program: Program) -> bool:
    return bool(program.rights & int(Right.ADMIN))


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


def _file(path: str) -> str:
    if not path.startswith("/") or path.endswith("/"):
        raise Errno.EINVAL(f"an absolute path of a file was wanted, found {path!r}")
    return path

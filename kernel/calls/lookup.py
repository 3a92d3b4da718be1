"""The objects that a call names, found and tested as its row of the ABI table says (syscalls/table.py, Touches).

A finder returns the object, which the call's handler gets typed, or what the call has to wait for first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llmasos.kernel.groups.group import Group
from llmasos.kernel.objects.device import Device
from llmasos.kernel.objects.process import LLMProcess, Process, Program
from llmasos.kernel.objects.request import Request
from llmasos.kernel.state import System
from llmasos.kernel.wait import Waiting, wait
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Right
from llmasos.syscalls.table import Names, Touches, When


def find(system: System, request: Request, touches: Touches) -> Any:
    """The object of a field, or Waiting."""
    return _FINDERS[touches.what](system, request, touches, getattr(request.call, touches.field))


# --- processes ------------------------------------------------------------------------------------------------------


def _process(system: System, request: Request, touches: Touches, pid: int) -> Process:
    return system.table.get(pid) if pid else request.program


def _row(system: System, request: Request, touches: Touches, pid: int) -> Process:
    return (system.table.find(pid) or system.table.get(pid)) if pid else request.program


def _llm(system: System, request: Request, touches: Touches, pid: int) -> LLMProcess:
    return system.table.llm(pid)


def _log(system: System, request: Request, touches: Touches, pid: int) -> LLMProcess:
    process = system.table.find(pid)
    return process if isinstance(process, LLMProcess) else system.table.llm(pid)


def _runner(system: System, request: Request, touches: Touches, pid: int) -> LLMProcess | Waiting:
    process = system.table.llm(pid)
    check_model(process)
    if touches.idle and process.decoding is not None:
        why = f"cannot {request.entry.name} process {pid} while it decodes; wait for it, or send it INT first"
        raise Errno.EBUSY(why)
    if touches.alone:
        check_alone(process, request)
    early = process.boundary if touches.when is When.IN_TURN else process.running
    if process.saved is not None or (touches.when is not When.NOW and early):
        return wait(process.boundary)
    return process


def check_model(process: LLMProcess) -> None:
    """EBUSY if the process has no model, unless it is about to have it back (`saved`)."""
    if process.lost:
        why = f"process {process.pid} has not got its model back ({process.lost}); its log can be read"
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


def _member(system: System, request: Request, touches: Touches, pid: int) -> LLMProcess | Program | Waiting:
    process, program = _process(system, request, touches, pid), request.program
    if not isinstance(process, LLMProcess | Program):
        why = f"process {pid} is of kind {process.kind.value} and stays in {process.group.path}"
        raise Errno.EINVAL(why)
    if not process.group.below(program.group) and not _is_admin(program):
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


def _group(system: System, request: Request, touches: Touches, path: str) -> Group:
    return system.groups.find(path, request.base)


def _place(system: System, request: Request, touches: Touches, path: str) -> Group:
    group, program = _group(system, request, touches, path), request.program
    if not group.below(program.group) and not _is_admin(program):
        why = (
            f"group {group.path} is not in {program.group.path}, the group of program {program.pid}, which gave up ADMIN"
        )
        raise Errno.EPERM(why)
    return group


def _ruled(system: System, request: Request, touches: Touches, path: str) -> Group:
    group = _group(system, request, touches, path)
    own = request.program.group
    if not (_is_admin(request.program) or (group is not own and group.below(own))):
        raise _not_below(request.program, group.path)
    return group


def _parent(system: System, request: Request, touches: Touches, path: str) -> tuple[Group, str]:
    parent, name = system.groups.parent_of(path, request.base)
    if not parent.below(request.program.group) and not _is_admin(request.program):
        raise _not_below(request.program, path)
    return parent, name


def _not_below(program: Program, path: str) -> SyscallError:
    why = f"group {path} is not below {program.group.path}, the group of the caller, which gave up ADMIN"
    return Errno.EPERM(why)


# --- devices, models, files -----------------------------------------------------------------------------------------


def _device(system: System, request: Request, touches: Touches, name: str) -> Device | None:
    return None if touches.optional and not name else system.device_named(name)


def _model(system: System, request: Request, touches: Touches, name: str) -> str:
    return system.config.models.get(name, name)


def _file(system: System, request: Request, touches: Touches, path: str) -> str:
    if not path.startswith("/") or path.endswith("/"):
        raise Errno.EINVAL(f"an absolute path of a file was wanted, found {path!r}")
    return path


_FINDERS: Mapping[Names, Callable[[System, Request, Touches, Any], object]] = {
    Names.PROCESS: _process,
    Names.ROW: _row,
    Names.MEMBER: _member,
    Names.LLM: _llm,
    Names.LOG: _log,
    Names.RUNNER: _runner,
    Names.DEVICE: _device,
    Names.MODEL: _model,
    Names.FILE: _file,
    Names.GROUP: _group,
    Names.PLACE: _place,
    Names.RULED: _ruled,
    Names.PARENT: _parent,
}

"""What a handler looks up and checks before it does anything: processes, groups, token boundaries."""

from __future__ import annotations

from llmasos.kernel import desk
from llmasos.kernel.groups.group import Group
from llmasos.kernel.objects.process import LLMProcess, Program
from llmasos.kernel.objects.request import Request
from llmasos.kernel.state import System
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Right


def with_model(system: System, pid: int) -> LLMProcess:
    """A process that has its model, or `saved` from the journal: it is about to have it again. ESRCH, EBUSY."""
    process = system.table.llm(pid)
    if process.lost:
        raise SyscallError(Errno.EBUSY, f"process {pid} has not got its model back ({process.lost}); its log can be read")
    if process.image is None and process.saved is None:
        raise SyscallError(Errno.EBUSY, f"process {pid} is still waiting for its model")
    return process


def at_boundary(process: LLMProcess, request: Request) -> object:
    """Dispatch the request again when the process has left its step."""
    process.deferred.append(request)
    return desk.park(request, lambda: process.deferred.remove(request))


def check_idle(process: LLMProcess, what: str) -> None:
    """EBUSY if the process is decoding."""
    if process.decoding is not None:
        raise SyscallError(
            Errno.EBUSY, f"cannot {what} process {process.pid} while it decodes; wait for it, or send it INT first"
        )


def check_unchanged(process: LLMProcess, request: Request) -> None:
    """EBUSY if another call is giving the process another model or device."""
    if process.change is not None and process.change.request is not request:
        other = process.change.request
        raise SyscallError(
            Errno.EBUSY,
            f"process {process.pid} is being changed by {other.entry.name} (program {other.program.pid}) already; wait "
            "for that, or cancel it",
        )


def reachable_group(system: System, program: Program, path: str) -> Group:
    """The group of a path, if the program may put processes there: it is in its own, or ADMIN was not given up. ENOENT,
    EPERM."""
    group = system.groups.find(path, program.group)
    if not group.below(program.group) and not program.rights & int(Right.ADMIN):
        raise SyscallError(
            Errno.EPERM,
            f"group {group.path} is not in {program.group.path}, the group of program {program.pid}, which gave up ADMIN",
        )
    return group

"""The system family: attach leave null boot_info stats trace dmesg shutdown sched."""

from __future__ import annotations

from collections import Counter
from typing import Any

from llmasos.kernel import desk
from llmasos.kernel.calls.info import device_info, row
from llmasos.kernel.clock import seconds
from llmasos.kernel.journal.tickets import ticket
from llmasos.kernel.life import end_program
from llmasos.kernel.marks import changed
from llmasos.kernel.objects.device import Device
from llmasos.kernel.objects.process import Program
from llmasos.kernel.objects.request import Request
from llmasos.kernel.rights import may_read, told_all
from llmasos.kernel.sched.force import reschedule
from llmasos.kernel.state import System
from llmasos.kernel.wait import Waiting, wait
from llmasos.syscalls import limits, pids
from llmasos.syscalls.budgets import GRANTS, GROUPS, LOGS, PROCESSES, SANDBOXES
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.policy_file import SPEC
from llmasos.syscalls.records import BootInfo, Budget, LogLine, Right, SchedInfo, Stats, TraceResult
from llmasos.syscalls.table import Attach, BootInfoCall, Dmesg, Leave, Null, Sched, Shutdown, StatsCall, Trace

_COUNTED = ("errors", "spawned", "exited", "preemptions", "moved_out", "moved_in")


def attach(system: System, request: Request, call: Attach) -> BootInfo:
    """Row 1 of the table, `Attach`."""
    program = request.program
    if call.ticket and call.ticket != _ticket(system, program):
        raise Errno.EINVAL(f"the ticket is not that of program {program.pid}, which is attached here")
    if call.tenant and call.tenant != program.owner.tenant:
        why = f"program {program.pid} belongs to {program.owner.name} already; another tenant's is another connection"
        raise Errno.EINVAL(why)
    program.rights &= call.rights
    if call.confined:
        program.confined = True
        program.rights &= int(Right.QUERY | Right.CONTROL)
    program.name = call.name or program.name or f"program-{pids.number_of(program.pid)}"
    changed(system, program)
    return boot_info(system, request, call)


def null(system: System, request: Request, call: Null) -> None:
    """Row 2 of the table, `Null`."""
    return


def boot_info(system: System, request: Request, call: BootInfoCall | Attach) -> BootInfo:
    """Row 3 of the table, `BootInfoCall`."""
    program = request.program
    private: dict[str, Any] = {} if told_all(program) else {"journal_path": "", "arguments": [], "audit": ""}  # paths
    if program.confined:
        private |= {"runtime": "", "os_pid": 0}
    return row(
        BootInfo,
        system.config,
        protocol=limits.PROTOCOL_VERSION,
        uptime=seconds(system.uptime),
        pid=program.pid,
        default_device=next(iter(system.devices), ""),
        policies=system.sources.known(),
        devices=[device_info(device, program) for device in system.devices.values()],
        ticket=_ticket(system, program) if system.secret else b"",
        **private,
    )


def _ticket(system: System, program: Program) -> bytes:
    return ticket(system.secret, program.pid, program.owner.base.key, program.key)


def leave(system: System, request: Request, call: Leave) -> None:
    """Row 106 of the table, `Leave`."""
    desk.answer(system, request, None)
    end_program(system, request.program, 0, "it has left")


def stats(system: System, request: Request, call: StatsCall) -> Stats:
    """Row 4 of the table, `StatsCall`."""
    count, devices = system.counters, system.devices.values()
    return row(
        Stats,
        uptime=seconds(system.uptime),
        calls=system.calls.total(),
        rejected_frames=count["rejected"],
        processes=len(system.table),
        by_state=dict(Counter(process.state._value_ for process in system.table)),  # `value` costs ten times as much
        tokens_fed=count["fed"],
        tokens_computed=sum(device.computed for device in devices),
        tokens_reused=sum(device.reused for device in devices),
        tokens_decoded=sum(device.decoded for device in devices),
        steps=sum(device.steps for device in devices),
        driver_restarts=sum(device.restarts for device in devices),
        calls_by_name=dict(system.calls),
        refaults=sum(device.refaults for device in devices),
        journal=_journal(system, request.program),
        journal_frames=system.journal.frames,
        audit=_audit(system, request.program),
        budgets=[*system.budgets, *system.spending.told(), *_tables(system)],
        **{name: count[name] for name in _COUNTED},
    )


def _tables(system: System) -> list[Budget]:
    """What the tables of the kernel have in them."""
    grants, root, sessions = system.grants, system.groups.root, [group for group in system.groups if group.session]
    logs = max((group.logs for group in sessions), default=0)
    pids = max((group.pids for group in sessions), default=0)
    inside = max((group.inside for group in sessions), default=0)
    return [
        LOGS.told(root.logs, sum(group.refused for group in system.groups), logs),
        PROCESSES.told(len(system.table), system.table.refused, pids, system.config.max_processes),
        GROUPS.told(root.inside, system.groups.refused, inside),
        GRANTS.told(len(grants), grants.refused, grants.most),
        SANDBOXES.told(len(system.sandboxes), system.sandboxes.refused, system.sandboxes.most),
    ]


def _audit(system: System, program: Program) -> str:
    auditor = system.auditor
    if not auditor.trouble or program.owner.operator:
        return (auditor.trouble or "kept") if auditor.on else ""
    return "it cannot be written"


def _journal(system: System, program: Program) -> str:
    if not system.journal_trouble or program.owner.operator:
        return (system.journal_trouble or system.journal_wait or "kept") if system.secret else ""
    return "it cannot be written"  # the operator is told why, and where


def trace(system: System, request: Request, call: Trace) -> TraceResult | Waiting:
    """Row 5 of the table, `Trace`."""
    program, owner = request.program, request.program.owner
    system.trace.listen(system.uptime, owner)
    if not isinstance(request.begun, int):  # the event that it begins with
        end = system.trace.end_of(owner)
        request.begun = end if call.start < 0 else min(call.start, end)
    result = system.trace.read(request.begun, call.limit, owner, content=may_read(system, program, owner))
    return result if result.events or request.late or not call.timeout else wait(system.traced, call.timeout)


def dmesg(system: System, request: Request, call: Dmesg) -> list[LogLine]:
    """Row 6 of the table, `Dmesg`."""
    return system.trace.lines(call.after, call.limit, request.program.owner)


def shutdown(system: System, request: Request, call: Shutdown) -> None:
    """Row 7 of the table, `Shutdown`."""
    if call.keep and (not system.secret or system.journal_trouble):
        why = system.journal_trouble or "this kernel keeps no journal"
        raise Errno.ENOTSUP(f"the processes cannot be kept: {why}; halt without `keep` ends them")
    desk.answer(system, request, None)
    desk.halt(system, f"asked for by {request.program.name} (program {request.program.pid})", keep=call.keep)


def sched(system: System, request: Request, call: Sched, device: Device) -> SchedInfo:
    """Row 8 of the table, `Sched`."""
    changes = {name: value for name in call.__struct_fields__ if name != "device" and (value := getattr(call, name))}
    for policy in (call.policy, call.victims, call.evictions):
        _check_module(system, request.program, policy)
    if changes:
        reschedule(system, device, **changes)
    policies = device.config.victims, device.evictions.name, system.sources.outs()
    return SchedInfo(device.name, device.queue.policy.name, device.max_runs, device.step_tokens, *policies)


def _check_module(system: System, program: Program, policy: str) -> None:
    """EPERM for a policy that is a file where the caller is neither root nor the kernel's user: it becomes code of the
    kernel's, with rights that he may not have. (What anybody shows the kernel it keeps in files of its own.)"""
    found = SPEC.fullmatch(policy)
    if system.config.shared and found is not None and not found["digest"] and not program.owner.machine:
        raise Errno.EPERM(
            f"{policy} would be code in the machine's kernel, which only root and the kernel's own user may put there; "
            "name a policy that the kernel has (`boot_info` lists them)"
        )

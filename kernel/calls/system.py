"""The system family: attach null boot_info stats trace dmesg shutdown sched."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, cast

from kernel.objects.request import Request
from kernel.recovery.recovery import ticket
from kernel.sched.policies import POLICIES, make_policy
from kernel.sched.run_queue import RunQueue
from kernel.syscall import PARKED, handles
from syscalls import limits
from syscalls.errno import Errno, SyscallError
from syscalls.records import BootInfo, LogLine, SchedInfo, Stats
from syscalls.table import Attach, BootInfoCall, Dmesg, Null, Sched, Shutdown, StatsCall, Trace

if TYPE_CHECKING:
    from kernel.core import Kernel
    from kernel.objects.device import Device


@handles(Attach)
def attach(kernel: Kernel, request: Request, now: float) -> BootInfo:
    call = cast(Attach, request.call)
    program = request.program
    if call.ticket and call.ticket != ticket(kernel.secret, program.pid):
        raise SyscallError(
            Errno.EINVAL, f"the ticket is not that of program {program.pid}, which is attached here"
        )
    program.rights &= call.rights
    program.name = call.name or program.name or f"program-{program.pid}"
    kernel.touch(program)
    return _boot_info(kernel, request, now)


@handles(Null)
def null(kernel: Kernel, request: Request, now: float) -> None:
    return None


@handles(BootInfoCall)
def boot_info(kernel: Kernel, request: Request, now: float) -> BootInfo:
    return _boot_info(kernel, request, now)


def _boot_info(kernel: Kernel, request: Request, now: float) -> BootInfo:
    config = kernel.config
    return BootInfo(
        version=config.version,
        protocol=limits.PROTOCOL_VERSION,
        runtime=config.runtime,
        os_pid=config.os_pid,
        uptime=now - kernel.started,
        pid=request.program.pid,
        default_model=config.default_model,
        default_device=next(iter(kernel.devices), ""),
        policies=list(POLICIES),
        devices=[device.info() for device in kernel.devices.values()],
        ticket=ticket(kernel.secret, request.program.pid) if kernel.secret else b"",
    )


@handles(StatsCall)
def stats(kernel: Kernel, request: Request, now: float) -> Stats:
    count = kernel.counters
    return Stats(
        uptime=now - kernel.started,
        calls=kernel.calls.total(),
        errors=count["errors"],
        rejected_frames=count["rejected"],
        processes=len(kernel.table),
        by_state=dict(Counter(process.state.value for process in kernel.table)),
        spawned=count["spawned"],
        exited=count["exited"],
        tokens_fed=count["fed"],
        tokens_computed=count["computed"],
        tokens_reused=sum(device.reused for device in kernel.devices.values()),
        tokens_decoded=count["decoded"],
        steps=count["steps"],
        preemptions=count["preemptions"],
        driver_restarts=count["driver_restarts"],
        calls_by_name=dict(kernel.calls),
        moved_out=count["moved_out"],
        moved_in=count["moved_in"],
        refaults=sum(device.refaults for device in kernel.devices.values()),
        journal=(kernel.journal_trouble or "kept") if kernel.secret else "",
        journal_frames=kernel.journal.frames,
    )


@handles(Trace)
def trace(kernel: Kernel, request: Request, now: float) -> object:
    call = cast(Trace, request.call)
    at = now - kernel.started
    kernel.trace.listen(at)
    if request.mark < 0:
        request.mark = kernel.trace.end if call.start < 0 else min(call.start, kernel.trace.end)
    result = kernel.trace.read(request.mark, call.limit)
    if result.events or not call.timeout:
        return result

    def undo() -> None:
        if request in kernel.tracers:
            kernel.tracers.remove(request)

    def overdue(_: float) -> None:
        undo()
        kernel.answer(request, kernel.trace.read(request.mark, call.limit))

    if not request.timers:
        request.timers.append(kernel.timers.at(now + call.timeout, overdue))
    kernel.tracers.append(request)
    return kernel.park(request, undo)


@handles(Dmesg)
def dmesg(kernel: Kernel, request: Request, now: float) -> list[LogLine]:
    call = cast(Dmesg, request.call)
    return kernel.trace.lines(call.after, call.limit)


@handles(Shutdown)
def shutdown(kernel: Kernel, request: Request, now: float) -> object:
    kernel.answer(request, None)
    kernel.halt(f"asked for by {request.program.name} (program {request.program.pid})", now)
    return PARKED


@handles(Sched)
def sched(kernel: Kernel, request: Request, now: float) -> SchedInfo:
    call = cast(Sched, request.call)
    device = kernel.device_named(call.device)
    if call.policy or call.max_runs or call.step_tokens:
        reschedule(kernel, device, call.policy, call.max_runs, call.step_tokens, now)
    return SchedInfo(device.name, device.queue.policy.name, device.max_runs, device.step_tokens)


def reschedule(
    kernel: Kernel, device: Device, policy: str, max_runs: int, step_tokens: int, now: float
) -> None:
    """Schedule a device otherwise; what is empty or 0 stays."""
    if policy and policy != device.queue.policy.name:
        ready = list(device.queue)
        device.queue, old = RunQueue(make_policy(policy, kernel.config.quantum)), device.queue
        for process in ready:
            old.withdraw(process)
            device.queue.put(process)
        kernel.log(now, "info", f"{device.name}: scheduling policy {old.policy.name} -> {policy}")
    device.config.max_runs = max_runs or device.config.max_runs
    device.config.step_tokens = step_tokens or device.config.step_tokens
    device.max_runs = max_runs or device.max_runs
    device.step_tokens = step_tokens or device.step_tokens
    device.rescheduled = True
    kernel.journal.device_set(device)

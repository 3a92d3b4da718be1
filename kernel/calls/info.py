"""The process table as programs see it: getinfo ps. A row becomes a record, cf. Linux's fs/proc/array.c."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from kernel.objects.process import DriverProcess, LLMProcess, Process, Program
from kernel.objects.request import Request
from kernel.syscall import handles
from syscalls.errno import Errno
from syscalls.records import Finish, ProcessInfo
from syscalls.table import Getinfo, Ps

if TYPE_CHECKING:
    from kernel.core import Kernel

_MOST_REASON = 400  # characters of a reason in a row


@handles(Getinfo)
def getinfo(kernel: Kernel, request: Request, now: float) -> ProcessInfo:
    call = cast(Getinfo, request.call)
    if call.pid == 0:
        return info(kernel, request.program, now)
    process = kernel.table.find(call.pid)
    return info(kernel, process if process is not None else kernel.table.get(call.pid), now)


@handles(Ps)
def ps(kernel: Kernel, request: Request, now: float) -> list[ProcessInfo]:
    call = cast(Ps, request.call)
    return [info(kernel, process, now) for process in kernel.table.after(call.after, call.limit)]


def info(kernel: Kernel, process: Process, now: float) -> ProcessInfo:
    """A row of the process table as a record."""
    fields: dict[str, Any] = {
        "pid": process.pid,
        "ppid": process.owner,
        "kind": process.kind,
        "name": process.name,
        "state": process.state,
        "wait": process.wait,
        "started": process.started - kernel.started,
        "exit_status": process.exit_status,
        "usage": process.usage(now),
        "group": process.group.path,
    }
    if isinstance(process, LLMProcess):
        failed = process.finish is Finish.ERROR and not process.is_zombie()
        fields["errno"], reason = process.failure if failed else (Errno.OK, process.exit_reason)
        fields["reason"] = reason[:_MOST_REASON]
        frames, image = process.table.frames, process.image
        fields |= {
            "model": process.model,
            "device": process.device.name,
            "sched_class": process.sched_class,
            "nice": process.nice,
            "length": len(process.log),
            "record_bytes": process.records.bytes,
            "cached": process.table.cached,
            "context": process.context,
            "pages": len(frames),
            "shared_pages": sum(image.pool.refs[f] > 1 for f in frames) if image is not None else 0,
            "decoding": process.decoding is not None,
            "finish": process.finish,
            "limits": process.limits,
            "seed": process.sampler.seed,
            "parked": len(process.readers) + len(process.deferred),
            "swapped": sum(block >= len(frames) for block in process.table.kept),
        }
    elif isinstance(process, Program | DriverProcess):
        if isinstance(process, Program):
            os_pid = process.os_pid
            fields["parked"] = len(process.parked)
        else:
            os_pid = kernel.devices[process.device].os_pid
            fields["device"] = process.device
        rss, cpu_seconds = kernel.figures.get(os_pid, (0, 0.0))
        fields |= {"os_pid": os_pid, "rss": rss, "cpu_seconds": cpu_seconds}
    else:
        rss, cpu_seconds = kernel.figures.get(kernel.config.os_pid, (0, 0.0))
        fields |= {"os_pid": kernel.config.os_pid, "rss": rss, "cpu_seconds": cpu_seconds}
    return ProcessInfo(**fields)

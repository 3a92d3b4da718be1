"""The kernel's tables as programs see them: getinfo ps, and rows of others. A row becomes a record, cf. Linux's
fs/proc/array.c."""

from __future__ import annotations

from typing import Any, TypeVar

from llmasos.kernel.objects.device import Device
from llmasos.kernel.objects.image import RESIDENT, Image
from llmasos.kernel.objects.process import DriverProcess, LLMProcess, Process, Program
from llmasos.kernel.objects.request import Request
from llmasos.kernel.state import System
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.limits import MAX_MAPPED
from llmasos.syscalls.records import DeviceInfo, Finish, ModelInfo, ProcessInfo, Record
from llmasos.syscalls.table import Getinfo, Ps

_MOST_REASON = 400  # characters of a reason in a row
R = TypeVar("R", bound=Record)


def getinfo(system: System, request: Request, call: Getinfo, process: Process) -> ProcessInfo:
    """Row 26 of the table, `Getinfo`."""
    return process_info(system, process)


def ps(system: System, request: Request, call: Ps) -> list[ProcessInfo]:
    """Row 27 of the table, `Ps`."""
    return [process_info(system, process) for process in system.table.after(call.after, call.limit)]


def _row(record: type[R], *sources: object, **more: Any) -> R:
    """A record of `more`, and of the fields of `sources` that have the same names; earlier sources go first."""
    for name in record.__struct_fields__:
        source = next((s for s in sources if hasattr(s, name)), None) if name not in more else None
        if source is not None:
            more[name] = getattr(source, name)
    return record(**more)


def process_info(system: System, process: Process) -> ProcessInfo:
    """A row of the process table as a record."""
    more: dict[str, Any] = {
        "ppid": process.owner,
        "started": process.started - system.started,
        "usage": process.usage(system.now),
        "group": process.group.path,
    }
    if isinstance(process, LLMProcess):
        return _row(ProcessInfo, process, process.traits, process.table, **(more | _llm_fields(process)))
    os_pid = system.config.os_pid
    if isinstance(process, Program):
        os_pid, more["parked"] = process.os_pid, len(process.parked)
    elif isinstance(process, DriverProcess):
        os_pid = system.devices[process.device].os_pid
    rss, cpu_seconds = system.figures.get(os_pid, (0, 0.0))
    return _row(ProcessInfo, process, os_pid=os_pid, rss=rss, cpu_seconds=cpu_seconds, **more)


def _llm_fields(process: LLMProcess) -> dict[str, Any]:
    failed = process.finish is Finish.ERROR and not process.is_zombie()
    errno, reason = process.failure if failed else (Errno.OK, process.exit_reason)
    frames, image = process.table.frames, process.image
    return {
        "errno": errno,
        "reason": (process.stop_reason or reason)[:_MOST_REASON],
        "device": process.device.name,
        "length": len(process.log),
        "record_bytes": process.records.bytes,
        "pages": len(frames),
        "shared_pages": sum(image.pool.refs[f] > 1 for f in frames) if image is not None else 0,
        "decoding": process.decoding is not None,
        "seed": process.traits.sampler.seed,
        "parked": len(process.output.line) + len(process.boundary.line),
        "swapped": sum(block >= len(frames) for block in process.table.kept),
    }


def model_info(image: Image, device: str) -> ModelInfo:
    """A model on a device as a record."""
    probed = image.probed
    if probed is None:
        asked = next(iter(image.requested))
        return ModelInfo(image.name, image.path, asked, device, image.shown_state, image.progress)
    resident = image.state == RESIDENT
    return _row(
        ModelInfo,
        image.thrash,
        image,
        probed,
        device=device,
        state=image.shown_state,
        progress=1.0 if resident else image.progress,
        weight_bytes=image.weight_bytes or probed.weight_bytes,
        context=image.context or probed.context,
        frames=image.pool.count,
        frames_free=image.pool.free,
        frames_cached=image.pool.cached,
        processes=len(image.users),
        slots=image.swap.total,
        slots_free=image.swap.free,
        resident_bytes=image.allotted if resident else 0,
        mapped_by=sorted(image.users)[:MAX_MAPPED],
    )


def device_info(device: Device) -> DeviceInfo:
    """A device as a record."""
    return _row(
        DeviceInfo,
        device,
        device.hello,
        kind=device.config.kind,
        pid=device.process.pid,
        policy=device.queue.policy.name,
        ready=len(device.queue),
        tokens_computed=device.computed,
        tokens_decoded=device.decoded,
    )

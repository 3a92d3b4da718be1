"""The kernel's tables as programs see them: getinfo ps, and rows of others. A row becomes a record, cf. Linux's
fs/proc/array.c. Where a record and what it tells of use the same names, the names say which field goes where."""

from __future__ import annotations

from typing import Any, TypeVar

from msgspec.structs import replace

from llmasos.kernel.clock import seconds
from llmasos.kernel.objects.device import Device
from llmasos.kernel.objects.image import RESIDENT, Image
from llmasos.kernel.objects.process import DriverProcess, LLMProcess, Process, Program
from llmasos.kernel.objects.request import Request
from llmasos.kernel.rights import knows_model, rights_on, rows, told_all
from llmasos.kernel.state import System
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.limits import MAX_MAPPED
from llmasos.syscalls.records import DeviceInfo, Finish, ModelInfo, ProcessInfo, Record, Usage
from llmasos.syscalls.table import Getinfo, Needs, Ps

_READ = int(Needs.READ)
_MOST_REASON = 400  # characters of a reason in a row

_MISSING = object()
_Row = TypeVar("_Row", bound=Record)


def row(kind: type[_Row], /, *sources: object, **told: Any) -> _Row:
    """A record with the fields that are told; any other has the value that the first source with a field of that name
    has, or its default."""
    for source in sources:
        for name in kind.__struct_fields__:
            if name not in told and (value := getattr(source, name, _MISSING)) is not _MISSING:
                told[name] = value
    return kind(**told)


def getinfo(system: System, request: Request, call: Getinfo, process: Process) -> ProcessInfo:
    """Row 26 of the table, `Getinfo`."""
    return _row(system, request.program, process)


def ps(system: System, request: Request, call: Ps) -> list[ProcessInfo]:
    """Row 27 of the table, `Ps`."""
    program = request.program
    seen = rows(system, program, call.after, call.limit)
    return [_row(system, program, process) for process in seen]


def _row(system: System, program: Program, process: Process) -> ProcessInfo:
    whole = _told(system, program, process)
    info = process_info(system, process, whole)
    if not whole:
        info = replace(info, group=_home(process), model=_model_told(system, program, process))
    if program.confined and not isinstance(process, LLMProcess):  # nothing of the machine, and of init no figures
        info = replace(info, os_pid=0, rss=0, cpu_seconds=0.0)
        return info if process is program else replace(info, usage=Usage(), parked=0)
    return info


def _home(process: Process) -> str:
    """The path of the home that a process is in: what is below it others do not see. If it is in none, of its group."""
    homes = [group.path for group in process.group.chain if group.home]
    return min(homes, key=len, default=process.group.path)


def _model_told(system: System, program: Program, process: Process) -> str:
    """The name of its model, if `models` would tell that too; it may be a path of somebody's own."""
    if isinstance(process, LLMProcess) and process.image is not None and knows_model(system, program, process.image):
        return process.traits.model
    return ""


def _told(system: System, program: Program, process: Process) -> bool:
    """Whether a row tells all; of what others only see it leaves out what their programs made or were told."""
    return bool(rights_on(system, program, process) & _READ)


# What of a device and its models tells of the work that others have done with them. A confined program gets none of it:
# two of these could tell each other something by it.
_NO_WORK: dict[type[Record], dict[str, Any]] = {
    DeviceInfo: {
        "incarnation": 0,
        "restarts": 0,
        "ready": 0,
        "steps": 0,
        "tokens_computed": 0,
        "tokens_decoded": 0,
        "busy_seconds": 0.0,
    },
    ModelInfo: {
        "frames_free": 0,
        "frames_cached": 0,
        "processes": 0,
        "slots_free": 0,
        "tier_slots_free": [],
        "stretch": 1,
        "lost": 0.0,
        "resident_bytes": 0,
        "faults": 0,
        "pageins": 0,
        "evictions": 0,
    },
}


def _told_to(program: Program, info: _Row) -> _Row:
    return replace(info, **_NO_WORK[type(info)]) if program.confined else info


def process_info(system: System, process: Process, whole: bool) -> ProcessInfo:
    """A row of the process table as a record. Written out: `ps` asks for thousands of them."""
    fields: dict[str, Any] = {
        "pid": process.pid,
        "ppid": process.parent,
        "kind": process.kind,
        "name": process.name,
        "state": process.state,
        "wait": process.wait,
        "started": seconds(process.started - system.started),
        "exit_status": process.exit_status,
        "usage": process.usage(system.now),
        "group": process.group.path,
    }
    if isinstance(process, LLMProcess):
        failed = process.finish is Finish.ERROR and not process.is_zombie()
        fields["errno"], reason = process.failure if failed else (Errno.OK, process.exit_reason)
        fields["reason"] = (process.stop_reason or process.held_up or reason)[:_MOST_REASON]
        frames, image = process.table.frames, process.image
        if process.finish is Finish.CONTEXT and image is not None and not fields["reason"]:
            why = process.bound_by(image, process.device, process.traits.limits)
            fields["reason"] = f"its context is full: {process.context} tokens is {why}"[:_MOST_REASON]
        fields |= {
            "model": process.traits.model,
            "device": process.device.name,
            "sched_class": process.traits.sched_class,
            "nice": process.traits.nice,
            "budget": seconds(process.reserve.budget) if process.reserve is not None else 0.0,
            "period": seconds(process.reserve.period) if process.reserve is not None else 0.0,
            "length": len(process.log),
            "record_bytes": process.records.bytes,
            "cached": process.table.cached,
            "context": process.context,
            "pages": len(frames),
            "shared_pages": sum(image.pool.refs[f] > 1 for f in frames) if image is not None else 0,
            "decoding": process.decoding is not None,
            "finish": process.finish,
            "limits": process.traits.limits,
            "seed": process.traits.sampler.seed,
            "parked": len(process.reading or ()) + len(process.pausing or ()),
            "swapped": sum(block >= len(frames) for block in process.table.kept),
        }
        if not whole:
            fields |= {"seed": 0, "errno": Errno.OK, "reason": "", "name": ""}
        return ProcessInfo(**fields)
    os_pid = system.config.os_pid
    if isinstance(process, Program):
        os_pid, fields["parked"] = process.os_pid, len(process.parked)
    elif isinstance(process, DriverProcess):
        os_pid, fields["device"] = system.devices[process.device].os_pid, process.device
    rss, cpu_seconds = system.figures.get(os_pid, (0, 0.0))
    return ProcessInfo(**fields, os_pid=os_pid, rss=rss, cpu_seconds=cpu_seconds)


def model_info(system: System, program: Program, image: Image, device: str) -> ModelInfo:
    """A model on a device as a record; which processes run it is told of those that the program sees."""
    probed = image.probed
    if probed is None:
        asked = next(iter(image.requested))
        return ModelInfo(image.name, image.path, asked, device, image.shown_state, image.progress)
    if program.confined:
        mine = [pid for pid, process in image.users.items() if rights_on(system, program, process)]
    else:
        view = system.table.view(program.owner, everybody=system.config.show_all)
        mine = [pid for pid in image.users if pid in view]
    info = row(
        ModelInfo,
        image,
        image.thrash,
        probed,
        device=device,
        state=image.shown_state,
        progress=1.0 if image.state == RESIDENT else image.progress,
        weight_bytes=image.weight_bytes or probed.weight_bytes,
        context=image.context or probed.context,
        frames=image.pool.count,
        frames_free=image.pool.free,
        frames_cached=image.pool.cached,
        processes=len(image.users),
        slots=image.swap.total,
        slots_free=image.swap.free,
        tier_slots=image.swap.counts,
        tier_slots_free=image.swap.frees,
        resident_bytes=image.allotted if image.state == RESIDENT else 0,
        mapped_by=sorted(mine)[:MAX_MAPPED],
    )
    return _told_to(program, info)


def device_info(device: Device, program: Program) -> DeviceInfo:
    """A device as a record. What a driver said may be about anybody's work, and is told the operator."""
    error = device.error if told_all(program) or not device.error else "it is down; the operator's log says why"
    info = row(
        DeviceInfo,
        device,
        device.hello,
        kind=device.config.kind,
        pid=device.process.pid,
        policy=device.queue.policy.name,
        ready=sum(map(len, device.queues)),
        tokens_computed=device.computed,
        tokens_decoded=device.decoded,
        busy_seconds=seconds(device.busy),
        error=error,
    )
    return _told_to(program, info)

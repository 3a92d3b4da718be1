"""The kernel's tables as programs see them: getinfo ps, and rows of others. A row becomes a record, cf. Linux's
fs/proc/array.c."""

from __future__ import annotations

from typing import Any

from llmasos.drivers.protocol import BLOCK_TOKENS
from llmasos.kernel.clock import seconds
from llmasos.kernel.objects.device import Device
from llmasos.kernel.objects.image import RESIDENT, Image
from llmasos.kernel.objects.process import DriverProcess, LLMProcess, Process, Program
from llmasos.kernel.objects.request import Request
from llmasos.kernel.state import System
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.limits import MAX_MAPPED
from llmasos.syscalls.records import DeviceInfo, Finish, ModelInfo, ProcessInfo
from llmasos.syscalls.table import Getinfo, Ps

_MOST_REASON = 400  # characters of a reason in a row


def getinfo(system: System, request: Request, call: Getinfo, process: Process) -> ProcessInfo:
    """Row 26 of the table, `Getinfo`."""
    return process_info(system, process)


def ps(system: System, request: Request, call: Ps) -> list[ProcessInfo]:
    """Row 27 of the table, `Ps`."""
    return [process_info(system, process) for process in system.table.after(call.after, call.limit)]


def process_info(system: System, process: Process) -> ProcessInfo:
    """A row of the process table as a record."""
    fields: dict[str, Any] = {
        "pid": process.pid,
        "ppid": process.owner,
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
        fields["reason"] = (process.stop_reason or reason)[:_MOST_REASON]
        frames, image = process.table.frames, process.image
        fields |= {
            "model": process.traits.model,
            "device": process.device.name,
            "sched_class": process.traits.sched_class,
            "nice": process.traits.nice,
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
            "parked": len(process.output) + len(process.boundary),
            "swapped": sum(block >= len(frames) for block in process.table.kept),
        }
    elif isinstance(process, Program | DriverProcess):
        if isinstance(process, Program):
            os_pid = process.os_pid
            fields["parked"] = len(process.parked)
        else:
            os_pid = system.devices[process.device].os_pid
            fields["device"] = process.device
        rss, cpu_seconds = system.figures.get(os_pid, (0, 0.0))
        fields |= {"os_pid": os_pid, "rss": rss, "cpu_seconds": cpu_seconds}
    else:
        rss, cpu_seconds = system.figures.get(system.config.os_pid, (0, 0.0))
        fields |= {"os_pid": system.config.os_pid, "rss": rss, "cpu_seconds": cpu_seconds}
    return ProcessInfo(**fields)


def model_info(image: Image, device: str) -> ModelInfo:
    """A model on a device as a record."""
    probed = image.probed
    if probed is None:
        asked = next(iter(image.requested))
        return ModelInfo(image.name, image.path, asked, device, image.shown_state, image.progress)
    return ModelInfo(
        name=image.name,
        path=image.path,
        dtype=image.dtype,
        device=device,
        state=image.shown_state,
        progress=1.0 if image.state == RESIDENT else image.progress,
        architecture=probed.architecture,
        parameters=probed.parameters,
        weight_bytes=image.weight_bytes or probed.weight_bytes,
        vocab=probed.vocab,
        context=image.context or probed.context,
        layers=probed.layers,
        block_tokens=BLOCK_TOKENS,
        block_bytes=probed.block_bytes,
        frames=image.pool.count,
        frames_free=image.pool.free,
        frames_cached=image.pool.cached,
        processes=len(image.users),
        eos_ids=probed.eos_ids,
        sampling=probed.sampling,
        stored=probed.stored,
        slots=image.swap.total,
        slots_free=image.swap.free,
        stretch=image.thrash.stretch,
        lost=image.thrash.lost,
        resident_bytes=image.allotted if image.state == RESIDENT else 0,
        mapped_by=sorted(image.users)[:MAX_MAPPED],
        faults=image.faults,
        pageins=image.pageins,
        evictions=image.evictions,
        pinned=image.pinned,
    )


def device_info(device: Device) -> DeviceInfo:
    """A device as a record."""
    hello = device.hello
    return DeviceInfo(
        name=device.name,
        kind=device.config.kind,
        state=device.state,
        description=hello.description if hello else "",
        pid=device.process.pid,
        os_pid=device.os_pid,
        incarnation=device.incarnation,
        restarts=device.restarts,
        tiers=hello.tiers if hello else [],
        architectures=hello.architectures if hello else [],
        dtypes=hello.dtypes if hello else [],
        features=hello.features if hello else [],
        policy=device.queue.policy.name,
        max_runs=device.max_runs,
        step_tokens=device.step_tokens,
        ready=len(device.queue),
        steps=device.steps,
        tokens_computed=device.computed,
        tokens_decoded=device.decoded,
        busy_seconds=seconds(device.busy),
        kv_bytes=device.kv_bytes,
        error=device.error,
        weight_bytes=device.weight_bytes,
    )

"""Marks: what must be brought up to date at the end of the event. A mark is cheap, and harmless if made twice.

Handlers change facts and make marks. States, waiting and places in queues follow from the facts, and are brought up to
date by reconciling alone (core.py).
"""

from __future__ import annotations

from llmasos.kernel.objects.device import Device
from llmasos.kernel.objects.image import EVICTED, Image
from llmasos.kernel.objects.process import LLMProcess, Process
from llmasos.kernel.state import System
from llmasos.kernel.wait import wake


def changed(system: System, process: Process) -> None:
    """The journal's record of a process is out of date (kernel/journal/recorder.py), and its state may be another."""
    if process.pid in system.table:
        system.table.changed[process.pid] = system.stale[process.pid] = process


def stale(system: System, process: Process) -> None:
    """The state of a process may be another, for a reason that the journal does not record."""
    system.stale[process.pid] = process


def grew(system: System, process: LLMProcess) -> None:
    """The log of a process has other tokens at its end: its readers, its state and the journal want to know."""
    system.journal.grew(process)
    process.charge_log()
    system.stale[process.pid] = process
    wake(system, process.reading)


def dirty(system: System, device: Device) -> None:
    """Something has changed that may let the device run its next step."""
    system.pumped[device.name] = device


def freed(system: System) -> None:
    """Frames have become free that somebody waits for, on this device or, in a group, on another."""
    for device in system.devices.values():
        if any(image.starved for image in device.images.values()):
            dirty(system, device)


def want(system: System, device: Device, image: Image) -> None:
    """Somebody wants an image whose weights are not there; paging.py decides when they come."""
    if image.state == EVICTED and image.wanted_since is None:
        image.wanted_since = system.now
    dirty(system, device)


def cancel_outs(system: System, device: Device, *, pid: int = 0, image: int = 0) -> None:
    """Frames of a process, or of an image, that are yet to be moved out stay where they are."""
    if device.outs:
        device.outs = [move for move in device.outs if move.ctx != pid and move.image != image]
        if not device.outs:
            wake(system, device.swapped_out)

"""What a change leaves to be done at the end of the event: marks, each cheap to make and harmless to make twice."""

from __future__ import annotations

from llmasos.kernel.objects.device import Device
from llmasos.kernel.objects.image import EVICTED, Image
from llmasos.kernel.objects.process import Process
from llmasos.kernel.state import System


def touch(system: System, process: Process) -> None:
    """What the journal keeps of a process has changed (kernel/journal/recorder.py)."""
    if process.pid in system.table:
        system.table.changed[process.pid] = process


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

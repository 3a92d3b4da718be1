"""The partition: turns of a device for its owners, as separation kernels and ARINC 653 give time to their partitions.

Time is cut into turns of one length, the parts have them one after the other, and a step of a part begins with its turn
or not at all: so when it begins depends on nobody else. What a part does not use is lost. A step that ends after its turn
takes from the next part's, and the log says so: the turns are too short then.
"""

from __future__ import annotations

from llmasos.kernel.clock import nanoseconds, seconds
from llmasos.kernel.marks import dirty
from llmasos.kernel.objects.device import Device, InFlight
from llmasos.kernel.state import System

_LATE = 8  # a step begins within this part of a turn, as precisely as the machine wakes up


def begins(system: System, device: Device) -> bool:
    """Whether a step may begin now, and then of the part whose turn it is. Without a partition always."""
    parts = len(device.queues)
    if parts == 1:
        return True
    length = nanoseconds(system.config.partition.turn)
    turn, passed = divmod(system.uptime, length)
    wanted = any(device.queues) or any(image.starved for image in device.images.values())
    if wanted and (device.turns is None or device.turns.kind is None):
        device.turns = system.timers.at(system.now + length - passed, dirty, device)
    if turn == device.turn or passed > length // _LATE:
        return False
    device.part = turn % parts
    return True


def began(system: System, device: Device) -> None:
    """A step has begun: the turn is used. One in which nothing could run yet stays open, or a call that comes early in it
    would notice whether others had made the kernel look here before."""
    if len(device.queues) > 1:
        device.turn = system.uptime // nanoseconds(system.config.partition.turn)


def check_turn(system: System, device: Device, flight: InFlight, duration: int) -> None:
    """Say so if a step ended after its turn."""
    length = nanoseconds(system.config.partition.turn)
    end = (flight.began - system.now + system.uptime) % length + duration
    if end > length and not device.overran:
        device.overran = True
        system.log(
            "error",
            f"{device.name}: a step ended {seconds(end):.3g} s after its turn had begun, and a turn of the partition has "
            f"{seconds(length):g} s: owners feel each other so; give longer turns, or steps of "
            "fewer tokens (step_tokens)",
        )

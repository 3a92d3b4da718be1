"""The partition: turns of a device for its owners, as separation kernels and ARINC 653 give time to their partitions.

Time is cut into turns of one length, the parts have them one after the other, and a step of a part begins with its turn
or not at all: so when it begins depends on nobody else. What a part does not use is lost. A step that takes longer than a
turn takes from the next part's, and the log says so: the turns are too short then.
"""

from __future__ import annotations

from llmasos.kernel.clock import nanoseconds, seconds
from llmasos.kernel.marks import dirty
from llmasos.kernel.objects.device import Device
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
    device.part, device.turn = turn % parts, turn
    return True


def check_turn(system: System, device: Device, duration: int) -> None:
    """Say so if a step took longer than a turn."""
    length = nanoseconds(system.config.partition.turn)
    if duration > length and not device.overran:
        device.overran = True
        system.log(
            "error",
            f"{device.name}: a step took {seconds(duration):.3g} s, a turn of the partition has {seconds(length):g} s: "
            "owners feel each other so; give longer turns, or steps of fewer tokens (step_tokens)",
        )

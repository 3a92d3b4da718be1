"""The kernel's state machine with a second tier, which is soon full or loses what it is given."""

from __future__ import annotations

from llmasos.simulator import slots
from tests.kernel.machines.core import Core


class Swapping(Core):
    """The whole state machine of the kernel, with a second tier that is soon full."""

    options = {"context": "128", "swap": slots(10)}
    config = {"victims": "lru"}

    def teardown(self) -> None:
        super().teardown()
        for device in self.sim.kernel.devices.values():
            assert not device.outs
            for image in device.images.values():
                assert image.swap.free == image.swap.total, "places were lost"


class SwappingBadly(Swapping):
    """A tier that loses some of what it is given, and cannot take some."""

    options = {"context": "128", "swap": slots(40), "lose_every": "5", "unwritten_every": "7"}
    config = {"victims": "clock"}


class SwappingAndGuessing(Swapping):
    options = {"context": "128", "swap": slots(40), "guess_rows": "9"}
    config = {"victims": "fifo"}

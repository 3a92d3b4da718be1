"""A simulated device: declared size and speed, verified KV frames, deterministic tokens; no torch, no numpy.

`python -m llmasos.drivers.host sim` runs it as a real driver whose steps take as long as modelled; the simulator of the
kernel runs the same device in virtual time. Options: spec.py; costs: roofline.py; tokens: tokens.py; frames: memory.py;
runs: running.py; the table of callbacks: device.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from llmasos.drivers.device import Device
from llmasos.drivers.sim import script
from llmasos.drivers.sim.device import SimDevice
from llmasos.drivers.sim.spec import parse


def open_device(texts: Mapping[str, str]) -> Device:
    """The device that the options describe. Raises EINVAL for one that is off, by name, and what reading a script
    raises."""
    spec, models = parse(texts)
    if models.script:
        script.load(models.script)
    return SimDevice(spec, models)

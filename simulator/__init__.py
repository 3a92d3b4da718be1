"""The kernel core in virtual time: what runs here is the kernel, its devices and its clock are simulated.

Teaching and tests use it. The running kernel never imports it; what must hold of the kernel
after every event is recounted here (invariants.py).
"""

from llmasos.simulator.driver import DISK_SECONDS
from llmasos.simulator.program import Future, Prog
from llmasos.simulator.simulation import KernelKilled, Simulation, simulate
from llmasos.simulator.small import FRAME_BYTES, slots, small_config

__all__ = [
    "DISK_SECONDS",
    "FRAME_BYTES",
    "Future",
    "KernelKilled",
    "Prog",
    "Simulation",
    "simulate",
    "slots",
    "small_config",
]

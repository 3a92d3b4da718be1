"""The kernel core in virtual time: what runs here is the kernel, its devices and its clock are simulated.

    sim = simulate(max_runs=1, policy="round_robin", record=True)
    program = sim.program()
    pids = [program.call(Spawn("sim", [1, 2, 3])) for _ in range(3)]
    for future in [program.start(Decode(pid, 40)) for pid in pids]:
        sim.run_until(lambda: future.done)
    print(gantt(sim).text())

For teaching and tests: docs/simulator.md. The running kernel never imports it; what must hold of the kernel after every
event is recounted here (invariants.py).
"""

from llmasos.kernel.edge.guards import PolicyFault
from llmasos.simulator.chart import Gantt, gantt
from llmasos.simulator.driver import DISK_SECONDS
from llmasos.simulator.program import Future, Prog
from llmasos.simulator.simulation import KernelKilled, Simulation, simulate
from llmasos.simulator.small import FRAME_BYTES, slots, small_config

__all__ = [
    "DISK_SECONDS",
    "FRAME_BYTES",
    "Future",
    "Gantt",
    "KernelKilled",
    "PolicyFault",
    "Prog",
    "Simulation",
    "gantt",
    "simulate",
    "slots",
    "small_config",
]

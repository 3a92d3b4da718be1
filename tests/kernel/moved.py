"""A process that is moved to another device, or to a file and back, and what tests of that ask."""

from __future__ import annotations

from typing import Any

import pytest

from llmasos.kernel.objects.process import LLMProcess
from llmasos.simulator import Prog, Simulation
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.records import Sampler
from llmasos.syscalls.table import Decode, Spawn

PROMPT = list(range(40))
SAMPLERS = [Sampler(seed=7), Sampler(temperature=1.0, top_k=20, seed=11, repetition_penalty=1.3)]


def row(sim: Simulation, pid: int) -> LLMProcess:
    return sim.kernel.table.llm(pid)


def said(sim: Simulation) -> str:
    return "\n".join(f"{line.level}: {line.text}" for line in sim.log)


def spawn(sim: Simulation, program: Prog, tokens: list[int] | None = None, **more: Any) -> int:
    pid = program.call(Spawn("sim", tokens=PROMPT if tokens is None else tokens, **more))
    sim.run_idle()
    return pid


def refused(program: Prog, call: Any) -> SyscallError:
    with pytest.raises(SyscallError) as caught:
        program.call(call)
    return caught.value


def on_its_way(sim: Simulation, pid: int, device: str = "sim1") -> bool:
    """Whether frames wait there for its KV."""
    return any(image.imports[pid].frames for image in sim.kernel.devices[device].images.values() if pid in image.imports)


def whole(sim: Simulation, program: Prog, pid: int, log: list[int], count: int = 30) -> None:
    """It decodes what the model's definition says comes after `log`."""
    assert program.call(Decode(pid, count)).tokens == sim.continuation(log, count, row(sim, pid).traits.sampler)

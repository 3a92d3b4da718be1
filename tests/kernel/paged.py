"""Models that do not fit together in a simulated device's memory, and what tests of them ask."""

from __future__ import annotations

from typing import Any

import pytest

from llmasos.kernel.objects.image import Image
from llmasos.simulator import Future, Prog, Simulation, simulate
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import ModelInfo
from llmasos.syscalls.table import (
    Decode,
    Models,
    Spawn,
)

PROMPT = list(range(40))
MB = 1_000_000  # "sim:1m" has two of them
ONE = 3 * MB  # room for one of 2 MB
SLOW = {"link": "2e7"}  # such a one is paged in within a tenth of a second


def memory(room: int = ONE, **more: Any) -> Simulation:
    config = {name: more.pop(name) for name in ("evictions", "restart_first") if name in more}
    return simulate(512, weight_bytes=room, options={**SLOW, "context": "8192", **more}, **config)


def row(program: Prog, name: str) -> ModelInfo:
    return next(model for model in program.call(Models()) if model.name == name)


def image(sim: Simulation, name: str) -> Image:
    device = sim.kernel.devices["sim0"]
    return next(image for image in device.images.values() if image.name == name)


def spawn(program: Prog, name: str, tokens: list[int] = PROMPT, **more: Any) -> int:
    return program.call(Spawn(name, tokens=tokens, **more))


def refused(program: Prog, call: Any) -> tuple[Errno, str]:
    with pytest.raises(SyscallError) as error:
        program.call(call)
    return error.value.errno, error.value.reason


def decode(program: Prog, pid: int, count: int) -> Future[Any]:
    return program.start(Decode(pid, count))


def said(sim: Simulation) -> str:
    return "\n".join(line.text for line in sim.log)

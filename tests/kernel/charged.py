"""Processes in groups, and what tests of groups ask."""

from __future__ import annotations

from typing import Any

import pytest

from llmasos.kernel.objects.process import LLMProcess
from llmasos.simulator import FRAME_BYTES, Prog, Simulation
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.records import (
    GroupInfo,
    GroupSettings,
    Sampler,
)
from llmasos.syscalls.table import (
    GroupCreate,
    GroupStat,
    Spawn,
)

PROMPT = list(range(40))  # three frames


def row(sim: Simulation, pid: int) -> LLMProcess:
    return sim.kernel.table.llm(pid)


def stat(program: Prog, path: str) -> GroupInfo:
    (info,) = program.call(GroupStat(path))
    return info


def group(program: Prog, path: str, **settings: Any) -> str:
    program.call(GroupCreate(path, GroupSettings(**settings)))
    return path


def spawn(program: Prog, path: str, first: int = 0, prompt: list[int] = PROMPT, **more: Any) -> int:
    return program.call(Spawn("sim", tokens=[first, *prompt[1:]], sampler=Sampler(), group=path, **more))


def refused(program: Prog, call: Any) -> SyscallError:
    with pytest.raises(SyscallError) as caught:
        program.call(call)
    return caught.value


def frames(count: int) -> int:
    return count * FRAME_BYTES

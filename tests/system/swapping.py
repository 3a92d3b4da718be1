"""A driver with room for few contexts and a lower tier, and agents that take turns in it."""

from __future__ import annotations

from pathlib import Path

from llmasos.syscalls.table import Decode
from llmasos.userland.sdk.system import Process, System

BLOCK_BYTES = 24_576  # of the KV in fp32 of a model whose tokens take longer to compute than to move: one of torch's
PROMPT = 200

AGENTS, TURNS, DECODED = 4, 3, 6


def agents(system: System, model: Path) -> list[Process]:
    return [
        system.spawn(str(model), [(7 * i + j * j) % 251 for j in range(PROMPT)], dtype="fp32", name=f"a{i}")
        for i in range(AGENTS)
    ]


def turns(system: System, processes: list[Process]) -> list[list[int]]:
    """What each says in `TURNS` turns, one after the other."""
    said: list[list[int]] = [[] for _ in processes]
    for _ in range(TURNS):
        for process, tokens in zip(processes, said, strict=True):
            tokens += system(Decode(process.pid, DECODED)).tokens
    return said


def end(processes: list[Process]) -> None:
    for process in processes:
        process.end()

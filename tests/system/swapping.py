"""A driver with room for few contexts and a lower tier, and agents that take turns in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmasos.syscalls.table import Decode
from llmasos.userland.sdk.system import Process, System

BLOCK_BYTES = 81_920  # of the KV of MODEL in fp32
MODEL = Path("tiny")
FAULTS = Path(__file__).parent / "faults"
PROMPT = 200

AGENTS, TURNS, DECODED = 4, 3, 6


@contextmanager
def little_memory(swap: Path, plan: Path | None = None) -> Iterator[System]:
    """A system with KV memory for about one agent and a half, in which swapping always pays. Faults of its swap file are
    in the file `plan` (tests/system/faults)."""
    device = f"cpu:threads=1,image_kv_bytes={22 * BLOCK_BYTES},swapdir={swap}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMASOS_SWAP_PAYS", "1")
        patch.setenv("PYTHONPATH", os.fspath(FAULTS), prepend=os.pathsep)
        if plan is not None:
            patch.setenv("LLMASOS_FAULTS", os.fspath(plan))
        with System.connect(boot=True, flags=["--device", device]) as system:
            yield system


def agents(system: System) -> list[Process]:
    return [
        system.spawn(str(MODEL), [(7 * i + j * j) % 251 for j in range(PROMPT)], dtype="fp32", name=f"a{i}")
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

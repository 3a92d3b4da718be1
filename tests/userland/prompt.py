"""A person at the shell's prompt, in a terminal of their own."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from llmasos.syscalls.blocking import Client
from llmasos.syscalls.records import ProcessInfo, State
from llmasos.syscalls.table import BootInfoCall, Kill
from llmasos.userland.programs import ps
from tests.booted import eventually
from tests.userland.terminal import Terminal

PROMPT = "llmasos>"
WIDTHS = pytest.mark.parametrize("columns", [60, 80, 200])
STORY = "Tell me a long story about a whale."
ATTEMPTS = 5  # at catching an answer in its midst: one may have ended before the test was given the processor again


def terminal(where: Path, home: Path, *words: str, columns: int = 100, **environment: str) -> Terminal:
    """`llmasos` with some words (none: `shell`) in a terminal, for somebody whose history and log are in `home`."""
    return Terminal(
        [sys.executable, "-m", "llmasos", *(words or ["shell"])],
        {"LLMASOS_RUNTIME": str(where), "XDG_STATE_HOME": str(home), "PYTHONWARNINGS": "ignore", **environment},
        columns=columns,
    )


def living(kernel: Client, name: str) -> list[ProcessInfo]:
    """The processes of a name that have not exited."""
    return ps.processes(kernel, lambda row: row.name == name and row.state is not State.ZOMBIE)


def pid_of(kernel: Client, name: str) -> int:
    (row,) = living(kernel, name)
    return row.pid


def spawned(shell: Terminal, name: str) -> None:
    shell.enter(f"spawn {name}")
    shell.expect(f"{name} on tiny")
    shell.expect(PROMPT)


@contextmanager
def speaking(shell: Terminal, kernel: Client, name: str, line: str) -> Iterator[int]:
    """Have `line` typed, which makes the agent NAME speak. Within this it speaks for as long as a test likes: the driver
    is stopped in the midst of its answer. Gives its pid."""
    driver = kernel(BootInfoCall()).devices[0].os_pid

    def begun(before: int) -> bool:
        return any(row.decoding or row.usage.decoded > before for row in living(kernel, name))

    try:
        for _ in range(ATTEMPTS):
            before = sum(row.usage.decoded for row in living(kernel, name))
            shell.enter(line.replace("NAME", name))
            eventually(partial(begun, before), "it speaks", pause=0.001)
            os.kill(driver, signal.SIGSTOP)
            rows = living(kernel, name)
            if rows[-1].decoding:
                yield rows[-1].pid
                return
            os.kill(driver, signal.SIGCONT)
            shell.expect(PROMPT)
            for row in rows if line.startswith("spawn") else []:
                kernel(Kill(row.pid))
        raise AssertionError(f"it was never caught in its midst, in {ATTEMPTS} attempts")
    finally:
        os.kill(driver, signal.SIGCONT)

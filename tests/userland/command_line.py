"""The command as a user types it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.userland.terminal import Terminal

DEADLINE = 240.0  # generous: the machine may be busy


def llmasos(
    where: Path, *words: str, typed: str | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command line against a runtime directory, without a terminal."""
    environment = {**os.environ, "LLMASOS_RUNTIME": str(where)}
    return subprocess.run(
        [sys.executable, "-m", "llmasos", *words],
        env=environment,
        input=typed,
        stdin=subprocess.DEVNULL if typed is None else None,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        cwd=cwd,
    )


def script(where: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    """Pipe lines into a shell."""
    return llmasos(where, "shell", typed="\n".join(lines))


def on_terminal(where: Path, columns: int, *words: str) -> tuple[list[str], int]:
    """The lines that a command line prints in a terminal, and its exit status."""
    command = [sys.executable, "-m", "llmasos", *words]
    with Terminal(command, {"LLMASOS_RUNTIME": str(where)}, columns=columns) as terminal:
        status = terminal.wait()
        return terminal.screen.splitlines(), status

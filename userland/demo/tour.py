"""The guided tour's main program: boot a kernel of its own, play the acts, and check that nothing is left behind."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.table import BootInfoCall
from llmasos.userland.demo.acts import ACTS, Company
from llmasos.userland.demo.stage import ClaimFailed, Stage
from llmasos.userland.programs.figures import duration
from llmasos.userland.programs.screen import Screen
from llmasos.userland.sdk.system import System

GONE_SECONDS = 15.0


def main(where: Path | None, *, fast: bool) -> int:
    """Play the tour on the kernel of `where`, or on one of its own; returns 0 if all its claims hold."""
    screen = Screen()
    stage = Stage(screen, fast=fast)
    began = time.monotonic()
    screen.line("LLMasOS, a guided tour. Everything you see is done now, on this machine, and checked.", "bold")
    try:
        if where is not None:
            with System.connect(where, name="demo") as system:
                _play(stage, system)
        else:
            _play_alone(stage)
    except ClaimFailed as failure:
        screen.error(f"llmasos demo: this does not hold here: {failure}")
        return 1
    except SyscallError as error:
        screen.error(f"llmasos demo: the tour ended early: {error}")
        return 1
    screen.line()
    screen.line(f"{stage.claims} claims checked, all hold ({duration(time.monotonic() - began)}).", "bold green")
    screen.line("Now try it yourself: `llmasos` opens the shell, `help` lists its commands.")
    return 0


def _play(stage: Stage, system: System) -> None:
    company = Company(system)
    for act in ACTS:
        act(stage, company)


def _play_alone(stage: Stage) -> None:
    """The tour on a kernel of its own, after which none of its processes and files may be left."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmasos-demo-")))
        with System.connect(place, boot=True, name="demo") as system:
            boot = system(BootInfoCall())
            _play(stage, system)
            drivers = [device.os_pid for device in system(BootInfoCall()).devices if device.os_pid]
        pids = [boot.os_pid, *drivers]
        deadline = time.monotonic() + GONE_SECONDS
        while any(map(_alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.05)
        left = [pid for pid in pids if _alive(pid)]
        files = sorted(path.name for path in place.iterdir()) if place.exists() else []
        stage.claim(
            not left and not files,
            "the kernel has halted; no process and no file of it is left",
            f"processes {left}, files {files}",
        )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    sys.exit(main(None, fast=True))

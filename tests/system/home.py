"""A user of a machine of their own, with a kernel that stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from llmasos.syscalls import blocking, runtime
from llmasos.syscalls.table import Spawn
from llmasos.userland.programs.power import halt
from tests.booted import PATIENCE, eventually, is_gone


class Home:
    """A user of a machine of their own: where the kernel's files go, and what is typed."""

    def __init__(self, base: Path) -> None:
        self.run, self.state = base / "run", base / "state"
        self.run.mkdir(mode=0o700)
        drop = ("LLMASOS_RUNTIME", "XDG_SESSION_ID")
        self.environment = {name: value for name, value in os.environ.items() if name not in drop} | {
            "XDG_RUNTIME_DIR": str(self.run),
            "XDG_STATE_HOME": str(self.state),
            "XDG_CONFIG_HOME": str(base / "config"),
        }
        self.place = self.run / "llmasos"
        config = base / "config" / "llmasos"
        config.mkdir(parents=True)
        self.config = config / "kernel.toml"
        self.config.write_text('[[device]]\nkind = "sim"\noptions = { time_scale = 0, eos_every = 100000 }\n')

    def type(self, *words: str, stdin: str = "", status: int | None = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "llmasos", *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=self.environment,
            check=False,
        )
        assert status is None or done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def status(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.type("status", "--json").stdout)
        return told

    @contextmanager
    def connect(self) -> Iterator[blocking.Client]:
        with blocking.connect(self.place, name="test", timeout=PATIENCE) as kernel:
            yield kernel

    def processes(self) -> list[psutil.Process]:
        holder = runtime.holder(self.place)
        assert holder
        kernel = psutil.Process(holder)
        return [kernel, *kernel.children(recursive=True)]

    def kill(self, *numbers: signal.Signals) -> None:
        """Signals, in order, to the kernel and all that it has started, until none of it is there."""
        victims = self.processes()
        for number in numbers:
            for victim in victims:
                with suppress(psutil.NoSuchProcess):
                    victim.send_signal(number)
            time.sleep(0.2)  # what a shutting-down system leaves them
        eventually(lambda: all(is_gone(victim) for victim in victims), "the kernel and its drivers are gone")

    def end(self) -> None:
        if runtime.holder(self.place) is not None:
            halt(self.place)


def born(kernel: blocking.Client, name: str = "alice") -> int:
    return kernel(Spawn("sim", [1, 2, 3], name=name, detached=True), timeout=PATIENCE)

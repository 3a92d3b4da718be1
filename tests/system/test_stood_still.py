"""Time in which the kernel does not run is nobody's fault."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from llmasos.syscalls.table import BootInfoCall, Decode, Dmesg, Spawn
from tests.booted import PATIENCE, booted, eventually

pytestmark = pytest.mark.processes

HANG = 2.0  # seconds; heartbeats come four times as often


def test_a_driver_is_not_killed_for_the_time_that_the_kernel_stood_still(tmp_path: Path) -> None:
    (tmp_path / "kernel.toml").write_text(f"[kernel]\nhang_seconds = {HANG}\n")
    words = ["--config", os.fspath(tmp_path / "kernel.toml"), "--device", "sim:overhead=0.2"]
    with booted(*words) as kernel, kernel.connect() as program:
        pid = program(Spawn("sim:1b", [1, 2, 3]), timeout=PATIENCE)
        program(Decode(pid, 60, wait=False))  # twelve seconds
        for stop in (1.5 * HANG, 3 * HANG):
            os.kill(kernel.pid, signal.SIGSTOP)
            time.sleep(stop)
            os.kill(kernel.pid, signal.SIGCONT)
            time.sleep(0.5)
        eventually(lambda: program(BootInfoCall()).devices[0].state == "up", "the driver is there")
        assert [device.restarts for device in program(BootInfoCall()).devices] == [0]
        assert not any("died" in line.text for line in program(Dmesg()))

"""A lasting system that nobody uses sleeps: counted are the times that a thread of kernel or driver was woken, not the
time that this takes."""

from __future__ import annotations

import time

import psutil
import pytest

from benchmarks.idle import SETTLE_SECONDS, wake_ups
from llmasos.syscalls.records import Kind
from llmasos.syscalls.table import Decode, Ps, Spawn
from tests.booted import PATIENCE, booted

pytestmark = pytest.mark.processes

WATCHED = 20.0  # seconds, in which two wake-ups a minute are less than one


def test_kernel_and_driver_wake_at_most_twice_a_minute_when_nobody_is_there() -> None:
    with booted("--device", "cpu:threads=2") as kernel:
        with kernel.connect() as program:
            pid = program(Spawn("tiny", [1, 2, 3], name="alice", detached=True), timeout=PATIENCE)
            assert len(program(Decode(pid, 8), timeout=PATIENCE).tokens) > 0
        both = kernel.descendants()
        assert len(both) >= 2
        time.sleep(SETTLE_SECONDS)
        before = wake_ups(both)
        assert before > 0
        time.sleep(WATCHED)
        assert wake_ups(both) - before <= 1
        with kernel.connect() as program:  # and it is there at once
            assert [row.name for row in program(Ps()) if row.kind is Kind.LLM] == ["alice"]
            assert len(program(Decode(pid, 8), timeout=PATIENCE).tokens) > 0
        assert all(isinstance(process, psutil.Process) and process.is_running() for process in both)

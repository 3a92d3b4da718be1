"""The switches of the tests reach the processes that tests start, and not those that tests run in."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llmasos.drivers import hal
from llmasos.syscalls import runtime

SAYS = "import sys; from llmasos.drivers import hal; print(sys.flags.optimize, int(hal.cpu().bf16))"


def test_asserts_of_the_tests_hold() -> None:
    assert sys.flags.optimize == 0


@pytest.mark.processes
def test_processes_that_tests_start_have_the_switches(pytestconfig: pytest.Config) -> None:
    command = [sys.executable, "-P", "-c", SAYS]
    done = subprocess.run(command, env=runtime.environment(), capture_output=True, text=True, timeout=60, check=True)
    optimised, bf16 = map(int, done.stdout.split())
    assert optimised == int(pytestconfig.option.optimised)
    assert bf16 == int(hal.cpu().bf16)
    if wanted := pytestconfig.option.default_dtype:
        assert bf16 == (wanted == "bf16")

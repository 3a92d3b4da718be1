"""A home that cannot be written, as in a read-only container: the system works, and says what it does without."""

from __future__ import annotations

import pytest

from llmasos.syscalls.table import Dmesg
from llmasos.userland.sdk.system import System


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_a_home_that_cannot_be_written_costs_swap_and_nothing_else(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setenv("HOME", "/dev/null/nobody")  # also root can make nothing there
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "LLMASOS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    with System.connect(boot=True, flags=["--device", f"cpu:threads=1,dtype={dtype}"]) as system:
        assert "Ada" in system.spawn().ask("My name is Ada.")
        log = "\n".join(line.text for line in system(Dmesg()))
        assert "no swap: " in log
        if dtype == "int8":
            assert "cannot be kept in /dev/null/nobody" in log

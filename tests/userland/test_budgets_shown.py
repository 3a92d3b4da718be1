"""How `stats` shows what programs make the kernel spend."""

from __future__ import annotations

from llmasos.syscalls.budgets import PARKED, RECEIVED, TRACERS
from llmasos.userland.programs.system import _spent


def test_a_budget_is_shown_with_the_largest_user_and_what_was_refused() -> None:
    assert _spent(TRACERS.told(0, 0, 0)) == "0 of 64"
    assert _spent(PARKED.told(30, 2, 20)) == "30 of 131,072; the largest 20 of 4,096; 2 refused"
    assert _spent(RECEIVED.told(3 << 20, 0, 1 << 20)) == "3.0 MiB of 256 MiB; the largest 1.0 MiB of 8.0 MiB"

"""A short run of the chaos that `python -m tests.kernel.chaos` lets go on for an hour of virtual time."""

from __future__ import annotations

import pytest

from tests.kernel.chaos import Chaos

pytestmark = pytest.mark.long


def test_nothing_is_lost_and_nobody_starves() -> None:
    chaos = Chaos(1, processes=400)
    for _ in range(10):
        chaos.run(1.0, report=float("inf"))
        chaos.look()
    assert chaos.sim.kernel.counters["moved_in"] > 100, "it was too quiet to tell"
    assert chaos.sim.kernel.counters["preemptions"] > 100
    assert chaos.worst > 0, "somebody has waited"
    chaos.end()


def test_nor_where_models_do_not_fit_together_and_page_ins_fail() -> None:
    chaos = Chaos(
        3,
        processes=120,
        models=["sim", "sim:1.5m", "sim:2m", "sim:1.2m"],
        options={"link": "2e9", "fail_load_every": "7"},
        config={"weight_bytes": 5_000_000, "weight_quantum": 0.05, "evictions": "cost"},
        deaths=0.0005,
    )
    for _ in range(6):
        chaos.run(1.0, report=float("inf"))
        chaos.look()
    assert chaos.sim.kernel.counters["evictions"] > 100, "it was too quiet to tell"
    assert chaos.sim.kernel.counters["faults"] > 100
    assert chaos.longest > 0, "somebody has waited for weights"
    chaos.end()

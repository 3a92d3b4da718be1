"""A short run of the chaos that `python -m tests.kernel.chaos` lets go on for an hour of virtual time."""

from __future__ import annotations

import pytest

from tests.kernel.chaos import Chaos


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_lost_and_nobody_starves(seed: int) -> None:
    chaos = Chaos(seed, processes=400)
    chaos.run(25.0, report=float("inf"))
    assert chaos.sim.kernel.counters["moved_in"] > 100, "it was too quiet to tell"
    assert chaos.sim.kernel.counters["preemptions"] > 100
    chaos.end()

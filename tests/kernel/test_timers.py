"""Timers go off when they are due, each once, in order of time; those of one moment as they were set."""

from __future__ import annotations

import random
from typing import Any

import pytest

from llmasos.kernel.clock import SECOND, seconds
from llmasos.kernel.core import Kernel
from llmasos.kernel.events import Action, KernelConfig
from llmasos.kernel.timers import Timer, Timers
from llmasos.simulator import simulate


@pytest.mark.parametrize("seed", range(4))
def test_what_goes_off_is_what_a_sorted_list_says(seed: int) -> None:
    dice, timers = random.Random(seed), Timers()
    gone: list[int] = []
    waiting: dict[int, tuple[int, int, Timer]] = {}  # name -> moment, order, timer
    now = 0
    for name in range(400):
        moment = now + dice.randrange(12)
        waiting[name] = (moment, name, timers.at(moment, lambda system, target: system.append(target), name))
        if dice.random() < 0.6 and waiting:
            timer = waiting.pop(dice.choice(list(waiting)))[2]
            timer.cancel()
            timer.cancel()  # harmless
        if dice.random() < 0.2:
            now += dice.randrange(8)
            due = sorted((moment, order) for moment, order, _ in waiting.values() if moment <= now)
            timers.run(gone, now)
            assert gone == [order for _, order in due]
            for order in gone:
                del waiting[order]
            gone.clear()
        assert timers.next() == min((moment for moment, _, _ in waiting.values()), default=None)


def test_what_a_timer_sets_for_the_same_moment_goes_off_too_and_it_may_cancel_another() -> None:
    timers, gone = Timers(), list[str]()

    def act(system: Any, name: str) -> None:
        gone.append(name)
        if name == "first":
            timers.at(5, act, "of the first")
            second.cancel()

    timers.at(5, act, "first")
    second = timers.at(5, act, "second")
    timers.at(6, act, "later")
    timers.run(None, 5)
    assert gone == ["first", "of the first"]
    assert timers.next() == 6


def test_cancelled_timers_are_not_kept() -> None:
    timers = Timers()
    keep = [timers.at(10**9 + number, lambda *_: None, number) for number in range(10)]
    for number in range(10_000):
        timers.at(10**6 + number, lambda *_: None, number).cancel()
    assert len(timers._heap) <= 128
    assert timers.next() == 10**9
    assert all(timer.kind is not None for timer in keep)


class _WantsMore(Kernel):
    """What the alarm brings about wants something else at once, as a plan does that has met a limit."""

    def __init__(self, config: KernelConfig) -> None:
        super().__init__(config)
        self.more = list[str]()

    def _finish(self) -> list[Action]:
        if self.more:
            self.timers.at(self.now, lambda system, told: system.log("info", told), self.more.pop())
        return super()._finish()


def test_what_is_wanted_at_the_moment_at_which_the_alarm_has_come_is_done_then() -> None:
    sim = simulate(core=_WantsMore)
    kernel = sim.kernel
    assert isinstance(kernel, _WantsMore)
    at = kernel.now + SECOND // 2
    kernel.timers.at(at, lambda system, more: setattr(system, "more", more), ["second", "first"])
    sim.program()  # an event, after which the alarm is set
    sim.run_for(1.0)
    assert [(line.text, line.at) for line in sim.log[-2:]] == [("first", seconds(at)), ("second", seconds(at))]

"""The run queue is what a search through all that wait would find: by class, then key, or who has waited longest."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest

from llmasos.kernel.sched.policy import Policy
from llmasos.kernel.sched.run_queue import CLASSES, RunQueue
from llmasos.syscalls.records import SchedClass


@dataclass(eq=False)
class Row:
    """What the queue knows of a process."""

    sched_class: SchedClass
    number: int
    since: int = 0
    reserve: Any = None
    ranked: bool = True
    policy: Policy | None = None
    policy_state: Any = None
    ticket: int = 0
    key: int = 0


@dataclass
class Reserved:
    ends: int
    open: bool = True


class ByNumber(Policy):
    """The key of a process is its number; it is noted who was said to have woken."""

    def __init__(self) -> None:
        super().__init__(32)
        self.waked: list[Any] = []

    def woke(self, process: Any) -> None:
        self.waked.append(process)

    def key(self, process: Any) -> int:
        number: int = process.number
        return number


def level(row: Row) -> int:
    return CLASSES.index(row.sched_class)


@pytest.mark.parametrize("seed", range(4))
def test_it_gives_what_a_search_finds(seed: int) -> None:
    dice, queue = random.Random(seed), RunQueue(ByNumber())
    rows: list[Any] = [Row(dice.choice(CLASSES), dice.randrange(6)) for _ in range(12)]
    order: dict[Any, int] = {}  # who waits, and when he was put there
    for now in range(1200):
        row = dice.choice(rows)
        match dice.randrange(6):
            case 0 | 1 | 2:
                if dice.random() < 0.3:
                    row.sched_class, row.number = dice.choice(CLASSES), dice.randrange(6)
                if row not in order:
                    row.since = now
                queue.put(row)
                order[row] = now
            case 3:
                queue.withdraw(row)
                order.pop(row, None)
            case 4:
                wanted = min(order, key=lambda one: (level(one), one.number, order[one]), default=None)
                assert queue.take() is wanted
                order.pop(wanted, None)
            case 5:
                before = now - dice.randrange(40)
                strongest = min(map(level, order), default=0)
                heads = [
                    min((one for one in order if level(one) == weaker), key=lambda one: order[one], default=None)
                    for weaker in range(strongest + 1, len(CLASSES))
                ]
                aged = next((one for one in heads if one is not None and one.since <= before), None)
                assert queue.take_aged(before) is aged
                order.pop(aged, None)
        assert len(queue) == len(order)
        assert set(queue) == set(order)


def test_who_is_new_to_the_policy_or_was_realtime_has_woken_and_who_is_put_again_has_not() -> None:
    policy = ByNumber()
    queue, row = RunQueue(policy), Row(SchedClass.FAIR, 1)
    process: Any = row
    queue.put(process)
    queue.put(process)
    assert policy.waked == [process]
    queue.put(process, woke=True)
    assert policy.waked == [process] * 2
    row.sched_class, row.reserve = SchedClass.REALTIME, Reserved(ends=77)
    queue.put(process)
    assert (row.key, row.ranked, len(policy.waked)) == (77, False, 2)
    row.reserve.open = False
    queue.put(process)
    assert (row.key, row.ranked, len(policy.waked)) == (1, True, 3)
    other = ByNumber()
    queue.policy = other
    row.policy_state = "of the first"
    queue.put(process)
    assert (row.policy, row.policy_state, other.waked) == (other, None, [process])


def test_entries_of_those_who_have_gone_are_swept_out_behind_a_stronger_class_that_stays() -> None:
    queue, most = RunQueue(ByNumber()), 0
    stays: Any = Row(SchedClass.FAIR, 0)
    queue.put(stays)
    for number in range(5000):
        process: Any = Row(SchedClass.IDLE, number)
        queue.put(process)
        queue.withdraw(process)
        most = max(most, queue.entries())
    assert most <= 2 * 1024 + 8
    assert (len(queue), queue.take(), queue.take()) == (1, stays, None)


def test_many_that_wait_are_not_gone_through_each_time_that_one_is_put_again() -> None:
    class Counting(RunQueue):
        sweeps = 0

        def _sweep(self) -> None:
            self.sweeps += 1
            super()._sweep()

    queue: Any = Counting(ByNumber())
    rows: list[Any] = [Row(SchedClass.BATCH, number) for number in range(3000)]
    for row in rows * 4:
        queue.put(row)
    assert queue.sweeps <= 4 * 3000 // 2024


def test_an_entry_in_the_queue_of_one_device_does_not_come_to_life_by_a_number_of_anothers() -> None:
    first, second = RunQueue(ByNumber()), RunQueue(ByNumber())
    process: Any = Row(SchedClass.FAIR, 1)
    for _ in range(3):
        first.put(process)
    first.withdraw(process)
    for _ in range(5):
        second.put(process)
        assert list(first) == []
    assert first.take() is None
    assert second.take() is process


def test_a_queue_is_idle_when_nobody_is_in_it_and_nothing_is_left_of_those_who_were() -> None:
    queue = RunQueue(ByNumber())
    process: Any = Row(SchedClass.FAIR, 1)
    seen = [queue.idle]
    queue.put(process)
    seen.append(queue.idle)
    queue.withdraw(process)
    seen.append(queue.idle)  # to take one would still have to throw its entry out
    assert queue.take() is None
    assert [*seen, queue.idle] == [True, False, False, True]

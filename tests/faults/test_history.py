"""The history check: a short run of it, and histories that no careful kernel gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults import shim
from tests.faults.history import history
from tests.faults.linear import Op, Wrong, check

PID = 7


def say(log: list[int], count: int) -> list[int]:
    """A model that counts."""
    return [100 + len(log) + n for n in range(count)]


def good() -> tuple[list[Op], list[int]]:
    """Two clients: one feeds, decodes and feeds; the other's feed is in the middle, and it reads."""
    ops = [
        Op(1, PID, "feed", [10], began=0, ended=1, at=1),
        Op(2, PID, "feed", [20, 21], began=0, ended=2, at=2),
        Op(1, PID, "decode", [104, 105], 2, began=3, ended=4, at=4),
        Op(2, PID, "read", [1, 10, 20, 21, 104, 105], began=5, ended=6, at=6),
        Op(1, PID, "feed", [11], began=7, ended=8, at=6),
    ]
    return ops, [1, 10, 20, 21, 104, 105, 11]


def judged(ops: list[Op], log: list[int]) -> int:
    return check(ops, {PID: log}, {PID: [1]}, say)


def test_what_a_careful_kernel_gives_is_right() -> None:
    assert judged(*good()) == 5


def test_a_call_whose_answer_is_not_known_may_have_been_done_or_not() -> None:
    ops, log = good()
    unknown = Op(3, PID, "feed", [30], began=4)
    assert judged([*ops, unknown], log) == 5
    assert judged([*ops, replace(unknown)], [*log, 30]) == 5
    decode = Op(3, PID, "decode", [], 5, began=7)
    assert judged([*ops, decode], [*log, 107, 108]) == 5


def lost(ops: list[Op], log: list[int]) -> None:
    log.pop()


def twice(ops: list[Op], log: list[int]) -> None:
    log.append(11)


def changed(ops: list[Op], log: list[int]) -> None:
    log[2] = 22


def made_up(ops: list[Op], log: list[int]) -> None:
    log.append(999)


def another_token(ops: list[Op], log: list[int]) -> None:
    ops[2].tokens[1] = log[5] = 110


def read_of_what_never_was(ops: list[Op], log: list[int]) -> None:
    ops[3].tokens[1] = 12


def old_read(ops: list[Op], log: list[int]) -> None:
    """After the decode was answered somebody reads the log of before."""
    ops[3].at, ops[3].tokens = 4, ops[3].tokens[:4]


def early(ops: list[Op], log: list[int]) -> None:
    """What was fed last is before what was answered before it began."""
    ops[4].began, ops[4].ended = 0.0, 0.5
    ops[0].began, ops[0].ended = 0.6, 1.0


def same_place(ops: list[Op], log: list[int]) -> None:
    """One feed is answered to two clients."""
    ops.append(Op(3, PID, "feed", [11], began=7, ended=8, at=6))


def forgotten_beginning(ops: list[Op], log: list[int]) -> None:
    log[0] = 2


def done_twice_though_unknown(ops: list[Op], log: list[int]) -> None:
    ops.append(Op(3, PID, "feed", [30], began=7))
    log += [30, 30]


@pytest.mark.parametrize(
    "break_it",
    [
        lost,
        twice,
        changed,
        made_up,
        another_token,
        read_of_what_never_was,
        old_read,
        early,
        same_place,
        forgotten_beginning,
        done_twice_though_unknown,
    ],
    ids=lambda function: function.__name__,
)
def test_what_a_careful_kernel_cannot_give_is_found(break_it: Callable[[list[Op], list[int]], None]) -> None:
    ops, log = good()
    break_it(ops, log)
    with pytest.raises(Wrong):
        judged(ops, log)


@pytest.mark.processes
def test_kernels_drivers_and_clients_die_and_disks_fail_and_no_history_is_wrong(tmp_path: Path) -> None:
    library = None if shim.unavailable() else shim.build(tmp_path)
    told = history(tmp_path, 5, 6.0, library=library, clients=3)
    assert told.placed > 10
    assert told.kernels + told.drivers + told.clients > 3
    assert told.shredded

"""Guessing in the driver: what is looked up, when it is tried, and that no token changes by it."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.drivers.cpu import open_device
from llmasos.drivers.cpu.native import library
from llmasos.drivers.engine.contexts import Context
from llmasos.drivers.engine.guess import LONGEST_MATCH, SHORTEST_MATCH, Guesser, lookup
from llmasos.drivers.protocol import Load, Step, StepDone
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Sampler
from tests.drivers.feeder import GREEDY, IMAGE, Feeder

FRAMES = 160
LOOP = [5, 9, 2, 7, 7, 1]
PROMPTS = [LOOP * 6, list(range(30)) + list(range(30)), [3] * 20, [11, 4]]


@given(st.lists(st.integers(0, 3) | st.sampled_from([256, 2**31 - 1]), max_size=40), st.integers(1, 9))
def test_a_guess_is_what_followed_the_last_occurrence(log: list[int], most: int) -> None:
    """Recounted by trying every place."""
    wanted: list[int] = []
    for length in range(LONGEST_MATCH, SHORTEST_MATCH - 1, -1):
        places = [i for i in range(len(log) - length) if log[i : i + length] == log[-length:]]
        if places:
            followed = log[places[-1] + length :]
            wanted = (followed * most)[:most]
            break
    assert lookup(array("q", log), most) == wanted


def context(log: list[int]) -> Context:
    return Context(0, log=array("q", log))


def trained(seconds: Callable[[int], float]) -> Guesser:
    guesser = Guesser()
    for rows in range(1, 9):
        guesser.computed(rows, seconds(rows))
    return guesser


def test_where_rows_are_free_it_guesses_as_far_as_it_may() -> None:
    guesser = trained(lambda rows: 1.0)
    assert guesser.propose(1, [context(LOOP * 3)], [7]) == [[5, 9, 2, 7, 7, 1, 5]]
    assert guesser.propose(2, [context(LOOP * 3), context([1, 2, 3])], [3, 3]) == [[5, 9, 2], []]


def test_where_a_row_costs_as_much_as_a_step_it_does_not_guess() -> None:
    assert trained(lambda rows: float(rows)).propose(1, [context(LOOP * 3)], [7]) == [[]]


def test_it_stops_when_guesses_fail_and_tries_again_later() -> None:
    guesser, one = trained(lambda rows: 1.0 + 0.1 * rows), context(LOOP * 3)
    tried = 0
    while guesser.propose(1, [one], [7])[0]:
        guesser.held(one, 7, 0)
        tried += 1
        assert tried < 50
    assert tried > 0
    waited = 0
    while not guesser.propose(1, [one], [7])[0]:
        waited += 1
        assert waited < 500
    assert waited > 5


def test_it_guesses_further_the_more_often_it_is_right() -> None:
    guesser, one = trained(lambda rows: 1.0 + 0.15 * rows), context(LOOP * 3)
    first = len(guesser.propose(1, [one], [7])[0])
    for _ in range(20):
        guesser.held(one, 3, 3)
    assert len(guesser.propose(1, [one], [7])[0]) > first


def test_a_log_that_is_not_known_from_its_start_is_not_looked_into() -> None:
    one = context(LOOP * 3)
    one.start = 5
    assert trained(lambda rows: 1.0).propose(1, [one], [7]) == [[]]


@pytest.mark.skipif(isinstance(library.load(), str), reason="there is no native decoder")
@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize(
    "sampler", [GREEDY, Sampler(temperature=0.8, seed=5), Sampler(temperature=1.0, top_k=3, seed=6)], ids=str
)
def test_no_token_changes(zoo: Callable[[str], Path], dtype: str, sampler: Sampler) -> None:
    """Prompts that repeat themselves, decoded together and long, with and without."""
    made = []
    for ahead in (0, 1, 7, 20):
        device = open_device({"threads": "2", "installed": "no"})
        device.fetch(Load(1, IMAGE, str(zoo("qwen3")), dtype, FRAMES), lambda fraction: None)()
        feeder = Feeder(device, frames=FRAMES, seed=ahead, ahead=ahead)
        steps = 0
        whole = device.step

        def counted(request: Step, whole: Callable[[Step], StepDone] = whole) -> StepDone:
            nonlocal steps
            steps += 1
            return whole(request)

        device.step = counted  # type: ignore[method-assign]
        made.append((feeder.generate([feeder.spawn(log, sampler) for log in PROMPTS], 120), steps))
        device.unload(IMAGE)
    assert all(tokens == made[0][0] for tokens, _ in made)
    if sampler == GREEDY:  # a random model soon repeats itself
        assert made[2][1] < made[0][1]


def test_torch_does_not_guess(zoo: Callable[[str], Path]) -> None:
    device = open_device({"threads": "1"})
    loaded = device.fetch(Load(1, IMAGE, str(zoo("gpt2")), "fp32", FRAMES), lambda fraction: None)()
    assert not loaded.guesses
    feeder = Feeder(device, frames=FRAMES, ahead=5)
    process = feeder.spawn(LOOP * 6)
    (result,) = feeder.step([feeder.run(process, 64)])
    assert result.token >= 0
    assert result.more == []


def test_the_option_says_how_many_rows() -> None:
    assert open_device({}).hello().guess_rows == 8
    assert open_device({"guess": "0"}).hello().guess_rows == 0
    with pytest.raises(SyscallError, match="guess='x'") as caught:
        open_device({"guess": "x"})
    assert caught.value.errno is Errno.EINVAL

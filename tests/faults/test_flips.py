"""Bits that flip in a driver: `python -m tests.faults.flips` is the campaign, docs/security.md has its table."""

from __future__ import annotations

import random

import pytest

from llmasos.drivers.cpu.native import library
from tests.faults.flips import PLACES, Bench

pytestmark = pytest.mark.skipif(isinstance(library.load(), str), reason="there is no native decoder")

CHECKED = ("frames in the swap file", "a process image", "the model's own files, by their digest", "the same, by a write")
UNCHECKED = ("KV frames in memory", "weights in memory", "an installed model that is in use")
FLIPS = 8


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("flips"), "int8")


@pytest.mark.parametrize("name", CHECKED)
def test_a_bit_that_flips_where_there_is_a_checksum_is_noticed(bench: Bench, name: str) -> None:
    act, _ = PLACES[name]
    assert {act(bench, random.Random(seed)) for seed in range(FLIPS)} == {"noticed"}


def test_a_bit_that_flips_in_an_installed_model_changes_no_answer(bench: Bench) -> None:
    """It is noticed and the file made again, but for bits between its parts, which mean nothing."""
    act, _ = PLACES["an installed model, when it is loaded"]
    fates = [act(bench, random.Random(seed)) for seed in range(FLIPS)]
    assert fates.count("noticed") > FLIPS // 2
    assert "another answer" not in fates


@pytest.mark.parametrize("name", UNCHECKED)
def test_a_bit_that_flips_in_memory_is_seldom_noticed_and_does_no_more_than_change_answers(
    bench: Bench, name: str
) -> None:
    act, _ = PLACES[name]
    fates = {act(bench, random.Random(seed)) for seed in range(FLIPS)}
    assert fates - {"noticed"}, "but for scores that are no numbers any more"
    assert bench.said() == bench.wanted, "nothing of it is left for others"

"""The benchmark of covert channels finds those that there are, and finds them closed by a partition."""

from __future__ import annotations

import pytest

from benchmarks import channels


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "BITS", 100)


def test_the_capacity_is_that_of_the_binary_symmetric_channel() -> None:
    assert [channels.capacity(error) for error in (0.0, 0.5, 1.0)] == [1.0, 0.0, 1.0]
    assert channels.capacity(0.11) == pytest.approx(0.5, abs=0.001)  # H(0.11) is one half


@pytest.mark.parametrize("name", channels.DEVICE)
def test_what_two_owners_share_on_a_device_carries_bits_and_with_a_partition_none(name: str) -> None:
    channel = channels.DEVICE[name]
    assert channel(0.005, False).bits > 100
    for slot in (0.04, 0.05):
        assert channel(slot, True).bits == 0.0


def test_a_receiver_that_only_guesses_gets_nothing() -> None:
    time = iter(range(10_000))
    rate = channels.measured(lambda bit: next(time) % 2, lambda: float(next(time)))
    assert rate.bits == 0.0

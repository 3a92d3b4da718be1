"""The random numbers are Philox4x32-10 as published, and a token's number depends on its seed and position only."""

from __future__ import annotations

import pytest

from llmasos.drivers.engine.philox import philox, uniform

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers of Random123's kat_vectors
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    assert philox(counter, key) == expected


def test_numbers_are_in_the_unit_interval_and_differ_by_seed_and_position() -> None:
    numbers = [uniform(seed, position) for seed in (0, 1, (1 << 63) - 1) for position in (0, 1, 2**31 - 1)]
    assert all(0.0 <= number < 1.0 for number in numbers)
    assert len(set(numbers)) == len(numbers)


def test_numbers_are_uniform() -> None:
    """Chi-square over 64 cells, for positions of one seed and for seeds at one position; fixed, so it cannot flicker."""
    for numbers in (
        [uniform(12345, position) for position in range(6400)],
        [uniform(seed, 77) for seed in range(6400)],
    ):
        cells = [0] * 64
        for number in numbers:
            cells[int(number * 64)] += 1
        assert sum((cell - 100) ** 2 / 100 for cell in cells) < 103.4  # the 0.999 quantile with 63 degrees of freedom

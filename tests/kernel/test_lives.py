"""The core does in each recorded life what it did when that was recorded (lives.py says how to record anew)."""

from __future__ import annotations

import json

import pytest

from tests.kernel.lives import FILE, KINDS, Life, mark

RECORDED = json.loads(FILE.read_text())


@pytest.mark.parametrize("name", KINDS)
def test_the_core_does_what_it_did(name: str) -> None:
    told = Life(name, RECORDED["schema"]).told
    then, now = RECORDED["lives"][name].split(), list(map(mark, told))
    first = next(
        (at for at, (one, other) in enumerate(zip(then, now, strict=False)) if one != other), min(len(then), len(now))
    )
    shown = told[first][:2000] if first < len(told) else "nothing more"
    assert then == now, (
        f"event {first} is another; now it is {shown}\nIf that is meant: python -m tests.kernel.lives --record"
    )

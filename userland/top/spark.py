"""Sparklines (Tufte): the past of a number in a word of the text, a bar for each moment, the newest last."""

from __future__ import annotations

import math
from collections.abc import Sequence

_BARS = "▁▂▃▄▅▆▇█"


def spark(past: Sequence[float], width: int, most: float) -> str:
    """The last `width` values as bars, of which the highest stands for `most`. No value: a blank; zero: the lowest bar
    is left out too, so that what is idle looks idle."""
    shown = past[-width:] if width > 0 else ()
    return "".join(_bar(value, most) for value in shown).rjust(width)


def _bar(value: float, most: float) -> str:
    if value <= 0 or most <= 0:
        return " "
    return _BARS[min(len(_BARS), max(1, math.ceil(value / most * len(_BARS)))) - 1]

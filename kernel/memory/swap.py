"""Swap: places for KV in the tiers below a device's own memory, and whether moving it there pays.

As in Linux a place keeps what was written to it when the frame comes back (its swap cache), so that a block which has not
changed since goes out again without being written. Unlike there, nothing has to be swapped: KV can always be computed
again from the token log, and is, where that is measured to be faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_SMOOTH = 0.2  # of measured seconds
_FEWEST_TOKENS = 32  # in a step whose time tells what a token costs when many are computed
_SWITCH = 1.25  # how much dearer one way must be before the other is taken
_TRIAL = 64  # measured steps after which moving that did not pay is tried again; twice as many after each time in vain


@dataclass(slots=True, frozen=True)
class Slot:
    """Place `number` for a frame in tier `tier` (1 is the first below the device's own)."""

    tier: int
    number: int


class SwapSpace:
    """The places of one image, for frames of `frame_bytes`: `counts[i]` of them in tier `i + 1`. Knows no process: tables
    say what is where, and charge their groups."""

    def __init__(self, counts: Sequence[int] = (), frame_bytes: int = 0) -> None:
        self.counts = list(counts)
        self.frame_bytes = frame_bytes
        self._free: list[list[int]] = []
        self.reset()

    @property
    def total(self) -> int:
        return sum(self.counts)

    @property
    def free(self) -> int:
        return sum(map(len, self._free))

    def take(self) -> Slot | None:
        """A place in the fastest tier that has one."""
        for tier, free in enumerate(self._free, 1):
            if free:
                return Slot(tier, free.pop())
        return None

    def give(self, slots: Iterable[Slot]) -> None:
        """Places that are not used any more."""
        for slot in slots:
            self._free[slot.tier - 1].append(slot.number)

    def reset(self) -> None:
        """The device has lost everything."""
        self._free = [list(range(count - 1, -1, -1)) for count in self.counts]

    def check(self, used: Iterable[Slot]) -> None:
        """Recount from all page tables; raises AssertionError on any difference."""
        listed = [*used, *(Slot(tier, n) for tier, free in enumerate(self._free, 1) for n in free)]
        every = {Slot(tier, n) for tier, count in enumerate(self.counts, 1) for n in range(count)}
        if len(listed) != len(set(listed)) or set(listed) != every:
            raise AssertionError(
                f"of {len(every)} places {len(listed)} are used or free, {len(set(listed))} of them different"
            )


class SwapCost:
    """Seconds for moving the KV of a token and for computing it, as measured for an image; `pays`: is moving better? What
    is not known is tried, and so is now and then what has been given up: a disk that was busy once need not be slow."""

    def __init__(self) -> None:
        self._move = self._compute = 0.0  # seconds a token; 0: not known yet
        self._given_up = 0  # steps measured since
        self._trial = _TRIAL
        self.pays = True

    def moved(self, tokens: int, seconds: float) -> None:
        if tokens and seconds > 0:
            self._move = _follow(self._move, seconds / tokens)
            self._decide()
            if self.pays and self._compute:
                self._trial = _TRIAL

    def computed(self, tokens: int, seconds: float) -> None:
        if tokens >= _FEWEST_TOKENS and seconds > 0:
            self._compute = _follow(self._compute, seconds / tokens)
            self._decide()
            self._given_up = 0 if self.pays else self._given_up + 1
            if self._given_up >= self._trial:
                self._move, self._given_up, self.pays = 0.0, 0, True
                self._trial *= 2

    def seconds(self, tokens: int, clean: int) -> float:
        """To take the pages of so many tokens and have them back; the KV of `clean` ones lies in a lower tier already. As
        long as nothing is known, a token costs one."""
        compute = self._compute or 1.0
        move = min(self._move or compute, compute)
        return move * (2 * tokens - clean) if self.pays else compute * tokens

    def _decide(self) -> None:
        if not self._move or not self._compute:
            return
        if self.pays:
            self.pays = self._move <= _SWITCH * self._compute
        else:
            self.pays = self._compute > _SWITCH * self._move


def _follow(known: float, measured: float) -> float:
    return known + _SMOOTH * (measured - known) if known else measured

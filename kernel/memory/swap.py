"""Swap: places for KV in the tiers below a device's own memory, and whether moving it there pays.

As in Linux's swap cache, a place keeps what was written to it when the frame comes back, so a block that has not changed
goes out again without being written. Unlike in Linux, nothing has to be swapped: KV can always be computed again from the
token log, and the kernel does that where it is measured to be faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmasos.kernel.clock import SECOND

_SMOOTH = 5  # a new measurement counts one part in five
_FEWEST_TOKENS = 32  # a step of fewer tokens does not tell what one of many costs
_SWITCH = 5, 4  # how much more one way must cost before the other is taken
_TRIAL = 64  # measured steps before moving is tried again where it did not pay; doubled each time it does not pay again


@dataclass(slots=True, frozen=True)
class Slot:
    """Place `number` for a frame in tier `tier` (1 is the first below the device's own)."""

    tier: int
    number: int


class SwapSpace:
    """The places of one image, for frames of `frame_bytes`: `counts[i]` of them in tier `i + 1`. It knows no process:
    page tables know what lies where, and charge their groups."""

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
        return sum(self.frees)

    @property
    def frees(self) -> list[int]:
        """How many places are free in each tier."""
        return list(map(len, self._free))

    @property
    def idle(self) -> list[tuple[int, int]]:
        """The free places (tier, number), in which KV of any process may still be."""
        return [(tier, number) for tier, free in enumerate(self._free, 1) for number in free]

    def take(self) -> Slot | None:
        """A place in the fastest tier that has one."""
        for tier, free in enumerate(self._free, 1):
            if free:
                return Slot(tier, free.pop())
        return None

    def give(self, slot: Slot) -> None:
        """Take back a place that is not used any more."""
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
    """Measured time for moving the KV of a token and for computing it, for one image. `pays`: moving is better. Moving
    is tried until both are known, and again from time to time after it did not pay: a disk that was busy once need not be
    slow."""

    def __init__(self) -> None:
        self._move = self._compute = 0  # picoseconds a token; 0: not known yet
        self._given_up = 0  # steps measured since
        self._trial = _TRIAL
        self.pays = True

    def moved(self, tokens: int, duration: int) -> None:
        """A step moved KV of `tokens` tokens in `duration` nanoseconds."""
        if tokens and duration > 0:
            self._move = _smoothed(self._move, duration * 1000 // tokens)
            self._decide()
            if self.pays and self._compute:
                self._trial = _TRIAL

    def computed(self, tokens: int, duration: int) -> None:
        """A step computed `tokens` tokens in `duration` nanoseconds."""
        if tokens >= _FEWEST_TOKENS and duration > 0:
            self._compute = _smoothed(self._compute, duration * 1000 // tokens)
            self._decide()
            self._given_up = 0 if self.pays else self._given_up + 1
            if self._given_up >= self._trial:
                self._move, self._given_up, self.pays = 0, 0, True
                self._trial *= 2

    def time(self, tokens: int, clean: int) -> int:
        """Picoseconds to take the pages of `tokens` tokens away and bring them back; `clean` of them lie in a lower tier
        already. Until something has been measured, a token costs a second."""
        compute = self._compute or 1000 * SECOND
        move = min(self._move or compute, compute)
        return move * (2 * tokens - clean) if self.pays else compute * tokens

    def _decide(self) -> None:
        if not self._move or not self._compute:
            return
        more, than = _SWITCH
        if self.pays:
            self.pays = than * self._move <= more * self._compute
        else:
            self.pays = than * self._compute > more * self._move


def _smoothed(known: int, measured: int) -> int:
    return known + (measured - known) // _SMOOTH if known else measured

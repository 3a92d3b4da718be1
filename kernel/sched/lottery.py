"""Lottery scheduling (Waldspurger and Weihl, OSDI 1994): tickets are shares, every scheduling decision draws anew.

Each queued process draws an exponential variate with its weight as the rate; the smallest wins with probability
weight / sum of weights, and taking the k smallest is a draw without replacement (Efraimidis and Spirakis, 2006). The
draws come from a counter, not a shared generator, so a run can be replayed; and they are integers, as in Ceph's straw2,
so that it comes out alike everywhere: logarithms of base 2, which scale all draws alike, in fixed point.
"""

from __future__ import annotations

from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.sched.policy import Policy
from llmasos.kernel.seeds import mix

_BITS = 32  # of a draw, behind the point


def log2(number: int) -> int:
    """The logarithm of a number from 1 to 2^64 - 1, times 2^`_BITS`; exact for powers of two, else too small by less than
    1 + 2^-29.

    Squaring doubles a logarithm, so each next bit says whether the square of a mantissa in [1, 2) reaches 2. Squaring and
    halving cut off less than 2^-62 of a mantissa, 2^-61 of its logarithm, and half as much of the result with every bit.
    """
    result = number.bit_length() - 1
    mantissa = number << (63 - result)
    for _ in range(_BITS):
        mantissa = mantissa * mantissa >> 63
        bit = mantissa >> 64
        mantissa >>= bit
        result = result << 1 | bit
    return result


class Lottery(Policy):
    name = "lottery"

    def __init__(self, quantum: int) -> None:
        super().__init__(quantum)
        self._field = 0

    def woke(self, process: LLMProcess) -> None:
        self._draw(process)

    def ran(self, process: LLMProcess, tokens: int) -> None:
        self._draw(process)

    def _draw(self, process: LLMProcess) -> None:
        uniform = (mix(self.stamp(), process.pid) >> 1) + 1  # of 2^63
        # Losers keep their draw until they win. If the base did not grow, they would be favoured for ever.
        process.policy_state = self._won(process) + process.virtual((63 << _BITS) - log2(uniform))

    def _won(self, process: LLMProcess) -> int:
        """The draws form each process's Poisson clock of rate `weight`; a new one starts where the field stands."""
        self._field = max(self._field, process.policy_state or 0)
        return self._field

"""The scheduling policies: fair, first come first served, round robin, multi-level feedback queues, lottery.

Each is a small pure object, one for each device (policy.py says what it answers). `Sources` is where a kernel gets its
policies of all kinds from; the edge has one that reads modules of the user's too (kernel/edge/policies.py).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from llmasos.kernel.memory.evictions import Evictions, make_evictions
from llmasos.kernel.memory.victims import Victims, make_victims
from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.sched.policy import Policy
from llmasos.kernel.seeds import mix
from llmasos.syscalls.constraint import near
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import PolicyOut, SchedClass

_UNIT = 1 << 20  # virtual time of a token of a process that has the device to itself
_BITS = 32  # of a draw, behind the point
LEVELS = 4
BOOST = 8192  # tokens of all processes together between two boosts
_LEVEL_SPAN = 1 << 60  # greater than any stamp


@dataclass(slots=True)
class _Clock:
    time: int
    sched_class: SchedClass  # whose virtual time it is: the classes do not compete by it
    epoch: int  # shortages ago


class Fair(Policy):
    """Weighted fair sharing by virtual token time, as Linux's CFS shares CPU time.

    A process's virtual time grows by tokens / share; the smallest goes first. Its share is its weight among its siblings
    times that of each of its control groups among theirs, counting those that want the device now. A process that wakes
    gets at least the smallest virtual time of those that run, so it cannot save up credit by sleeping. A step, unlike a
    CPU, serves many processes at once: while no process has to wait for a place in it, each gets what it wants whatever
    its weight, so none runs ahead, and all virtual times are level again.

    Virtual time is an integer. A share is at most 1, so every token counts for a `_UNIT` or more: each charge is rounded
    down by less than a part in `_UNIT` of it, and no time stands still while its process runs. Integers here have no size
    to overflow; Linux's have, and it compares them modulo 2^64.
    """

    name = "fair"

    def __init__(self, quantum: int) -> None:
        super().__init__(quantum)
        self._floor: defaultdict[SchedClass, int] = defaultdict(int)  # the smallest that runs
        self._epoch = 0

    def _clock(self, process: LLMProcess) -> _Clock:
        clock, sched_class = process.policy_state, process.sched_class
        if not isinstance(clock, _Clock) or clock.epoch != self._epoch or clock.sched_class is not sched_class:
            clock = process.policy_state = _Clock(self._floor[sched_class], sched_class, self._epoch)
        return clock

    def woke(self, process: LLMProcess) -> None:
        clock = self._clock(process)
        clock.time = max(clock.time, self._floor[process.sched_class])

    def key(self, process: LLMProcess) -> int:
        return self._clock(process).time

    def ran(self, process: LLMProcess, tokens: int) -> None:
        self._clock(process).time += process.virtual(tokens * _UNIT)

    def planned(self, first: LLMProcess, waiting: bool) -> None:
        floor = self._floor[first.sched_class]
        self._floor[first.sched_class] = max(floor, self._clock(first).time)
        if not waiting:
            self._epoch += 1


class FCFS(Policy):
    """The process that woke first runs until it sleeps. The baseline: throughput, and convoys."""

    name = "fcfs"


@dataclass(slots=True)
class _Turn:
    stamp: int
    used: int = 0


class RoundRobin(Policy):
    """A quantum of tokens each, then to the tail of the queue."""

    name = "round_robin"

    def woke(self, process: LLMProcess) -> None:
        process.policy_state = _Turn(self.stamp())

    def key(self, process: LLMProcess) -> int:
        turn: _Turn = process.policy_state
        return turn.stamp

    def ran(self, process: LLMProcess, tokens: int) -> None:
        turn: _Turn = process.policy_state
        turn.used += tokens
        if turn.used >= self.quantum:
            process.policy_state = _Turn(self.stamp())


@dataclass(slots=True)
class _Place:
    level: int
    stamp: int
    epoch: int
    used: int = 0


class MLFQ(Policy):
    """Multi-level feedback queues (Corbato's CTSS; the rules of Arpaci-Dusseau, OSTEP chapter 8).

    A process that uses up its quantum sinks one level, where the quantum is twice as long; one that waits for input stays
    on its level. Every BOOST tokens of the device all rise to the top again, so none starves.
    """

    name = "mlfq"

    def __init__(self, quantum: int) -> None:
        super().__init__(quantum)
        self._tokens = 0

    @property
    def _epoch(self) -> int:
        return self._tokens // BOOST

    def woke(self, process: LLMProcess) -> None:
        place = process.policy_state
        if isinstance(place, _Place):
            place.stamp = self.stamp()
        else:
            process.policy_state = _Place(0, self.stamp(), self._epoch)

    def key(self, process: LLMProcess) -> int:
        place: _Place = process.policy_state
        if place.epoch != self._epoch:
            place.level, place.used, place.epoch = 0, 0, self._epoch
        return place.level * _LEVEL_SPAN + place.stamp

    def ran(self, process: LLMProcess, tokens: int) -> None:
        self._tokens += tokens
        place: _Place = process.policy_state
        place.used += tokens
        if place.used >= self.quantum << place.level:
            place.level = min(place.level + 1, LEVELS - 1)
            place.used = 0
            place.stamp = self.stamp()


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
    """Lottery scheduling (Waldspurger and Weihl, OSDI 1994): tickets are shares, every scheduling decision draws anew.

    Each queued process draws an exponential variate with its weight as the rate; the smallest wins with probability
    weight / sum of weights, and taking the k smallest is a draw without replacement (Efraimidis and Spirakis, 2006). The
    draws come from a counter, not a shared generator, so a run can be replayed; and they are integers, as in Ceph's
    straw2, so that it comes out alike everywhere: logarithms of base 2, which scale all draws alike, in fixed point.
    """

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


POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in (Fair, FCFS, RoundRobin, MLFQ, Lottery)}


def make_policy(name: str, quantum: int) -> Policy:
    """A fresh policy; EINVAL names the ones there are."""
    if name not in POLICIES:
        raise Errno.EINVAL(f"no scheduling policy {name!r}{near(name, POLICIES)}; there are: {', '.join(POLICIES)}")
    return POLICIES[name](quantum)


class Sources:
    """Where policies come from: the tables of the kernel. Raises SyscallError for names that are not known."""

    def scheduling(self, name: str, quantum: int) -> Policy:
        return make_policy(name, quantum)

    def victims(self, name: str) -> Victims:
        return make_victims(name)

    def evictions(self, name: str) -> Evictions:
        return make_evictions(name)

    def known(self) -> list[str]:
        """Names of scheduling policies that can be put in force."""
        return list(POLICIES)

    def outs(self) -> list[PolicyOut]:
        """Policies of the user's that were taken out, the latest last."""
        return []

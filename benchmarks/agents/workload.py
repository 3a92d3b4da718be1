"""What the agents do, the same for every engine, and the book that is kept of it.

An agent has a context of its own and takes turns: some tokens are fed, as many as were agreed are decoded, greedily. The
order is round robin, and so many turns are outstanding at any time: the next one is asked for as soon as one is done. Of
an agent no more than one is: if its last one is still under way the order goes on without it until then.

This file is imported in the environments of all engines: it needs the standard library and nothing else.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

NOBODY = -1


@dataclass(frozen=True)
class Workload:
    """`agents` begin with `context` tokens each and take `turns` turns of `fed` and `decoded` tokens, `outstanding` at
    once; there is memory for `places` contexts of their final length."""

    agents: int = 24
    context: int = 1000
    turns: int = 10
    fed: int = 32
    decoded: int = 32
    outstanding: int = 12
    places: int = 8

    @property
    def final(self) -> int:
        """Tokens of a context after the last turn."""
        return self.context + self.turns * (self.fed + self.decoded)

    @property
    def computed(self) -> int:
        """Tokens an engine computes that keeps nothing from turn to turn, the contexts before the first one too."""
        turn = self.fed + self.decoded
        return self.agents * sum(self.context + number * turn for number in range(self.turns + 1))

    def work(self, vocab: int, seed: int = 7, outstanding: int = 0, urgent: int = NOBODY) -> Work:
        """The tokens, the same every time for a seed: random, so contexts differ from their first token on."""
        chosen = random.Random(seed)

        def tokens(count: int) -> list[int]:
            return [chosen.randrange(vocab) for _ in range(count)]

        contexts = [tokens(self.context) for _ in range(self.agents)]
        turns = [[tokens(self.fed) for _ in range(self.turns)] for _ in range(self.agents)]
        return Work(contexts, turns, self.decoded, outstanding or self.outstanding, urgent)


@dataclass(frozen=True)
class Work:
    """A workload's tokens: `contexts` by agent, `turns` by agent and turn. `urgent`: the agent of high priority, whose
    tokens are timed one by one, if there is one."""

    contexts: list[list[int]]
    turns: list[list[list[int]]]
    decode: int
    outstanding: int
    urgent: int = NOBODY


@dataclass(frozen=True)
class Turn:
    """When a turn was asked for, had its first token, and was done; seconds of one clock."""

    agent: int
    number: int
    asked: float
    first: float
    done: float


@dataclass(frozen=True)
class Outcome:
    """`turns` in the order in which they were done; `tokens` that each agent decoded; `gaps`: seconds between the tokens
    of the urgent agent within its turns; `counts`: what the engine says it did."""

    turns: list[Turn]
    tokens: list[list[int]]
    gaps: list[float] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return max(turn.done for turn in self.turns) - min(turn.asked for turn in self.turns)

    @property
    def speed(self) -> float:
        """Completed turns a second."""
        return len(self.turns) / self.seconds

    @property
    def waits(self) -> list[float]:
        """Seconds from each turn's asking to its first token."""
        return [turn.first - turn.asked for turn in self.turns]


@dataclass
class _Open:
    """A turn under way."""

    number: int
    asked: float
    tokens: list[int] = field(default_factory=list)
    first: float = 0.0
    last: float = 0.0


class Book:
    """What is asked for when, and what came of it. `logs` are the agents' contexts as they grow: what was fed is there
    when a turn is asked for, what was decoded as it comes."""

    def __init__(self, work: Work, clock: Callable[[], float] = time.perf_counter) -> None:
        self.work = work
        self.logs = [list(context) for context in work.contexts]
        self._clock = clock
        numbers = range(max(map(len, work.turns)))
        agents = range(len(work.contexts))
        self._order = [(agent, n) for n in numbers for agent in agents if n < len(work.turns[agent])]
        self._open: dict[int, _Open] = {}
        self._done: list[Turn] = []
        self._tokens: list[list[int]] = [[] for _ in agents]
        self._gaps: list[float] = []

    @property
    def finished(self) -> bool:
        return not self._order and not self._open

    def ask(self) -> list[int]:
        """The agents whose next turn begins now, in order."""
        asked: list[int] = []
        while len(self._open) < self.work.outstanding:
            place = next((i for i, (agent, _) in enumerate(self._order) if agent not in self._open), None)
            if place is None:
                break
            agent, number = self._order.pop(place)
            self._open[agent] = _Open(number, self._clock())
            self.logs[agent] += self.work.turns[agent][number]
            asked.append(agent)
        return asked

    def fed(self, agent: int) -> list[int]:
        """What is fed in the turn under way."""
        return self.work.turns[agent][self._open[agent].number]

    def got(self, agent: int, tokens: Sequence[int]) -> bool:
        """The agent's turn has decoded these; is it done? Raises ValueError if they are too many."""
        if not tokens:
            return agent not in self._open
        now, turn = self._clock(), self._open[agent]
        if len(turn.tokens) + len(tokens) > self.work.decode:
            raise ValueError(f"agent {agent} decoded more than {self.work.decode} tokens in turn {turn.number + 1}")
        if not turn.tokens:
            turn.first = now
        elif agent == self.work.urgent:
            self._gaps.append(now - turn.last)
        if agent == self.work.urgent:
            self._gaps += [0.0] * (len(tokens) - 1)  # they came together
        turn.last = now
        turn.tokens += tokens
        self.logs[agent] += tokens
        if len(turn.tokens) < self.work.decode:
            return False
        del self._open[agent]
        self._tokens[agent] += turn.tokens
        self._done.append(Turn(agent, turn.number, turn.asked, turn.first, now))
        return True

    def outcome(self, counts: dict[str, int] | None = None) -> Outcome:
        """Of work that is finished. Raises ValueError if it is not."""
        if not self.finished:
            raise ValueError(f"{len(self._order)} turns were not asked for, {len(self._open)} are not done")
        return Outcome(self._done, self._tokens, self._gaps, counts or {})

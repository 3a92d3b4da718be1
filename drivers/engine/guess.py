"""Self-speculation: guessing a context's next tokens from its own log, to check several in one step.

Prompt lookup decoding (Saxena, 2023; transformers' `prompt_lookup_num_tokens`): if the last few tokens occurred in the
log before, the tokens that followed them are the guess. The step computes guesses as rows and samples at each, so
guessing changes no token if a row's logits do not depend on the rows beside it; other images do not guess. Decoding reads
all weights for a few rows, so one more row costs little. This module measures how little, and how often the guesses of a
context hold, and guesses only where both together promise more tokens a second.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from llmasos.drivers.engine.contexts import Context

LONGEST_MATCH, SHORTEST_MATCH = 3, 2  # tokens
_NEW_TRUST = 0.5  # that a guess holds, before any was made
_LEARN = 0.2  # how fast trust follows what happens
_FORGIVE = 0.002  # how fast it comes back while no guess is made
_SMOOTH = 0.2  # of measured seconds


def lookup(log: array[int], most: int) -> list[int]:
    """The `most` tokens that followed the last occurrence of the log's last tokens, repeated if there are fewer; or
    none."""
    data, size = log.tobytes(), log.itemsize
    for length in range(LONGEST_MATCH, SHORTEST_MATCH - 1, -1):
        if len(log) <= length:
            continue
        pattern = data[-length * size :]
        at = data.rfind(pattern, 0, len(data) - 1)
        while at > 0 and at % size:
            at = data.rfind(pattern, 0, at + len(pattern) - 1)
        if at < 0:
            continue
        followed = log[at // size + length :].tolist()
        return [followed[i % len(followed)] for i in range(most)]
    return []


class Guesser:
    """Decides for one image how far to guess, and learns from it."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}  # of computing a number of rows

    def propose(self, rows: int, contexts: Sequence[Context], ahead: Sequence[int]) -> list[list[int]]:
        """Guesses for each context, at most `ahead[i]`; the step has `rows` rows without them."""
        found = [
            lookup(context.log, most) if most > 0 and context.complete else []
            for context, most in zip(contexts, ahead, strict=True)
        ]
        longest = max(map(len, found), default=0)
        best, best_rate = 0, 0.0
        for length in range(longest + 1):
            wanted = sum(min(length, len(guess)) for guess in found)
            expected = sum(
                sum(context.trust**i for i in range(min(length, len(guess)) + 1))
                for context, guess in zip(contexts, found, strict=True)
            )
            rate = expected / self._expect(rows + wanted)
            if rate > best_rate:
                best, best_rate = length, rate
        for context, guess in zip(contexts, found, strict=True):
            if guess and not best:
                context.trust += _FORGIVE * (_NEW_TRUST - context.trust)
        return [guess[:best] for guess in found]

    def computed(self, rows: int, seconds: float) -> None:
        """Learn that a step of `rows` rows took `seconds`."""
        known = self._seconds.get(rows)
        self._seconds[rows] = seconds if known is None else known + _SMOOTH * (seconds - known)

    def held(self, context: Context, guesses: int, right: int) -> None:
        """Learn that the first `right` guesses of a context held."""
        for _ in range(right):
            context.trust += _LEARN * (1 - context.trust)
        if right < guesses:
            context.trust -= _LEARN * context.trust

    def _expect(self, rows: int) -> float:
        """Seconds of a step of `rows` rows; for a number not yet measured those of the next smaller one, so that it is
        tried."""
        return self._seconds.get(rows) or max(
            (seconds for known, seconds in self._seconds.items() if known < rows), default=1.0
        )

"""Beginning a step before it is asked for.

Most steps of decoding continue the last one: the same contexts, each with the token it has just been given. Between the
two steps the kernel receives the tokens, tells the programs, plans and asks, and the device would stand still. So it goes
on at once with the step that will probably come, as a processor runs ahead past a branch (Smith, 1981: predict the last
outcome). If the kernel asks for that step, the result is there; if it asks for anything else, the device gives up at the
next layer.

That is safe because a step writes only slots behind all tokens that its contexts have computed. Nobody reads those slots
before writing them, and a context that gets their frames runs after this step, as all work does. Where a context needs
one more frame, a spare one stands for the frame that the kernel will choose.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from llmasos.drivers.engine.contexts import Context
from llmasos.drivers.protocol import BLOCK_TOKENS, Run, RunResult, Step

if TYPE_CHECKING:
    from llmasos.drivers.engine.sampler import Choice

MOST_SKIPPED = 63  # steps, however often beginning early has failed


class Stopped(Exception):
    """A step was given up because something else was asked for."""


class Stop:
    """Set by one thread, seen by the native code of another."""

    def __init__(self) -> None:
        self._flag = ctypes.c_int32(0)

    def set(self) -> None:
        self._flag.value = 1

    @property
    def address(self) -> int:
        return ctypes.addressof(self._flag)


@dataclass(slots=True)
class Computed:
    """The outcome of an image's runs: the tokens guessed after each, and, for each run that asked for a token, the
    choices at its last token and at its guesses. `phases` are seconds by name."""

    guesses: list[list[int]]
    choices: list[Choice]
    phases: dict[str, float]


@dataclass(slots=True)
class Early:
    """The step that image `number` will probably be asked for: `runs` of `contexts`, which are copies.

    `runs[i].blocks` are spare frames: nobody knows which ones the kernel will give for what has not been computed yet.
    """

    number: int
    runs: list[Run]
    contexts: list[Context]
    stop: Stop = field(default_factory=Stop)
    computed: Computed | None = None

    def is_asked(self, request: object) -> bool:
        """May `request` be the step that was expected?"""
        return (
            isinstance(request, Step)
            and not request.copies
            and not request.ins
            and len(request.runs) == len(self.runs)
            and all(
                run.ctx == mine.ctx
                and run.position == mine.position
                and run.tokens == mine.tokens
                and run.image == mine.image
                and run.sample == mine.sample
                and run.history is None
                for run, mine in zip(request.runs, self.runs, strict=True)
            )
        )

    def moves(self, runs: list[Run], contexts: list[Context]) -> list[tuple[int, int]] | None:
        """The frames `(spare, given)` to copy, so that the KV computed here serves `runs`, those of the step that is
        asked for. `contexts` have been told of the runs. None if the runs are not these."""
        if self.computed is None or len(runs) != len(self.runs):
            return None
        found: list[tuple[int, int]] = []
        for run, context, early, mine, guess in zip(
            runs, contexts, self.runs, self.contexts, self.computed.guesses, strict=True
        ):
            end = run.position + len(run.tokens) + len(guess)
            known, used = early.keep, blocks(end)
            if len(guess) > run.ahead or len(context.table) < used or context.start != mine.start:
                return None
            if context.table[:known] != mine.table[:known]:
                return None
            found += zip(mine.table[known:used], context.table[known:used], strict=True)
        return found


def blocks(tokens: int) -> int:
    """The number of frames for `tokens` tokens."""
    return -(-tokens // BLOCK_TOKENS)


def next_run(run: Run, result: RunResult, most: int, spare: Iterator[int]) -> Run | None:
    """The run that continues `run`, in `spare` frames where it needs more. None if it is not known, or there are too few
    frames. `most` is the model's window."""
    if run.sample is None or not run.sample.append or result.error or result.token < 0:
        return None
    given = 1 + len(result.more)
    position = run.position + len(run.tokens) + len(result.more)
    if position >= most:
        return None
    keep = blocks(position)
    wanted = blocks(min(position + 1 + run.ahead, most)) - keep
    frames = list(islice(spare, wanted))
    if len(frames) < wanted:
        return None
    return msgspec.structs.replace(
        run,
        position=position,
        tokens=[result.more[-1] if result.more else result.token],
        keep=keep,
        blocks=frames,
        sample=msgspec.structs.replace(run.sample, position=run.sample.position + given),
        history=None,
    )


class Patience:
    """When to begin early: always, until it fails; then ever more seldom."""

    def __init__(self) -> None:
        self._skip = 0  # steps not to begin early
        self._next = 0  # the same, after the next failure

    def ask(self) -> bool:
        if self._skip:
            self._skip -= 1
            return False
        return True

    def hit(self) -> None:
        self._next = 0

    def miss(self) -> None:
        self._skip = self._next
        self._next = min(2 * self._next + 1, MOST_SKIPPED)

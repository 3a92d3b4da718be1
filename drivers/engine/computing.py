"""Computing the runs of one image: guesses, the batch, the choice of tokens, and which guesses were right.

A run's guessed tokens are computed with it (guess.py). Each guess is held against the token that is chosen at the place
before it: the guesses up to the first wrong one, and the token chosen there, are those of decoding one by one.
"""

from __future__ import annotations

import time

import msgspec
import numpy as np

from llmasos.drivers.engine.contexts import Context
from llmasos.drivers.engine.early import Computed, Stop
from llmasos.drivers.engine.image import Frames
from llmasos.drivers.engine.sampler import is_plain, plain_choice, sample
from llmasos.drivers.protocol import Run, RunResult, Sample


def compute(image: Frames, runs: list[Run], contexts: list[Context], stop: Stop | None = None) -> Computed:
    """Compute checked runs whose contexts have been told, with guesses, which join the logs. Raises Stopped."""
    start = time.perf_counter()
    guesses = _guess(image, runs, contexts)
    batch = image.prepare(_longer(runs, guesses), contexts, stop)
    prepared = time.perf_counter()
    rows: list[int] = []
    wanted: list[Sample] = []
    logs: list[np.ndarray | None] = []
    for run, context, guess, last in zip(runs, contexts, guesses, batch.last_row, strict=True):
        if run.sample is not None:
            rows += range(last - len(guess), last + 1)
            wanted += [_later(run.sample, i) for i in range(len(guess) + 1)]
            logs += [_log(run, context)] * (len(guess) + 1)
    plain = list(map(is_plain, wanted))
    best, logits = image.choose(batch, rows, plain)
    computed = time.perf_counter()
    scored = [i for i, only in enumerate(plain) if not only]
    drawn = iter(sample(logits, [wanted[i] for i in scored], [logs[i] for i in scored]))
    choices = [
        plain_choice(best[i], want) if only else next(drawn)
        for i, (want, only) in enumerate(zip(wanted, plain, strict=True))
    ]
    image.guesser.computed(sum(len(run.tokens) for run in runs) + sum(map(len, guesses)), computed - prepared)
    sampled = time.perf_counter() - computed
    return Computed(guesses, choices, {"prepare": prepared - start, "model": computed - prepared, "sample": sampled})


def results(image: Frames, runs: list[Run], contexts: list[Context], computed: Computed) -> list[RunResult]:
    """The result of each run; wrong guesses are taken out of its context again."""
    found: list[RunResult] = []
    at = 0
    for run, context, guess in zip(runs, contexts, computed.guesses, strict=True):
        if run.sample is None:
            found.append(RunResult(run.ctx))
            continue
        own = computed.choices[at : at + len(guess) + 1]
        at += len(own)
        right = 0
        while right < len(guess) and guess[right] == own[right].token and not own[right + 1].error:
            right += 1
        if guess:
            image.guesser.held(context, len(guess), right)
            context.cut(len(guess) - right)
        first, more = own[0], [choice.token for choice in own[1 : right + 1]]
        found.append(RunResult(run.ctx, first.token, first.logprobs, first.error, more))
    return found


def _guess(image: Frames, runs: list[Run], contexts: list[Context]) -> list[list[int]]:
    """Guesses at what follows each run; they join the logs."""
    if not image.exact or not any(run.ahead for run in runs):
        return [[] for _ in runs]
    ahead = [image.room(run) if run.sample is not None else 0 for run in runs]
    guesses = image.guesser.propose(sum(len(run.tokens) for run in runs), contexts, ahead)
    for context, guess in zip(contexts, guesses, strict=True):
        context.log.extend(guess)
    return guesses


def _log(run: Run, context: Context) -> np.ndarray | None:
    """The ids of a context's log where the sampler needs them."""
    if run.sample is None or run.sample.sampler.repetition_penalty == 1.0 or not context.complete:
        return None
    return np.array(context.log, dtype=np.int64)


def _longer(runs: list[Run], guesses: list[list[int]]) -> list[Run]:
    return [
        msgspec.structs.replace(run, tokens=run.tokens + guess) if guess else run
        for run, guess in zip(runs, guesses, strict=True)
    ]


def _later(want: Sample, tokens: int) -> Sample:
    return msgspec.structs.replace(want, position=want.position + tokens) if tokens else want

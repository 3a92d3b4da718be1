"""From logits to the next token: the rules of `llmasos.syscalls.records.Sampler`, row by row independent.

As in llama.cpp's and transformers' samplers each rule narrows the candidates before the next looks at them. Unlike there,
`(seed, position)` determines the random number (philox.py), and inverting the distribution's cumulative sum in the order
of ids finds the token, so a row's token is a function of its own logits, sampler and position. Every engine samples with
numpy on the CPU: a GPU finds the greatest logits itself and sends the logits of rows that draw, 0.6 MB for a vocabulary
of 152,000. Scores that are not finite, from the model or from a rule, are an error of their row alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmasos.drivers.engine.philox import uniform
from llmasos.drivers.protocol import Sample
from llmasos.syscalls.records import Sampler, TokenLogprobs

LEAST_TEMPERATURE = 1e-6  # below it the greatest score is taken: fp32 would hardly distinguish others
NUCLEUS_FIRST, _GROWTH = 1024, 8  # candidates of a nucleus to look at first, and the factor when they are too few
_STRIDE = 64  # neighbours; a first pass looks at the greatest of them only
_BLOCK = 1024  # weights summed up at a time

Row = np.ndarray  # fp32 [vocab]


@dataclass(slots=True)
class Choice:
    """`token` is the sampled token, or -1 if none was asked for. `error` is empty, or why there is none."""

    token: int = -1
    logprobs: TokenLogprobs | None = None
    error: str = ""


def sample(
    logits: Sequence[Row] | np.ndarray, wanted: Sequence[Sample], logs: Sequence[np.ndarray | None]
) -> list[Choice]:
    """Choose for each row of `logits` [rows, vocab] (fp32, not changed). `logs[i]` holds the ids of row i's log,
    needed where the repetition penalty is on (None: unknown, which is then an error of that row)."""
    with np.errstate(all="ignore"):  # _choose looks for values that are not finite
        return [_choice(row, want, log) for row, want, log in zip(logits, wanted, logs, strict=True)]


def _choice(row: Row, want: Sample, log: np.ndarray | None) -> Choice:
    """A row's trouble is that row's, whatever it is: the others of the step are other people's."""
    try:
        return _choose(row, want, log)
    except Exception as error:  # of any kind
        return Choice(error=f"the token at position {want.position} cannot be chosen: {type(error).__name__}: {error}")


def is_greedy(sampler: Sampler) -> bool:
    return not sampler.temperature >= LEAST_TEMPERATURE


def is_plain(want: Sample) -> bool:
    """Does the request need only the greatest logit?"""
    sampler = want.sampler
    return want.append and want.logprobs == 0 and is_greedy(sampler) and sampler.repetition_penalty == 1.0


def plain_choice(token: int, want: Sample) -> Choice:
    """The choice where `is_plain`, from the token of the greatest logit (-1: that is not finite)."""
    return Choice(error=_not_finite(want)) if token < 0 else Choice(token)


def _not_finite(want: Sample) -> str:
    return f"the model's logits at position {want.position} are not finite"


def _choose(row: Row, want: Sample, log: np.ndarray | None) -> Choice:
    sampler, scores = want.sampler, row
    if not np.isfinite(row.max()):
        return Choice(error=_not_finite(want))
    if sampler.repetition_penalty != 1.0:
        if log is None:
            return Choice(error="the repetition penalty needs the whole log, which the driver was not sent")
        scores = row.copy()
        if not _penalise(scores, log, sampler.repetition_penalty):
            return Choice(
                error=f"the scores at position {want.position} are not finite with a repetition penalty of "
                f"{sampler.repetition_penalty:g}"
            )
    choice = Choice(int(scores.argmax()))
    if want.append and not is_greedy(sampler):
        choice.token = _draw(scores, float(scores[choice.token]), sampler, want.position)
    if want.logprobs > 0 or not want.append:
        choice.logprobs = _report(row, choice.token, want.logprobs)
    if not want.append:
        choice.token = -1
    return choice


def _penalise(row: Row, log: np.ndarray, penalty: float) -> bool:
    """CTRL's penalty (arXiv:1909.05858): make the ids in the log less probable, each once. False: a score has become
    infinite."""
    ids = np.unique(log)
    seen, by = row[ids], np.float32(penalty)
    made = np.where(seen > 0, seen / by, seen * by)
    row[ids] = made
    return not np.any(np.isnan(made) | (np.isfinite(seen) & ~np.isfinite(made)))


def _draw(scores: Row, greatest: float, sampler: Sampler, position: int) -> int:
    """Sample one row among the candidates that top-k, min-p and top-p leave, in this order."""
    # The greatest is taken off first: dividing by a small temperature may overflow only downwards.
    values = scores - np.float32(greatest)
    values /= np.float32(sampler.temperature)
    ids: np.ndarray | None = None  # None: all of them
    if sampler.top_k > 0:
        ids = _greatest(values, sampler.top_k)
        values = values[ids]
    if sampler.min_p > 0.0:
        keep = np.flatnonzero(values >= np.float32(math.log(sampler.min_p)))
        ids, values = keep if ids is None else ids[keep], values[keep]
    if sampler.top_p < 1.0:
        keep = _nucleus(values, sampler.top_p)
        ids, values = keep if ids is None else ids[keep], values[keep]
    if ids is not None:
        order = np.argsort(ids, kind="stable")
        ids, values = ids[order], values[order]
    found = _invert(np.exp(values, out=values), uniform(sampler.seed, position))
    return found if ids is None else int(ids[found])


def _invert(weights: np.ndarray, number: float) -> int:
    """The first place whose cumulative weight exceeds number * total."""
    first, before = 0, 0.0
    if len(weights) > 2 * _BLOCK:  # find the block first, then the place in it
        sums = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK), dtype=np.float64)
        ends = np.cumsum(sums)
        target = number * float(ends[-1])
        block = int(np.searchsorted(ends, target, side="right"))
        # A number just below 1 may round up to the total; the last place with weight is meant then.
        block = min(block, int(np.flatnonzero(sums)[-1]))
        first, before = block * _BLOCK, float(ends[block - 1]) if block else 0.0
        weights = weights[first : first + _BLOCK]
    else:
        target = number * float(weights.sum(dtype=np.float64))
    ends = before + np.cumsum(weights, dtype=np.float64)
    found = int(np.searchsorted(ends, target, side="right"))
    return first + min(found, int(np.flatnonzero(weights)[-1]))


def _greatest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` greatest, and of those equal to the last: greatest first, the first among equals."""
    if count >= len(values):
        return np.argsort(-values, kind="stable")
    found: np.ndarray | None = None
    strides = len(values) // _STRIDE
    if strides > count:  # at least `count` are as great as the least of the `count` greatest of some
        peaks = values[: strides * _STRIDE].reshape(strides, _STRIDE).max(axis=1)
        found = np.flatnonzero(values >= np.partition(peaks, strides - count)[strides - count])
        values = values[found]
    least = np.partition(values, len(values) - count)[len(values) - count]
    kept = np.flatnonzero(values >= least)
    kept = kept[np.argsort(-values[kept], kind="stable")]
    return kept if found is None else found[kept]


def _nucleus(values: np.ndarray, top_p: float) -> np.ndarray:
    """Indices of the fewest most probable that together have at least `top_p` (arXiv:1904.09751). The greatest is 0."""
    weights = np.exp(values)
    enough = top_p * float(weights.sum(dtype=np.float64))
    count = NUCLEUS_FIRST
    order = _greatest(values, count)
    while len(order) < len(values) and weights[order].sum(dtype=np.float64) < enough:
        count *= _GROWTH
        order = _greatest(values, count)
    sizes = weights[order].astype(np.float64)
    kept: np.ndarray = order[np.cumsum(sizes) - sizes < enough]  # the first stays: nothing is before it
    return kept


def _report(row: Row, token: int, count: int) -> TokenLogprobs:
    shifted = row - row.max()
    logprobs = shifted - np.float32(math.log(float(np.exp(shifted).sum(dtype=np.float64))))
    top = _greatest(logprobs, count)[:count] if count > 0 else np.empty(0, np.int64)
    return TokenLogprobs(token, float(logprobs[token]), top.tolist(), logprobs[top].tolist())

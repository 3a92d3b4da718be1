"""From logits to the next token: the rules of `syscalls.records.Sampler`, row by row independent.

As in llama.cpp's and transformers' samplers each rule narrows the candidates before the next looks at them. What
differs: the random number belongs to `(seed, position)` (philox.py) and the token is found by inverting the
distribution's cumulative sum in the order of ids, so a row's token is a function of its own logits, sampler and
position. All rows are reduced together where no row needs more; greedy rows cost one maximum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from drivers.engine.philox import uniform
from drivers.protocol import Sample
from syscalls.records import Sampler, TokenLogprobs

NUCLEUS_FIRST = 1024  # candidates looked at before a nucleus is searched in the whole vocabulary


@dataclass(slots=True)
class Choice:
    """`token` is the sampled token, or -1 if none was asked for. `error` is empty, or why there is none."""

    token: int = -1
    logprobs: TokenLogprobs | None = None
    error: str = ""


def sample(
    logits: torch.Tensor, wanted: Sequence[Sample], logs: Sequence[torch.Tensor | None]
) -> list[Choice]:
    """Choose for each row of `logits` [rows, vocab] (fp32, not changed). `logs[i]` holds the ids of row i's log,
    needed where the repetition penalty is on (None: unknown, which is then an error of that row)."""
    raw_max = logits.amax(dim=1)
    finite = torch.isfinite(raw_max).tolist()
    choices = [Choice() for _ in wanted]
    scores = logits
    for i, want in enumerate(wanted):
        if not finite[i]:
            choices[i].error = _not_finite(want)
        elif want.sampler.repetition_penalty != 1.0:
            log = logs[i]
            if log is None:
                choices[i].error = "the repetition penalty needs the whole log, which the driver was not sent"
                continue
            if scores is logits:
                scores = logits.clone()
            _penalise(scores[i], log, want.sampler.repetition_penalty)

    best = scores.argmax(dim=1).tolist()
    drawn: list[int] = []
    for i, want in enumerate(wanted):
        choice = choices[i]
        if choice.error:
            continue
        choice.token = best[i]
        if want.append and want.sampler.temperature > 0:
            if _narrows(want.sampler):
                choice.token = _draw_narrowed(scores[i], want.sampler, want.position)
            else:
                drawn.append(i)
    if drawn:
        for i, token in zip(drawn, _draw(scores[drawn], [wanted[i] for i in drawn]), strict=True):
            choices[i].token = token

    for i, want in enumerate(wanted):
        choice = choices[i]
        if not choice.error and (want.logprobs > 0 or not want.append):
            choice.logprobs = _report(logits[i], choice.token, want.logprobs)
        if not want.append:
            choice.token = -1
    return choices


def is_plain(want: Sample) -> bool:
    """Is the greatest logit all that is asked for?"""
    sampler = want.sampler
    return (
        want.append and want.logprobs == 0 and sampler.temperature == 0 and sampler.repetition_penalty == 1.0
    )


def plain_choice(token: int, want: Sample) -> Choice:
    """What `sample` makes of the greatest logit's token (-1: it is not finite) where no more is asked for."""
    return Choice(error=_not_finite(want)) if token < 0 else Choice(token)


def _not_finite(want: Sample) -> str:
    return f"the model's logits at position {want.position} are not finite"


def _penalise(row: torch.Tensor, log: torch.Tensor, penalty: float) -> None:
    """CTRL's penalty (arXiv:1909.05858): what the log holds already is made less probable; once per id."""
    ids = torch.unique(log)
    seen = row[ids]
    row[ids] = torch.where(seen > 0, seen / penalty, seen * penalty)


def _narrows(sampler: Sampler) -> bool:
    return sampler.top_k > 0 or sampler.top_p < 1.0 or sampler.min_p > 0.0


def _draw(scores: torch.Tensor, wanted: list[Sample]) -> list[int]:
    """Sample rows over the whole vocabulary."""
    temperature = torch.tensor(
        [[want.sampler.temperature] for want in wanted], dtype=scores.dtype, device=scores.device
    )
    # The maximum is taken off first: dividing by a tiny temperature may overflow only downwards.
    weights = torch.softmax((scores - scores.amax(dim=1, keepdim=True)) / temperature, dim=1)
    numbers = [uniform(want.sampler.seed, want.position) for want in wanted]
    return _invert(weights, torch.tensor(numbers, dtype=torch.float64, device=scores.device)).tolist()


def _invert(weights: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Per row the first id whose cumulative weight exceeds number * total. weights [rows, n], numbers [rows]."""
    cumulative = weights.double().cumsum(dim=1)
    # A number just below 1 may round up to the total; the last id with weight is meant then.
    target = torch.minimum(
        numbers * cumulative[:, -1], cumulative[:, -1].nextafter(torch.zeros_like(numbers))
    )
    return torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]


def _draw_narrowed(row: torch.Tensor, sampler: Sampler, position: int) -> int:
    """Sample one row [vocab] among what top-k, min-p and top-p leave, in this order."""
    values = (row - row.max()) / sampler.temperature  # so the greatest is 0
    ids = torch.arange(len(values), device=row.device)
    if sampler.top_k > 0:
        keep = _greatest(values, sampler.top_k)
        ids, values = ids[keep], values[keep]
    if sampler.min_p > 0.0:
        keep = torch.nonzero(values >= math.log(sampler.min_p))[:, 0]
        ids, values = ids[keep], values[keep]
    if sampler.top_p < 1.0:
        keep = _nucleus(values, sampler.top_p)
        ids, values = ids[keep], values[keep]
    ids, order = torch.sort(ids)
    number = torch.tensor([uniform(sampler.seed, position)], dtype=torch.float64, device=row.device)
    return int(ids[_invert(torch.softmax(values[order], 0)[None], number)])


def _greatest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Where the `count` greatest stand, and those equal to the last of them: greatest first, first among equals."""
    if count >= len(values):
        return torch.sort(values, descending=True, stable=True).indices
    found = torch.nonzero(values >= torch.topk(values, count).values[-1])[:, 0]
    return found[torch.sort(values[found], descending=True, stable=True).indices]


def _nucleus(values: torch.Tensor, top_p: float) -> torch.Tensor:
    """Where the fewest most probable stand that together have at least `top_p` (arXiv:1904.09751)."""
    weights = torch.softmax(values, 0).double()
    order = _greatest(values, NUCLEUS_FIRST)
    if len(order) < len(values) and weights[order].sum() < top_p:
        order = _greatest(values, len(values))
    weights = weights[order]
    return order[weights.cumsum(0) - weights < top_p]  # the first stays: nothing is before it


def _report(row: torch.Tensor, token: int, count: int) -> TokenLogprobs:
    logprobs = torch.log_softmax(row, 0)
    top_ids: list[int] = []
    top: list[float] = []
    if count > 0:
        ids = _greatest(logprobs, count)[:count]
        top_ids, top = ids.tolist(), logprobs[ids].tolist()
    return TokenLogprobs(token, float(logprobs[token]), top_ids, top)

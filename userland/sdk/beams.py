"""Beam search, written with fork: a beam is a process, and its children share its pages.

Each step asks all beams for the log-probabilities of their next token (a decode of no tokens), forks those that have
several continuations among the best, feeds each child its token, and ends the beams that have none. The bookkeeping of
finished hypotheses is that of transformers' `generate(num_beams=...)` (version 5, `_beam_search`), so the result is the
same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llmasos.syscalls import limits
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Decode, Feed, Fork
from llmasos.userland.sdk.actions import end
from llmasos.userland.sdk.script import Script, ask, together

_NEVER = -1e9  # the score of a choice that must not be made

EarlyStopping = bool | Literal["never"]  # as in transformers


@dataclass(slots=True, frozen=True)
class Hypothesis:
    """A finished text: its tokens after the prompt (the end token included) and its length-penalised score."""

    tokens: list[int]
    score: float


@dataclass(slots=True, frozen=True)
class _Beam:
    pid: int
    tokens: list[int]
    score: float  # sum of log-probabilities


@dataclass(slots=True, frozen=True)
class _Candidate:
    parent: int  # index of the beam it continues
    token: int
    score: float


def beam_search(
    pid: int,
    max_new_tokens: int,
    num_beams: int,
    eos_ids: Sequence[int],
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
) -> Script[list[Hypothesis]]:
    """The `num_beams` best continuations of a process, best first. The process itself becomes a beam; all beams are
    ended, however the search ends.

    Raises EINVAL if num_beams needs more alternatives than a decode reports.
    """
    kept = max(2, 1 + len(eos_ids)) * num_beams
    if kept > limits.MAX_LOGPROBS:
        raise SyscallError(
            Errno.EINVAL,
            f"num_beams={num_beams} needs {kept} alternatives a token, {limits.MAX_LOGPROBS} is the most; use fewer",
        )
    running = [_Beam(pid, [], 0.0)]
    finished: list[Hypothesis] = []
    pids = [pid]  # the processes of the search
    try:
        for length in range(1, max_new_tokens + 1):
            candidates = yield from _continuations(running, kept)
            over = [c.token in eos_ids or length == max_new_tokens for c in candidates]
            full = len(finished) == num_beams and early_stopping is True
            if not full:
                finished = _best(finished, candidates[:num_beams], over, running, length, length_penalty, num_beams)
            alive = [c for c, done in zip(candidates, over, strict=True) if not done][:num_beams]
            if not alive or (len(finished) == num_beams and early_stopping is True):
                break
            if not _can_improve(
                alive[0].score, finished, num_beams, length, max_new_tokens, length_penalty, early_stopping
            ):
                break
            running = yield from _branch(running, alive, pids)
    except GeneratorExit:  # the runner of this script has gone
        raise
    except BaseException:  # Ctrl-C and cancellation too
        yield from end(pids)
        raise
    yield from end(pids)
    return finished


def _continuations(running: Sequence[_Beam], kept: int) -> Script[list[_Candidate]]:
    """The best `kept` one-token continuations of all beams together, best first."""
    answers = yield from together([Decode(beam.pid, 0, logprobs=kept) for beam in running])
    candidates = [
        _Candidate(index, token, running[index].score + logprob)
        for index, answer in enumerate(answers)
        for token, logprob in zip(answer.logprobs[0].top_ids, answer.logprobs[0].top_logprobs, strict=True)
    ]
    candidates.sort(key=lambda c: (-c.score, c.parent, c.token))
    return candidates[:kept]


def _best(
    finished: Sequence[Hypothesis],
    top: Sequence[_Candidate],
    over: Sequence[bool],
    running: Sequence[_Beam],
    length: int,
    length_penalty: float,
    num_beams: int,
) -> list[Hypothesis]:
    """The best finished hypotheses, with those that end in this step. An end counts only in a top beam."""
    fresh = [
        Hypothesis([*running[c.parent].tokens, c.token], c.score / length**length_penalty)
        for c, done in zip(top, over, strict=False)
        if done
    ]
    return sorted([*finished, *fresh], key=lambda h: -h.score)[:num_beams]


def _can_improve(
    best: float,
    finished: Sequence[Hypothesis],
    num_beams: int,
    length: int,
    max_length: int,
    length_penalty: float,
    early_stopping: EarlyStopping,
) -> bool:
    """Whether the best running beam may still beat the worst finished one (transformers' heuristic)."""
    reach = float(max_length) if early_stopping == "never" and length_penalty > 0.0 else float(length)
    worst = finished[-1].score if len(finished) == num_beams else _NEVER
    return bool(best / reach**length_penalty > worst)


def _branch(running: Sequence[_Beam], alive: Sequence[_Candidate], known: list[int]) -> Script[list[_Beam]]:
    """The beams of the next step. The first child of a beam is the beam itself, the others are forked from it.

    `known` always holds the pids that run: a fork is entered as soon as it exists.
    """
    children: dict[int, int] = {}
    for candidate in alive:
        children[candidate.parent] = children.get(candidate.parent, 0) + 1
    pids = {index: [running[index].pid] for index in children}
    for index, count in children.items():
        if count > 1:
            forked = yield from ask(Fork(running[index].pid, count - 1))
            known.extend(forked)
            pids[index].extend(forked)
    beams = [_Beam(pids[c.parent].pop(0), [*running[c.parent].tokens, c.token], c.score) for c in alive]
    yield from together([Feed(beam.pid, [beam.tokens[-1]]) for beam in beams])
    yield from end([beam.pid for index, beam in enumerate(running) if index not in children])
    known[:] = [beam.pid for beam in beams]
    return beams

"""What the comparison and an engine's worker say to each other: one JSON object a line, each request answered once.

    {"do": "convert", "source": ..., "place": ...}                                  -> {"ok": null}
    {"do": "load", "model": ..., "threads": ..., "batch": ..., "context": ...}      -> {"ok": "what was loaded"}
    {"do": "measure", "prompts": [[...], ...], "decode": ...}                       -> {"ok": a Timing}
    {"do": "quit"}                                                                  -> {"ok": null}, then the worker ends

A request that fails is answered with {"error": reason}. This file is imported in the environments of all engines: it
needs the standard library and nothing else.
"""

from __future__ import annotations

import abc
import ctypes
import json
import os
import signal
import statistics
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Timing:
    """`prompt_seconds`: from the prompts to each sequence's first token. `step_seconds`: in which every sequence decodes
    one token; the median step's, unless only the whole decode can be seen. `tokens`: what each decoded, at least as
    many as were asked for."""

    prompt_seconds: float
    step_seconds: float
    tokens: list[list[int]]

    @classmethod
    def of_steps(cls, start: float, ends: Sequence[float], tokens: list[list[int]]) -> Timing:
        """From the ends of the steps of a batch, the first of which gave the first tokens."""
        return cls(ends[0] - start, statistics.median(end - begin for begin, end in pairwise(ends)), tokens)


class Engine(abc.ABC):
    """An engine in its worker. Prompts are token ids, decoding is greedy, ends of text are ignored, and nothing is
    remembered of a prompt from one measurement to the next."""

    def convert(self, source: str, place: str) -> None:
        """Write the model of a checkpoint directory in the engine's own format, a file or a directory, to `place`."""
        raise NotImplementedError(f"{type(self).__name__} reads checkpoints as they are")

    @abc.abstractmethod
    def load(self, model: str, threads: int, batch: int, context: int) -> str:
        """Load a model for up to `batch` sequences of `context` tokens, computed by `threads`; says what was loaded."""

    @abc.abstractmethod
    def measure(self, prompts: list[list[int]], decode: int) -> Timing:
        """Compute the prompts, which are equally long, and decode `decode` tokens of each, at least two, all together."""

    def other(self, request: dict[str, Any]) -> Any:
        """A request that only some workers know (benchmarks/agents/protocol.py). Raises ValueError."""
        raise ValueError(f"no such request: {str(request)[:200]}")

    def close(self) -> None:
        """End what `load` started."""
        return


def ahead(batch: int, context: int, step_tokens: int) -> int:
    """How many more tokens than asked for the first sequence of a batch may have decoded when the last one has: an engine
    that computes `step_tokens` tokens a step decodes those whose prompts are done while it computes the other prompts."""
    return -(-batch * context // max(1, step_tokens - batch)) + 1


def serve(engine: Engine) -> None:
    """Answer requests from standard input until its end. What the engine prints goes to standard error."""
    _die_with_parent()
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)
        try:
            for line in sys.stdin:
                request = json.loads(line)
                try:
                    answer: dict[str, Any] = {"ok": _do(engine, request)}
                except Exception as error:  # the asker decides what an engine's error means
                    traceback.print_exc()
                    answer = {"error": f"{type(error).__name__}: {error}"}
                answers.write(json.dumps(answer) + "\n")
                if request.get("do") == "quit":
                    break
        finally:
            engine.close()


def _do(engine: Engine, request: dict[str, Any]) -> Any:
    match request:
        case {"do": "convert", "source": source, "place": place}:
            # Unfinished, it is a temporary file of the worker; whoever looks for it finds a whole model or none.
            unfinished = os.path.join(tempfile.mkdtemp(), "model")
            engine.convert(source, unfinished)
            return os.rename(unfinished, place)
        case {"do": "load", "model": model, "threads": threads, "batch": batch, "context": context}:
            return engine.load(model, threads, batch, context)
        case {"do": "measure", "prompts": prompts, "decode": decode}:
            return asdict(engine.measure(prompts, decode))
        case {"do": "quit"}:
            return None
        case _:
            return engine.other(request)


def _die_with_parent() -> None:
    """Be killed when the parent ends. It may have ended before: then nobody is asking."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent has ended")

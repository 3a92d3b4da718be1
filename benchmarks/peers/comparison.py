"""The comparison itself: all engines loaded, taking turns, several rounds over; medians."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.peers.engines import Engine, cpus
from benchmarks.peers.peer import Peer, PeerError
from benchmarks.yardstick import LLAMA3, QWEN2, Shape, cache, ensure_yardstick, prompts

CONVERT_SECONDS = 1800.0
LOAD_SECONDS = 1800.0  # vLLM compiles
TURN_SECONDS = 300.0  # and for each token TOKEN_SECONDS: longer no engine may need
TOKEN_SECONDS = 0.05
WARM_TOKENS, WARM_DECODE = 64, 4


@dataclass(frozen=True)
class Workload:
    """What is measured: on a shape, `prompt` tokens and then `decode` tokens of as many sequences as `batches` say."""

    name: str
    shape: Shape
    prompt: int
    decode: int
    batches: tuple[int, ...]
    rounds: int

    def quick(self) -> Workload:
        """For a look at whether everything works."""
        return replace(self, decode=min(self.decode, 8), rounds=1)

    def of_rounds(self, rounds: int) -> Workload:
        return replace(self, rounds=rounds)

    @property
    def title(self) -> str:
        return f"{self.shape.name}, {self.prompt} prompt tokens, {self.decode} decoded"


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("short", QWEN2, 64, 32, (1, 4, 16), 5),
        Workload("long", QWEN2, 1000, 32, (1, 4, 16), 3),
        Workload("large", LLAMA3, 64, 32, (1, 4, 16), 3),
    )
}


@dataclass
class Row:
    """An engine's results. Tokens/s by batch, one number a round; `memory` is the most that was seen, in bytes.
    `missing`: why there are none, or not all."""

    engine: Engine
    version: str = ""
    decode: dict[int, list[float]] = field(default_factory=dict)
    prompt: dict[int, list[float]] = field(default_factory=dict)
    memory: int = 0
    memory_kind: str = ""
    missing: str = ""

    def decoded(self, batch: int) -> float | None:
        """The median speed of a batch, of all its sequences together."""
        return _median(self.decode.get(batch))

    def prompted(self, batch: int) -> float | None:
        return _median(self.prompt.get(batch))


def _median(speeds: Sequence[float] | None) -> float | None:
    return statistics.median(speeds) if speeds else None


@dataclass(frozen=True)
class Results:
    workload: Workload
    threads: int
    rows: list[Row]

    def row(self, key: str) -> Row | None:
        """An engine's, if it was measured to the end."""
        return next((row for row in self.rows if row.engine.key == key and not row.missing), None)


def compare(workload: Workload, engines: Sequence[Engine], checkpoint: Path | None = None) -> Results:
    """Measure all that can be; what cannot, or fails on the way, has the reason in its row. `checkpoint`: the model, if
    not the yardstick of the workload's shape."""
    where = cpus()
    rows = [Row(engine, missing=engine.missing()) for engine in engines]
    if not _working(rows):
        return Results(workload, len(where), rows)
    logs = cache() / "logs"
    logs.mkdir(exist_ok=True)
    source = checkpoint or ensure_yardstick(workload.shape)
    models: dict[str, Path] = {}
    peers: dict[str, Peer] = {}
    try:
        for row in _working(rows):
            with _failures_of(row, peers):
                models[row.engine.key] = row.engine.model(source, where, logs, CONVERT_SECONDS)
        for row in _working(rows):
            with _failures_of(row, peers):
                _say(f"{workload.name}: loading {row.engine.name}")
                peers[row.engine.key] = row.engine.start(where, logs)
                _load(peers[row.engine.key], row, models[row.engine.key], workload, len(where))
        for number, batch in itertools.product(range(workload.rounds), workload.batches):
            tokens = prompts(batch, workload.prompt, workload.shape.vocab, seed=number)
            for row in _working(rows):
                with _failures_of(row, peers):
                    turn = f"round {number + 1} of {workload.rounds}, batch {batch}"
                    _say(f"{workload.name}: {turn}: {row.engine.name}")
                    _measure(peers[row.engine.key], row, tokens, workload.decode)
    finally:
        for peer in peers.values():
            peer.close()
    return Results(workload, len(where), rows)


def _working(rows: list[Row]) -> list[Row]:
    return [row for row in rows if not row.missing]


@contextlib.contextmanager
def _failures_of(row: Row, peers: dict[str, Peer]) -> Iterator[None]:
    """An engine that fails here is of no more use: its row says why, its processes end, and the others go on."""
    try:
        yield
    except PeerError as error:
        row.missing = str(error)
        _say(f"failed: {error}")
        if peer := peers.pop(row.engine.key, None):
            peer.close()


def _load(peer: Peer, row: Row, model: Path, workload: Workload, threads: int) -> None:
    row.version = peer.ask(
        LOAD_SECONDS,
        do="load",
        model=str(model),
        threads=threads,
        batch=max(workload.batches),
        context=workload.prompt + workload.decode,
    )
    for batch in (1, max(workload.batches)):  # warm
        _ask(peer, prompts(batch, min(workload.prompt, WARM_TOKENS), workload.shape.vocab), WARM_DECODE)
    peer.pause()


def _measure(peer: Peer, row: Row, tokens: list[list[int]], decode: int) -> None:
    batch = len(tokens)
    with peer.turn():
        timing = _ask(peer, tokens, decode)
        memory, row.memory_kind = peer.memory()
    row.memory = max(row.memory, memory)
    row.prompt.setdefault(batch, []).append(batch * len(tokens[0]) / timing["prompt_seconds"])
    row.decode.setdefault(batch, []).append(batch / timing["step_seconds"])


def _ask(peer: Peer, tokens: list[list[int]], decode: int) -> Any:
    seconds = TURN_SECONDS + TOKEN_SECONDS * len(tokens) * (len(tokens[0]) + decode)
    timing = peer.ask(seconds, do="measure", prompts=tokens, decode=decode)
    counts = [len(sequence) for sequence in timing["tokens"]]
    if len(counts) != len(tokens) or min(counts) < decode:
        raise peer.error(f"decoded {counts} tokens, not {decode} of {len(tokens)} sequences each")
    return timing


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)

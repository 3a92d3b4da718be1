"""The comparison of agents: every engine with memory for fewer than there are, this system also with memory for all, with
and without what swaps, and with an agent of high priority among them.

This system's settings take turns; the other engines, which need minutes, run one after the other, alone on the machine.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from benchmarks.agents.protocol import Room, outcome
from benchmarks.agents.workload import NOBODY, Outcome, Work, Workload
from benchmarks.peers import engines as peers
from benchmarks.peers.comparison import CONVERT_SECONDS, LOAD_SECONDS
from benchmarks.peers.engines import Engine, cpus
from benchmarks.peers.peer import Peer, PeerError
from benchmarks.yardstick import QWEN2, Shape, cache, ensure_yardstick

OURS = "llmasos-int8"
KEYS = (OURS, "transformers", "llama.cpp-q8_0", "vllm-int8")
WORK_SECONDS = 300.0  # and for each token of the agents' contexts TOKEN_SECONDS: longer no engine may need
TOKEN_SECONDS = 0.01
ROUNDS, PEER_ROUNDS = 3, 1

SMALL = Shape(
    "qwen2-small",
    "qwen2",
    MappingProxyType(
        {
            **QWEN2.fields,
            "vocab_size": 4096,
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
    ),
)
QUICK = Workload(agents=6, context=200, turns=2, fed=8, decoded=8, outstanding=3, places=2)


@dataclass(frozen=True)
class Setting:
    """How an engine is run. `places`: contexts there is memory for; 0: as the workload says. `urgent`: the agents work
    once more, the first of them with high priority."""

    name: str
    places: int = 0
    swap: bool = True
    urgent: bool = False


PRESSED = Setting("pressed", urgent=True)


def roomy(workload: Workload) -> Setting:
    return Setting("memory for all", workload.agents, urgent=True)


def without_swap(workload: Workload) -> Setting:
    return Setting("memory for all, no swap", workload.agents, swap=False)


@dataclass
class Row:
    """An engine in a setting: what came of each round. `missing`: why there is nothing, or not all."""

    engine: Engine
    setting: Setting
    version: str = ""
    outcomes: list[Outcome] = field(default_factory=list)
    urgent: list[Outcome] = field(default_factory=list)
    missing: str = ""

    @property
    def name(self) -> str:
        return self.engine.name if self.setting == PRESSED else f"{self.engine.name}, {self.setting.name}"

    @property
    def speed(self) -> float:
        """Completed turns a second, the median of the rounds."""
        return statistics.median(outcome.speed for outcome in self.outcomes)

    def wait(self, part: float = 0.5) -> float:
        """Seconds to the first token of a turn, a quantile of all rounds' turns."""
        return quantile([wait for outcome in self.outcomes for wait in outcome.waits], part)

    def gap(self, part: float) -> float:
        """Seconds between tokens of the urgent agent, a quantile of all rounds'."""
        return quantile([gap for outcome in self.urgent for gap in outcome.gaps], part)

    @property
    def counts(self) -> dict[str, int]:
        """Of the last round."""
        return self.outcomes[-1].counts if self.outcomes else {}


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest value that `part` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -int(-part * len(ordered) // 1) - 1)]


@dataclass
class Results:
    """`differing`: runs whose tokens are not those of the agents alone, uninterrupted; `compared`: of how many."""

    workload: Workload
    shape: Shape
    threads: int
    rows: list[Row]
    rounds: int = 1
    peer_rounds: int = 1
    differing: list[str] = field(default_factory=list)
    compared: int = 0

    def row(self, key: str, setting: str = PRESSED.name) -> Row | None:
        """An engine's in a setting, if it was measured to the end."""
        return next(
            (row for row in self.rows if row.engine.key == key and row.setting.name == setting and not row.missing),
            None,
        )


def engines() -> list[Engine]:
    """Those of the comparison of speeds that can take part, with the workers that know agents."""
    return [_with_agents(engine) for engine in peers.engines() if engine.key in KEYS]


def _with_agents(engine: Engine) -> Engine:
    python = str(engine.home / "bin" / "python") if engine.environment else sys.executable
    worker = f"benchmarks.agents.workers.{engine.worker}"
    return replace(engine, command=(python, "-m", worker, *filter(None, [engine.form])))


def compare(
    workload: Workload,
    taking_part: Sequence[Engine],
    rounds: int = ROUNDS,
    peer_rounds: int = PEER_ROUNDS,
    shape: Shape = QWEN2,
    source: Path | None = None,
) -> Results:
    """Measure all that can be; what cannot, or fails on the way, has the reason in its row. `source`: the checkpoint,
    if not the yardstick of the shape."""
    where = cpus()
    results = Results(workload, shape, len(where), [], rounds, peer_rounds)
    logs = cache() / "logs"
    logs.mkdir(exist_ok=True)
    if any(not engine.missing() for engine in taking_part):
        source = source or ensure_yardstick(shape)
    for engine in taking_part:
        settings = [PRESSED]
        if engine.key == OURS:
            settings += [roomy(workload), without_swap(workload)]
        rows = [Row(engine, setting, missing=engine.missing()) for setting in settings]
        results.rows += rows
        if source is None or engine.missing():
            continue
        runner = _Runner(workload, shape, where, logs, source)
        if engine.key == OURS:
            runner.ours(rows, rounds, results)
        else:
            runner.peer(rows[0], peer_rounds)
    return results


class _Runner:
    def __init__(self, workload: Workload, shape: Shape, where: list[int], logs: Path, source: Path) -> None:
        self._workload, self._shape = workload, shape
        self._where, self._logs, self._source = where, logs, source

    def peer(self, row: Row, rounds: int) -> None:
        """Another engine, to the end of its rounds."""
        started: dict[str, Peer] = {}
        with _failures_of(row, started):
            peer = self._start(row, started)
            for number in range(rounds):
                _say(f"agents: round {number + 1} of {rounds}: {row.name}")
                row.outcomes.append(self._work(peer, self._workload.work(self._shape.vocab, 2 * number)))
        _close(started)

    def ours(self, rows: list[Row], rounds: int, results: Results) -> None:
        """This system's settings in turns, and what each agent decodes alone."""
        started: dict[str, Peer] = {}
        try:
            alone = self._alone(rows[-1])
            for row in rows:
                with _failures_of(row, started):
                    self._start(row, started).pause()
            for number in range(rounds):
                for urgent in (NOBODY, 0):
                    work = self._workload.work(self._shape.vocab, 2 * number + (urgent != NOBODY), urgent=urgent)
                    self._round(rows, started, work, f"round {number + 1} of {rounds}")
            _compare_tokens(rows, alone, results)
        except PeerError as error:  # without its tokens alone nothing can be said of the others
            for row in rows:
                _fail(row, error)
        finally:
            _close(started)

    def _alone(self, row: Row) -> Outcome:
        """The first round's work in a system of its own, a turn at a time, with memory for all and nothing that swaps."""
        started: dict[str, Peer] = {}
        try:
            peer = self._start(row, started)
            _say("agents: each alone, uninterrupted, for its tokens")
            return self._work(peer, self._workload.work(self._shape.vocab, 0, outstanding=1))
        finally:
            _close(started)

    def _round(self, rows: list[Row], started: dict[str, Peer], work: Work, turn: str) -> None:
        for row in rows:
            if row.missing or (work.urgent != NOBODY and not row.setting.urgent):
                continue
            with _failures_of(row, started):
                urgent = ", one is urgent" if work.urgent != NOBODY else ""
                _say(f"agents: {turn}: {row.engine.name}, {row.setting.name}{urgent}")
                with started[_key(row)].turn() as peer:
                    done = self._work(peer, work)
                (row.outcomes if work.urgent == NOBODY else row.urgent).append(done)

    def _start(self, row: Row, started: dict[str, Peer]) -> Peer:
        engine, workload = row.engine, self._workload
        model = engine.model(self._source, self._where, self._logs, CONVERT_SECONDS)
        _say(f"agents: loading {row.engine.name}, {row.setting.name}")
        peer = started[_key(row)] = engine.start(self._where, self._logs)
        room = Room(row.setting.places or workload.places, workload.final, workload.outstanding, row.setting.swap)
        row.version = peer.ask(
            LOAD_SECONDS, do="make room", model=str(model), threads=len(self._where), room=asdict(room)
        )
        return peer

    def _work(self, peer: Peer, work: Work) -> Outcome:
        seconds = WORK_SECONDS + TOKEN_SECONDS * self._workload.computed
        found = outcome(peer.ask(seconds, do="work", work=asdict(work)))
        turns = sum(map(len, work.turns))
        counts = [len(tokens) for tokens in found.tokens]
        wanted = [len(turns) * work.decode for turns in work.turns]
        if len(found.turns) != turns or counts != wanted:
            raise peer.error(f"did {len(found.turns)} of {turns} turns and decoded {counts} tokens")
        return found


def _key(row: Row) -> str:
    return f"{row.engine.key} {row.setting.name}"


def _compare_tokens(rows: Sequence[Row], alone: Outcome, results: Results) -> None:
    """The first round with what each agent decoded alone, the others with the first setting that did them."""
    references: dict[tuple[str, int], Outcome] = {("", 0): alone}
    for row in reversed(rows):  # the one that never moves a frame is the others' reference where there is no better
        for kind, outcomes in (("", row.outcomes), (", one is urgent", row.urgent)):
            for number, found in enumerate(outcomes):
                reference = references.setdefault((kind, number), found)
                if reference is found:
                    continue
                results.compared += 1
                if reference.tokens != found.tokens:
                    results.differing.append(f"{row.setting.name}{kind}, round {number + 1}")


@contextlib.contextmanager
def _failures_of(row: Row, started: dict[str, Peer]) -> Iterator[None]:
    """An engine that fails here is of no more use: its row says why, its processes end, and the others go on."""
    try:
        yield
    except PeerError as error:
        _fail(row, error)
        if peer := started.pop(_key(row), None):
            peer.close()


def _fail(row: Row, error: PeerError) -> None:
    row.missing = str(error)
    _say(f"failed: {error}")


def _close(started: dict[str, Peer]) -> None:
    for peer in started.values():
        peer.close()


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)

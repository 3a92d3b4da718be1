"""The comparison of agents (benchmarks/agents): the order of turns and what is timed, that what differs or fails is told,
and that this system's agents decode the same tokens under pressure as alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.agents import __main__ as command_line
from benchmarks.agents import picture
from benchmarks.agents.comparison import (
    OURS,
    PRESSED,
    QUICK,
    SMALL,
    Results,
    Row,
    Setting,
    compare,
    engines,
    quantile,
    roomy,
    without_swap,
)
from benchmarks.agents.protocol import outcome
from benchmarks.agents.table import figures, table
from benchmarks.agents.workload import Book, Outcome, Turn, Workload
from benchmarks.peers import engines as peers
from benchmarks.peers.engines import Engine
from benchmarks.peers.peer import ROOT
from benchmarks.peers.picture import NoPicture
from benchmarks.yardstick import QWEN2
from llmasos.drivers.cpu.native import library

TINY = Workload(agents=4, context=3, turns=2, fed=2, decoded=3, outstanding=2, places=2)


class Clock:
    """Seconds that pass by one with each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# --- the workload ---------------------------------------------------------------------------------------------------


def test_contexts_differ_from_their_first_token_on_and_are_the_same_for_a_seed() -> None:
    work = Workload().work(QWEN2.vocab, seed=3)
    assert len({context[0] for context in work.contexts}) == 24
    assert {len(context) for context in work.contexts} == {1000}
    assert {len(turns) for turns in work.turns} == {10}
    assert {len(fed) for turns in work.turns for fed in turns} == {32}
    assert Workload().work(QWEN2.vocab, seed=3) == work
    assert Workload().work(QWEN2.vocab, seed=4).contexts[0] != work.contexts[0]


def test_memory_is_meant_for_contexts_of_their_final_length() -> None:
    assert Workload().final == 1000 + 10 * (32 + 32)


# --- the book -------------------------------------------------------------------------------------------------------


def test_turns_come_round_robin_and_so_many_are_outstanding() -> None:
    book = Book(TINY.work(100))
    assert book.ask() == [0, 1]
    assert book.ask() == []
    assert not book.got(1, [7])
    assert book.got(1, [7, 7])
    assert book.ask() == [2]
    assert book.got(0, [7, 7, 7])
    assert book.got(2, [7, 7, 7])
    assert book.ask() == [3, 0], "the second round begins"


def test_an_agent_whose_turn_is_not_done_is_passed_over_until_it_is() -> None:
    book = Book(replace(TINY.work(100), outstanding=3))
    order = book.ask()
    while len(order) < 5:  # the last one asked is done at once, the first two are not
        assert book.got(order[-1], [7, 7, 7])
        order += book.ask()
    assert order == [0, 1, 2, 3, 2]
    assert book.got(0, [7, 7, 7])
    assert book.ask() == [0], "it comes before those who were behind it"


def test_a_log_grows_by_what_is_fed_and_decoded() -> None:
    work = TINY.work(100)
    book = Book(work)
    book.ask()
    assert book.fed(0) == work.turns[0][0]
    assert book.logs[0] == work.contexts[0] + work.turns[0][0]
    assert book.logs[2] == work.contexts[2]
    book.got(0, [7])
    assert book.logs[0] == work.contexts[0] + work.turns[0][0] + [7]


def test_times_are_those_of_asking_of_the_first_token_and_of_the_last() -> None:
    book = Book(replace(TINY.work(100), contexts=[[1]], turns=[[[2], [3]]]), Clock())
    for _ in range(2):
        book.ask()
        for tokens in ([5], [], [5], [5]):
            book.got(0, tokens)
    found = book.outcome({"steps": 8})
    assert found.turns == [Turn(0, 0, 1.0, 2.0, 4.0), Turn(0, 1, 5.0, 6.0, 8.0)]
    assert found.waits == [1.0, 1.0]
    assert (found.seconds, found.speed) == (7.0, 2 / 7)
    assert found.tokens == [[5] * 6]
    assert found.gaps == [], "nobody is urgent"


def test_gaps_are_those_within_the_turns_of_the_urgent_agent() -> None:
    book = Book(replace(TINY.work(100), contexts=[[1], [1]], turns=[[[2], [3]], [[2], [3]]], urgent=1), Clock())
    while not book.finished:
        for agent in book.ask():
            for tokens in ([5], [5, 5]):
                book.got(agent, tokens)
    assert book.outcome().gaps == [1.0, 0.0] * 2, "two tokens that come together have no time between them"


def test_a_turn_that_decodes_too_much_or_work_that_is_not_finished_is_no_result() -> None:
    book = Book(TINY.work(100))
    book.ask()
    with pytest.raises(ValueError, match="agent 0 decoded more than 3 tokens in turn 1"):
        book.got(0, [7] * 4)
    with pytest.raises(ValueError, match="6 turns were not asked for, 2 are not done"):
        book.outcome()


def test_a_quantile_is_a_value_that_was_measured() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [quantile(values, part) for part in (0.5, 0.95, 0.99, 1.0)] == [50.0, 95.0, 99.0, 100.0]
    assert quantile([3.0], 0.5) == 3.0


# --- what is told ---------------------------------------------------------------------------------------------------


def an_engine(key: str) -> Engine:
    return next(engine for engine in engines() if engine.key == key)


def done(seconds: float, wait: float, gaps: list[float] | None = None, token: int = 1) -> Outcome:
    """Two turns of an agent in so many seconds, each with its first token after `wait`."""
    half = seconds / 2
    turns = [Turn(0, 0, 0.0, wait, half), Turn(0, 1, half, half + wait, seconds)]
    return Outcome(turns, [[token] * 4], gaps or [])


def row(key: str, seconds: float, wait: float, setting: Setting = PRESSED, gaps: list[float] | None = None) -> Row:
    return Row(an_engine(key), setting, "1.0", [done(seconds, wait)], [done(seconds, wait, gaps)] if gaps else [])


def results(*rows: Row) -> Results:
    return Results(Workload(), QWEN2, 2, list(rows))


def test_the_aims_are_ratios_to_each_engine_and_to_this_system_unpressed() -> None:
    work = Workload()
    found = figures(
        results(
            row(OURS, 2.0, 0.1, gaps=[0.03]),
            row(OURS, 1.0, 0.1, roomy(work), gaps=[0.02]),
            row(OURS, 1.0, 0.1, without_swap(work)),
            row("vllm-int8", 8.0, 1.0),
            row("llama.cpp-q8_0", 4.0, 0.5),
        )
    )
    told = {(f.name, f.reference_name): (round(f.ratio or 0.0, 6), f.met) for f in found}
    assert told == {
        ("agents: completed turns", "vLLM int8"): (4.0, True),
        ("agents: completed turns", "llama.cpp Q8_0"): (2.0, False),
        ("agents: first token, median", "vLLM int8"): (0.1, True),
        ("agents: first token, median", "llama.cpp Q8_0"): (0.2, False),
        ("agents: first token, p95", "vLLM int8"): (0.1, None),
        ("agents: first token, p95", "llama.cpp Q8_0"): (0.2, None),
        ("agents: memory for all", "without swap"): (1.0, True),
        ("agents: pressed", "memory for all"): (0.5, None),
        ("agents: urgent one's tokens, p99", "memory for all"): (1.5, True),
    }


def test_an_engine_that_failed_is_no_win() -> None:
    failed = Row(an_engine("vllm-int8"), PRESSED, missing="vLLM int8 failed to work: no")
    there = results(row(OURS, 2.0, 0.1), failed)
    assert figures(there) == []
    (line,) = [line for line in table(there).splitlines() if line.startswith("| vLLM int8")]
    assert "missing: vLLM int8 failed to work: no" in line


def test_a_table_has_medians_of_rounds_and_quantiles_of_turns() -> None:
    measured = row(OURS, 2.0, 0.1, gaps=[0.25])
    measured.outcomes = [done(2.0, 0.1), done(4.0, 0.2), done(1.0, 0.3)]
    lines = table(results(measured)).splitlines()
    assert lines[2] == "| LLMasOS int8 | 1.00 | 200 ms | 300 ms | 2 | 250 ms | 250 ms | 1.0 |"


def test_tokens_that_differ_are_named() -> None:
    there = results(row(OURS, 2.0, 0.1))
    there.compared, there.differing = 3, ["pressed, round 2"]
    assert "2 of 3 runs of this system decode just those of uninterrupted runs: not pressed, round 2." in table(there)


def test_a_picture_names_who_is_missing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install -e '.[bench]'")
    failed = Row(an_engine("vllm-int8"), PRESSED, missing="no")
    there = results(row(OURS, 2.0, 0.1, gaps=[0.1]), row("llama.cpp-q8_0", 4.0, 0.5), failed)
    picture.draw(there, tmp_path / "agents.svg")
    drawn = (tmp_path / "agents.svg").read_text()
    assert "llama.cpp Q8_0" in drawn
    assert "missing: vLLM int8" in drawn
    with pytest.raises(NoPicture, match="nothing was measured"):
        picture.draw(results(failed), tmp_path / "agents.svg")


def test_an_unknown_engine_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.options(["--only", "vllm-int8,gpt"])
    assert "no such engine: gpt; there are: llmasos-int8" in capsys.readouterr().err


# --- workers --------------------------------------------------------------------------------------------------------

WORKER = '''
import sys
from benchmarks.agents.protocol import AgentsEngine
from benchmarks.agents.workload import Book
from benchmarks.peers.protocol import serve

class Scripted(AgentsEngine):
    """Decodes the agent's own number, or does as its argument says."""

    def load(self, model, threads, batch, context):
        return ""

    def measure(self, prompts, decode):
        raise NotImplementedError

    def make_room(self, model, threads, room):
        if sys.argv[1] == "has no room":
            raise MemoryError("no room")
        self.room = room
        return f"{room.places} places of {room.context}, swap {room.swap}"

    def work(self, work):
        book = Book(work)
        while not book.finished:
            for agent in book.ask():
                own = agent
                if sys.argv[1] == "differs" and self.room.places == 2 and len(book.logs[agent]) > 8:
                    own = 99
                if sys.argv[1] == "stops" and agent == 3:
                    raise RuntimeError("no more")
                for _ in range(work.decode):
                    book.got(agent, [own])
        if sys.argv[1] == "forgets":
            book._tokens[1].pop()
        return book.outcome({"places": self.room.places})

serve(Scripted())
'''


@pytest.fixture
def scripted(tmp_path: Path) -> Callable[[str], Engine]:
    """This system, as far as the comparison can tell; a script."""

    def engine(how: str) -> Engine:
        script = tmp_path / "worker.py"
        script.write_text(WORKER)
        return Engine(how, OURS, command=(sys.executable, str(script), how), variables={"PYTHONPATH": str(ROOT)})

    return engine


def compared(engine: Engine, place: Path, rounds: int = 1) -> Results:
    return compare(TINY, [engine], rounds=rounds, source=place)


def test_this_system_has_three_settings_and_each_round_is_done_twice_where_one_is_urgent(
    scripted: Callable[[str], Engine], tmp_path: Path
) -> None:
    found = compared(scripted("good"), tmp_path, rounds=2)
    assert [(row.version, len(row.outcomes), len(row.urgent)) for row in found.rows] == [
        ("2 places of 13, swap True", 2, 2),
        ("4 places of 13, swap True", 2, 2),
        ("4 places of 13, swap False", 2, 0),
    ]
    assert [row.missing for row in found.rows] == ["", "", ""]
    assert found.rows[0].outcomes[0].tokens == [[agent] * 6 for agent in range(4)]
    # The first round's three with those of each alone; the second round's two, and the urgent ones', with each other.
    assert (found.compared, found.differing) == (3 + 2 + 1 + 1, [])


def test_tokens_that_differ_under_pressure_are_found(scripted: Callable[[str], Engine], tmp_path: Path) -> None:
    found = compared(scripted("differs"), tmp_path)
    assert found.differing == ["pressed, round 1", "pressed, one is urgent, round 1"]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("has no room", "has no room failed to make room: MemoryError: no room"),
        ("stops", "stops failed to work: RuntimeError: no more"),
        ("forgets", "forgets did 8 of 8 turns and decoded [6, 5, 6, 6] tokens"),
    ],
)
def test_a_worker_that_fails_has_the_reason_in_all_its_rows(
    how: str, reason: str, scripted: Callable[[str], Engine], tmp_path: Path
) -> None:
    found = compared(scripted(how), tmp_path)
    assert len(found.rows) == 3
    assert all(row.missing.startswith(reason) for row in found.rows)
    assert f"missing: {reason}" in table(found)
    assert figures(found) == []


def test_an_engine_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "ENVIRONMENTS", tmp_path)
    found = compare(TINY, [an_engine("vllm-int8")])
    assert found.rows[0].missing == "not installed: run `make peers`"


@pytest.mark.skipif(not isinstance(library.load(), library.Library), reason="int8 here needs the native decoder")
def test_this_systems_agents_decode_the_same_tokens_when_they_do_not_fit() -> None:
    found = compare(QUICK, [an_engine(OURS)], rounds=1, shape=SMALL)
    assert [row.missing for row in found.rows] == ["", "", ""]
    assert found.differing == []
    assert found.compared == 4
    pressed, ample, _ = found.rows
    assert pressed.counts["preemptions"] > 0
    assert ample.counts["preemptions"] == 0


def test_an_outcome_is_the_same_after_its_way_through_the_pipe() -> None:
    from dataclasses import asdict

    sent = done(2.0, 0.1, [0.5])
    assert outcome(asdict(sent)) == sent

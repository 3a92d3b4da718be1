"""The history of the benchmarks: what is appended comes back, and a figure's course is told machine by machine."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import benchmarks.__main__ as command_line
from benchmarks import history
from benchmarks.history import Machine, Measured, Run
from benchmarks.history.__main__ import main
from benchmarks.report import Figure
from llmasos.drivers import hal

HERE, THERE = Machine("Zen 5", 2, ["avx2"]), Machine("Zen 2", 8)


def run(date: str, value: float, machine: Machine = HERE, name: str = "a fork") -> Run:
    return Run("fork", date, "0123456789ab", machine, [Measured(name, value, "ms", 2.0, value / 2.0)])


def test_what_is_appended_comes_back_in_the_order_of_time(tmp_path: Path) -> None:
    late, early = run("2026-11-02T10:00:00+00:00", 1.5), run("2026-11-01T10:00:00+00:00", 1.0)
    other = Run("decode", "2026-11-01T12:00:00+00:00", "", THERE, [Measured("a token", 3.0, "ms", None, None)])
    files = {history.append(one, tmp_path) for one in (late, early, other)}
    assert {file.name for file in files} == {"fork.json", "decode.json"}
    assert history.runs(tmp_path) == [early, other, late]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decode.json", "fork.json"]


def test_a_run_says_what_was_measured_where_and_of_which_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "this_commit", lambda: "abc+")
    made = history.run_of("fork", [Figure("a fork", 1.0, "ms", 4.0, "a null call"), Figure("alone", 2.0, "ms")])
    assert (made.benchmark, made.commit) == ("fork", "abc+")
    assert made.date.endswith("+00:00")
    assert made.machine == Machine(hal.cpu().model, hal.cpu().cores, hal.cpu().isa)
    assert made.figures == [Measured("a fork", 1.0, "ms", 4.0, 0.25), Measured("alone", 2.0, "ms", None, None)]


@pytest.mark.processes
def test_a_commit_with_changes_is_marked_and_the_history_itself_is_no_change(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        told = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org", *words]
        return subprocess.run(told, check=True, capture_output=True, text=True).stdout.strip()

    assert history.this_commit(tmp_path) == ""
    git("init", "--quiet")
    kept = tmp_path / "benchmarks" / "history" / "fork.json"
    kept.parent.mkdir(parents=True)
    for file in (tmp_path / "code.py", kept):
        file.write_text("1\n")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    commit = git("rev-parse", "--short=12", "HEAD")
    kept.write_text("2\n")
    assert history.this_commit(tmp_path) == commit
    (tmp_path / "code.py").write_text("2\n")
    assert history.this_commit(tmp_path) == commit + "+"


def test_a_figures_course_is_told_for_each_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for one in (
        run("2026-11-01T10:00:00+00:00", 1.0),
        run("2026-11-02T10:00:00+00:00", 1.5),
        run("2026-11-03T10:00:00+00:00", 9.0, THERE),
        run("2026-11-03T10:00:00+00:00", 7.0, name="something else"),
    ):
        history.append(one, tmp_path)
    assert main(["a fork"], tmp_path) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line for line in told if not line.startswith(" ")] == [f"a fork on {THERE}", f"a fork on {HERE}"]
    assert told[1].split() == ["2026-11-03T10:00", "0123456789ab", "9", "ms", "4.50x"]
    assert told[-1].split() == ["2026-11-02T10:00", "0123456789ab", "1.5", "ms", "0.75x", "+50.0", "%"]
    assert main(["fork"], tmp_path) == 0, "the benchmark's name is as good"
    assert "something else" in capsys.readouterr().out
    assert main(["fish"], tmp_path) == 1
    assert "something else" in capsys.readouterr().err, "those there are"
    assert main([], tmp_path / "nothing") == 1


@pytest.mark.parametrize("keep", [True, False])
def test_figures_are_kept_where_that_is_asked_for(keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import fork

    monkeypatch.setattr(history, "append", lambda run: (tmp_path / run.benchmark).write_text(json.dumps(run.commit)))
    monkeypatch.setattr(history, "this_commit", lambda: "abc")
    monkeypatch.setattr(fork, "run", lambda: [Figure("a fork", 1.0, "ms")])
    assert command_line.main(["fork", *(["--keep"] if keep else [])]) == 0
    assert [file.name for file in tmp_path.iterdir()] == (["fork"] if keep else [])


def test_what_is_kept_in_the_repository_can_be_read() -> None:
    for one in history.runs():
        assert one.benchmark in command_line.names()
        assert one.figures

"""What the shell and its verbs say in terminals of 60, 80 and 200 columns: whole words, in lines that fit."""

from __future__ import annotations

import json
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from wcwidth import wcswidth

from llmasos.syscalls.blocking import Client
from llmasos.syscalls.records import State
from llmasos.syscalls.table import Getinfo, Spawn
from llmasos.userland.shell.words import COMMANDS
from tests.booted import eventually
from tests.userland.command_line import on_terminal
from tests.userland.prompt import PROMPT, living, pid_of, terminal
from tests.userland.terminal import Terminal

pytestmark = pytest.mark.processes

SIM = "sim:context=256,vocab=100"


@dataclass
class Said:
    """What a line printed, and its status."""

    lines: list[str]
    status: int

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.lines).split())


@dataclass
class Typist:
    """Somebody at a shell. What is said to them fits their terminal, unless it is data."""

    terminal: Terminal
    columns: int

    def types(self, line: str, *, data: bool = False) -> Said:
        self.terminal.enter(f"echo BEGIN-$((1+1)); {line}; echo END-$?")
        text = self.terminal.expect(r"\nBEGIN-2\n(?s:.*?)END-\d+\n")
        self.terminal.expect(PROMPT)
        *lines, end = text.splitlines()[2:]
        assert data or all(wcswidth(line) <= self.columns for line in lines), lines
        return Said(lines, int(end.removeprefix("END-")))

    def name(self, name: str) -> str:
        """A name that only this terminal has."""
        return f"{name}{self.columns}"


@pytest.fixture(scope="module", params=[60, 80, 200])
def typist(where: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Typist]:
    with terminal(where, tmp_path_factory.mktemp("home"), columns=request.param) as opened:
        opened.expect(PROMPT)
        yield Typist(opened, request.param)


def born(kernel: Client, name: str) -> int:
    """An agent with 40 tokens in its log, which is idle."""
    pid = kernel(Spawn(model=SIM, tokens=list(range(40)), name=name, detached=True))
    eventually(lambda: kernel(Getinfo(pid)).state is State.BLOCKED, "it waits for input")
    return pid


# --- refusals and remarks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("spawn --nice 99 x", 2, "nice: from -20 to 19, found 99"),
        ("nice 1 40", 2, "from -20 (largest share) to 19 (smallest), found 40"),
        ("spawn x --temperature -1", 2, "--temperature wants"),
        ("kill 1", 1, "`halt` ends the system"),
        ("cat -x 4", 2, "cat has no option -x; its options: -f, --raw, --json"),
        ("cat 1", 2, "process 1 is init, the kernel itself, not an LLM process"),
        ("wait 1", 2, "process 1 is init, the kernel itself, which ends with `halt` only: there is nothing to wait for"),
        ("wait sim0", 2, "is the driver of sim0, which ends with `halt` only: there is nothing to wait for"),
        ("group foo", 1, "`groups` lists those that there are, and `group"),
        ("policy unfair", 2, "there is no policy 'unfair'; there are"),
        ("frok 6", 127, "there is no command 'frok'; did you mean"),
        ("fg", 1, "there is no job; `&` behind a command makes one, or Ctrl-Z"),
    ],
)
def test_a_refusal_says_what_is_true_in_whole_words(typist: Typist, line: str, status: int, said: str) -> None:
    found = typist.types(line)
    assert said in found.words
    assert found.status == status


def test_limits_without_effect_are_said(typist: Typist, kernel: Client) -> None:
    name = typist.name("lim")
    pid = born(kernel, name)
    assert (
        "its log has 40 tokens already: they stay, and it takes no more"
        in typist.types(f"limits {name} --context 5").words
    )
    window = "its model's window is 256 tokens, and bounds its context before --context 5000"
    assert window in typist.types(f"limits {name} --context 5000").words
    assert kernel(Getinfo(pid)).limits.context == 5000


def test_what_was_refused_an_answer_is_not_charged(typist: Typist, kernel: Client) -> None:
    name = typist.name("poor")
    assert typist.types(f"spawn {name} --model sim --tokens 3 'hello there'").status == 0
    (before,) = living(kernel, name)
    assert before.usage.fed > 0
    refused = typist.types(f"say {name} 'another long question'")
    assert refused.status == 1
    assert f"`limits {before.pid} --tokens N` raises it" in refused.words
    assert re.search(rf"\bfed {before.usage.fed:,}\b", typist.types(f"ps {name}").words)


# --- what is shown --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["ps", "models", "groups", "devices", "stats", "uptime", "policy", "ps sim0"])
def test_data_is_the_same_document_in_every_terminal(typist: Typist, command: str) -> None:
    shown = typist.types(f"{command} --json", data=True)
    found = json.loads("\n".join(shown.lines))
    assert found
    assert type(found) is (list if command in ("ps", "models", "groups", "devices") else dict)


def test_help_has_every_command_and_a_question_mark_asks_for_it(typist: Typist) -> None:
    shown = typist.types("help")
    assert {word for line in shown.lines for word in line.split()} >= set(COMMANDS)
    assert typist.types("?").words == shown.words
    assert "start an agent" in typist.types("help spawn").words


def test_agents_are_named_copied_and_kept_beyond_the_shell(typist: Typist, kernel: Client) -> None:
    one, two, three = (typist.name(name) for name in ("ann", "ben", "cleo"))
    assert f"`say {one} ...` talks to it" in typist.types(f"spawn {one} --model {SIM}").words
    assert f"{two}: copy of {pid_of(kernel, one)}" in typist.types(f"fork --name {two} {one}").words
    assert typist.types(f"rename {two} {three}; disown {three}").status == 0
    assert not living(kernel, two)
    assert kernel(Getinfo(pid_of(kernel, three))).ppid == 1
    assert typist.types(f"kill {one}; kill {three}").status == 0


def test_a_policy_of_ones_own_takes_effect_and_a_wrong_one_is_named(typist: Typist, tmp_path: Path) -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "policies" / "shortest_first.py"
    (tmp_path / "p.py").write_text(example.read_text())
    (tmp_path / "q.py").write_text("class Wrong: pass\n")
    taken = typist.types(f"policy {tmp_path}/p.py:ShortestFirst")
    assert taken.status == 0, taken.words
    assert re.search(r"\[p\.py:ShortestFirst@\w+\]", taken.words)
    refused = typist.types(f"policy {tmp_path}/q.py:Wrong", data=True)  # a path may be longer than a line
    assert refused.status == 2
    assert "q.py:Wrong" in refused.words
    assert "[fair]" in typist.types("policy fair").words


# --- verbs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_an_agents_life_by_verbs_alone(where: Path, kernel: Client, columns: int) -> None:
    def verb(*words: str) -> str:
        lines, status = on_terminal(where, columns, *words)
        assert status == 0, lines
        assert all(wcswidth(line) <= columns for line in lines), lines
        return " ".join(" ".join(lines).split())

    name, twin = f"verb{columns}", f"twin{columns}"
    assert f"`say {name} ...` talks to it" in verb("spawn", name, "--model", "sim")
    assert re.match(
        rf"{name}: \S+ \S+ \[as many tokens as it was allowed", verb("say", name, "--max", "2", "hello", "there")
    )
    assert re.match(rf"you: hello there {name}: \S", verb("cat", name))
    assert f"{twin}: copy of {pid_of(kernel, name)}" in verb("fork", name, "--name", twin)
    verb("stop", twin)
    assert kernel(Getinfo(pid_of(kernel, twin))).state is State.STOPPED
    verb("cont", twin)
    assert kernel(Getinfo(pid_of(kernel, twin))).state is State.BLOCKED
    assert "[lottery]" in verb("policy", "lottery")
    assert "[fair]" in verb("policy", "fair")
    for one in (name, twin):
        verb("kill", one)
        assert f"{one}: exited with 143" in verb("wait", one)


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_scripts_run_on_a_terminal_by_file_by_line_and_by_their_first_line(
    where: Path, tmp_path: Path, columns: int
) -> None:
    command = tmp_path / "llmasos"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m llmasos "$@"\n')
    script = tmp_path / "script"
    script.write_text("#!/usr/bin/env -S llmasos shell\necho one $1; ps; exit 3\n")
    for file in (command, script):
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "LLMASOS_RUNTIME": str(where)}
    shell = [sys.executable, "-m", "llmasos", "shell"]
    for words in ([*shell, str(script), "two"], [*shell, "-c", "echo one $1; ps; exit 3", "two"], [str(script), "two"]):
        with Terminal(words, environment, columns=columns) as opened:
            assert opened.wait() == 3
            first, heads, *rows = opened.screen.splitlines()
        assert first == "one two"
        assert heads.split()[0] == "PID"
        assert any("driver:sim0" in row for row in rows)
        assert all(wcswidth(line) <= columns for line in (heads, *rows))

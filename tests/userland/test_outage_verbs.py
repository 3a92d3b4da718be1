"""The kernel dies under a verb of the command line, and models are gone when it is back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos.syscalls.records import Kind, State
from llmasos.userland.programs import ps
from llmasos.userland.sdk.system import System
from tests.booted import PATIENCE, eventually
from tests.reborn import Reborn, reborn
from tests.userland.command_line import llmasos
from tests.userland.prompt import PROMPT, terminal

pytestmark = pytest.mark.processes
TINY = Path(__file__).parents[2] / "models" / "tiny"


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Reborn]:
    with reborn(tmp_path / "run") as kernel:
        yield kernel


def begun(kernel: Reborn, *words: str) -> subprocess.Popen[str]:
    """A verb that has an agent called ada speak; it speaks now."""
    verb = subprocess.Popen(
        [sys.executable, "-m", "llmasos", "--runtime", os.fspath(kernel.place), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with System.connect(kernel.place) as observer:
        eventually(lambda: any(row.name == "ada" and row.decoding for row in observer.ps()), "she speaks", pause=0.001)
    return verb


STORY = ["--max", "1500", "Tell me a very long story about a fox."]


@pytest.mark.parametrize("verb", [["spawn", "ada", *STORY], ["spawn", "ada", "--json", *STORY]])
def test_a_spawn_with_a_text_goes_on_with_the_next_kernel(verb: list[str], kernel: Reborn) -> None:
    with begun(kernel, *verb) as spawn:
        kernel.kill()
        kernel.boot()
        _, err = spawn.communicate(timeout=PATIENCE)
    assert spawn.returncode == 0, err
    assert "[the kernel has died" in err
    with System.connect(kernel.place) as observer:
        (ada,) = (row for row in observer.ps() if row.name == "ada")
    assert not ada.decoding
    assert ada.usage.decoded > 0


def test_a_verb_whose_kernel_halts_ends_with_one_error_of_its_own(kernel: Reborn) -> None:
    with begun(kernel, "spawn", "ada", *STORY) as spawn:
        kernel.end()
        _, err = spawn.communicate(timeout=PATIENCE)
    assert spawn.returncode == 1
    errors = [line for line in err.splitlines() if line.startswith("llmasos: ")]
    assert len(errors) == 1
    assert errors[0].startswith("llmasos: EPIPE")
    assert "kill:" not in err


def test_cat_reads_the_records_of_an_agent_whose_model_is_gone(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(TINY, mine, ignore=shutil.ignore_patterns("*.py", "recipe", "__pycache__"))
    with reborn(tmp_path / "run") as kernel:
        made = llmasos(kernel.place, "spawn", "ada", "--model", str(mine), "My name is Ada.")
        assert made.returncode == 0, made.stderr
        again = llmasos(kernel.place, "say", "ada", "What is my name?")
        whole = llmasos(kernel.place, "cat", "ada")
        assert "Ada" in again.stdout
        kernel.kill()
        shutil.rmtree(mine)
        kernel.boot()
        ran = llmasos(kernel.place, "cat", "ada")
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout == "".join(whole.stdout.splitlines(keepends=True)[:3]), "all but the last answer"
        assert ran.stdout.splitlines()[2] == "you: What is my name?"
        assert "the last" in ran.stderr
        assert "tokens are not in its records" in ran.stderr
        assert llmasos(kernel.place, "cat", "ada", "--raw").returncode == 1


def test_who_comes_back_is_told_who_was_stopped_and_that_a_dead_shell_is_awaited(kernel: Reborn, tmp_path: Path) -> None:
    with terminal(kernel.place, tmp_path) as first:
        first.expect(PROMPT)
        first.enter("spawn ada")
        first.expect("ada on tiny")
        first.enter("stop ada")
        first.expect(PROMPT)
        with System.connect(kernel.place) as observer:
            eventually(lambda: any(row.state is State.STOPPED for row in observer.ps()), "it is stopped")
        kernel.kill()
        first.process.kill()
    kernel.boot()
    with System.connect(kernel.place, name="observer") as observer:
        programs = ps.processes(observer.kernel, lambda row: row.kind is Kind.PROGRAM)
        assert {row.name: ps.state(row) for row in programs}["shell"] == "blocked:return"
    with terminal(kernel.place, tmp_path) as second:
        second.expect(r"an agent is stopped: `cont ada` lets it go on")
        second.expect(PROMPT)
        second.enter("fg")
        second.expect(r"there is no job; .*stopped before this shell: ada;\s`cont\sada`\slets\sit\sgo\son")
        second.enter("fg ada")
        second.expect(r"there is no job 'ada'; .*`cont\sada`")


def test_the_line_below_tells_of_the_next_kernel_at_once(kernel: Reborn, tmp_path: Path) -> None:
    with terminal(kernel.place, tmp_path) as shell:
        shell.expect(PROMPT)
        shell.enter("spawn ada")
        shell.expect("ada on tiny")
        shell.shows(r"1 agent: 0 decoding, 0 stopped  \|  tiny 0/\d+ pages")
        kernel.kill()
        shell.shows("no kernel: waiting for the next one")
        kernel.boot()
        shell.shows(r"1 agent: 0 decoding, 0 stopped  \|  tiny 0/\d+ pages")  # without a key


def test_the_end_of_the_input_in_an_open_quote_says_what_is_missing(kernel: Reborn, tmp_path: Path) -> None:
    with terminal(kernel.place, tmp_path) as shell:
        shell.expect(PROMPT)
        shell.enter("echo 'begun")
        shell.quiet(1.0)
        shell.type("\x04")
        shell.expect("EINVAL: the quote ' is not closed")
        shell.expect(PROMPT)
        shell.enter("echo whole")
        shell.expect(r"\nwhole\n")
        shell.expect(PROMPT)
        shell.type("\x04")
        assert shell.wait() == 0

"""The kernel dies under somebody at a terminal: they are told, wait, and go on with the same agents."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos.userland.programs import ps
from llmasos.userland.sdk.system import System
from tests.booted import PATIENCE, eventually
from tests.reborn import Reborn, reborn
from tests.userland.prompt import PROMPT, WIDTHS
from tests.userland.prompt import terminal as opened
from tests.userland.terminal import Terminal

DIED = r"\[the kernel has died; waiting up to 30 s for the next one \(`llmasos boot`\)\]"
BACK = r"\[the kernel is back after [0-9.:]+s?: 1 process\]"


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Reborn]:
    with reborn(tmp_path / "run") as kernel:
        yield kernel


def terminal(kernel: Reborn, *words: str) -> Terminal:
    return opened(kernel.place, kernel.place.parent, *words)


def test_the_shell_says_so_at_the_prompt_and_during_an_answer_and_goes_on(kernel: Reborn) -> None:
    with terminal(kernel, "shell") as shell:
        shell.expect(PROMPT)
        shell.enter("spawn ada My name is Ada.")
        shell.expect(r"ada: .*\n")
        shell.expect(PROMPT)
        kernel.kill()
        shell.expect(DIED)
        shell.shows("no kernel: waiting")  # the line under the prompt
        kernel.boot()
        shell.expect(BACK)
        shell.enter("say ada What is my name?")
        shell.expect(r"ada: .*Ada")
        shell.expect(PROMPT)
        shell.enter("say ada --max 1200 Tell me a very long story about a fox.")
        shell.expect(r"ada: \w+ \w+")
        kernel.kill()
        shell.expect(DIED)
        kernel.boot()
        shell.expect(BACK)
        shell.expect(PROMPT)
        shell.enter("ps ada")
        shell.expect("decoded")
        with System.connect(kernel.place) as observer:
            (ada,) = (row for row in observer.ps() if row.name == "ada")
        assert not ada.decoding
        kernel.end()
        shell.enter("ps")
        shell.expect(r"EPIPE: [^>]*halt")
        shell.shows("the kernel has gone; a command looks anew")
        shell.quiet(0.5)
        shell.enter("exit 3")
        assert shell.wait() == 3


def test_a_script_goes_on_and_is_told_on_stderr(kernel: Reborn) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "llmasos", "--runtime", os.fspath(kernel.place), "shell"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        shell.stdin.write("spawn bob My lucky number is 42.\n")
        shell.stdin.flush()
        assert "bob" in shell.stdout.readline()
        kernel.kill()
        shell.stdin.write("say bob What is my lucky number?\n")
        shell.stdin.flush()
        kernel.boot()
        out, err = shell.communicate(timeout=PATIENCE)
        assert shell.returncode == 0
    assert "42" in out
    assert "[the kernel has died" in err
    with System.connect(kernel.place) as observer:
        eventually(lambda: not ps.processes(observer.kernel, lambda row: row.name == "bob"), "bob has ended")


def test_top_goes_on_with_the_next_kernel(kernel: Reborn) -> None:
    with terminal(kernel, "top") as top:
        top.expect(r"cpu0 +busy \[")
        kernel.kill()
        top.expect(r"this is how it was")
        kernel.boot()
        top.expect(r"up [0-9]")
        top.type("q")
        assert top.wait() == 0


def test_a_verb_that_does_one_thing_does_not_wait(kernel: Reborn) -> None:
    kernel.kill()
    ended = subprocess.run(
        [sys.executable, "-m", "llmasos", "--runtime", os.fspath(kernel.place), "ps"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode != 0
    assert "no kernel runs" in ended.stderr
    kernel.boot()


# As `llmasos shell`, but with less patience than thirty seconds.
IMPATIENT = """
import functools, pathlib, sys
from llmasos.userland.shell import main
main.System.connect = functools.partial(main.System.connect, reconnect=float(sys.argv[2]))
sys.exit(main.open_shell(pathlib.Path(sys.argv[1])))
"""


@WIDTHS
def test_the_line_below_the_prompt_says_that_no_kernel_will_come_any_more(kernel: Reborn, columns: int) -> None:
    command = [sys.executable, "-c", IMPATIENT, os.fspath(kernel.place), "3"]
    environment = {"XDG_STATE_HOME": os.fspath(kernel.place.parent), "PYTHONWARNINGS": "ignore"}
    with Terminal(command, environment, columns=columns) as shell:
        shell.expect(PROMPT)
        kernel.kill()
        shell.expect(r"\[the kernel has died; waiting up to 3 s")
        shell.shows("no kernel: waiting")
        shell.expect(r"\[the kernel has gone: ")
        last = " the kernel has gone; a command looks anew, `exit` leaves"
        shell.until(lambda lines: [line for line in lines if line][-1] == last, f"{last!r}, last of all,")
        shell.enter("ps")
        shell.expect("EPIPE: ")
        shell.expect(PROMPT)
        shell.enter("exit")
        assert shell.wait() == 0


def test_the_shell_outlives_its_kernel_and_takes_up_the_next(kernel: Reborn) -> None:
    with terminal(kernel, "shell") as shell:
        shell.expect(PROMPT)
        shell.enter("kept=yes; spawn ada")
        shell.expect(r"\] ada on ")
        shell.expect(PROMPT)
        shell.quiet(0.5)
        kernel.end()
        shell.expect(r"\[the kernel has gone: ")
        shell.enter("while true; do ps; done; echo not this")
        shell.expect("EPIPE: ")
        shell.expect("the shell stays")
        shell.expect(PROMPT)
        assert shell.screen.count("EPIPE: ") == 1, "a loop ends"
        shell.enter("echo here; ps")
        shell.expect("here\n")
        shell.expect("EPIPE: ")
        shell.expect(PROMPT)
        kernel.boot()
        shell.enter("spawn bob; echo $kept $?")
        shell.expect(r"connected anew")
        shell.expect(r"\] bob on ")
        shell.expect("yes 0\n")
        shell.shows("1 agent: ")
        kernel.kill()
        shell.expect(DIED)
        kernel.boot()
        shell.expect(BACK)
        shell.enter("say bob hello")
        shell.expect("bob: ")
        shell.expect(PROMPT)
        shell.enter("exit 4")
        assert shell.wait() == 4
    assert "Traceback" not in shell.screen


def test_what_is_typed_ahead_of_a_kernel_that_has_gone_is_dropped(kernel: Reborn, tmp_path: Path) -> None:
    with terminal(kernel, "shell") as shell:
        shell.expect(PROMPT)
        shell.quiet(0.5)
        kernel.end()
        shell.expect(r"\[the kernel has gone: ")
        made = tmp_path / "made"
        shell.type(f"ps\rtouch {made}\r")
        shell.expect("the shell stays")
        shell.expect(PROMPT)
        shell.enter("echo here $((40 + 2))")
        shell.expect("here 42")
        assert not made.exists()
        shell.enter("exit 0")
        assert shell.wait() == 0


def test_a_halt_by_somebody_else_is_seen_at_the_prompt(kernel: Reborn) -> None:
    with terminal(kernel, "shell") as shell:
        shell.expect(PROMPT)
        shell.quiet(0.5)
        halt = [sys.executable, "-m", "llmasos", "--runtime", os.fspath(kernel.place), "halt"]
        subprocess.run(halt, check=True, capture_output=True, timeout=PATIENCE)
        shell.expect(r"\[the kernel has gone: the kernel of\s[^\]]*halted\]")
        shell.until(
            lambda lines: [line for line in lines if line][-1].startswith(" the kernel has gone"), "that, last of all,"
        )

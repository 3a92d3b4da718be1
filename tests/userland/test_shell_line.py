"""The line that a person types into the shell: pasting, what is typed meanwhile, history, completion."""

from __future__ import annotations

import re
import stat
from functools import partial
from pathlib import Path

import pytest

from llmasos.syscalls.blocking import Client
from tests.userland.prompt import PROMPT, STORY, WIDTHS, spawned, speaking, terminal
from tests.userland.terminal import CTRL_C, CTRL_D, CTRL_R, TAB, Terminal

FLAGS = ["--device", "cpu:threads=1"]

pytestmark = pytest.mark.processes


def paste(text: str) -> str:
    return f"\x1b[200~{text}\x1b[201~"


@WIDTHS
def test_lines_that_are_pasted_are_commands(shell: Terminal) -> None:
    shell.type(paste("echo one | tr a-z A-Z\n# a comment\necho two\n"))
    shell.enter("")
    shell.expect(r"\nONE\ntwo\n")
    shell.expect(PROMPT)


@WIDTHS
def test_lines_that_are_pasted_behind_free_text_belong_to_it(shell: Terminal, columns: int) -> None:
    poet = f"poet{columns}"
    spawned(shell, poet)
    shell.type(paste(f"say {poet} A line of mine;\nanother | line\n# and a third"))
    shell.enter("")
    shell.expect(rf"{poet}: .*\n")
    shell.expect(PROMPT)
    shell.enter(f"cat {poet}")
    shell.expect(r"you: A line of mine;\nanother \| line\n# and a third\n")


@WIDTHS
def test_a_line_that_is_begun_goes_on_behind_a_prompt_of_its_own(where: Path, tmp_path: Path, columns: int) -> None:
    with terminal(where, tmp_path, columns=columns) as shell:
        shell.expect(PROMPT)
        shell.enter("for x in a b; do")
        shell.expect("> ")
        shell.enter("echo go-$x")
        shell.enter("done")
        shell.expect(r"\ngo-a\ngo-b\n")
        wanted = ["       > echo go-$x", "       > done", "go-a", "go-b", PROMPT]
        shell.until(lambda lines: [line for line in lines if line][-6:-1] == wanted, f"{wanted} above the last line")
        lines = [line for line in shell.display if line]
        assert max(map(len, lines)) <= columns
        assert "agent" in lines[-1], "the situation stands in one line"
        assert sum("agent" in line and "decoding" in line for line in lines) == 1


@WIDTHS
def test_what_is_typed_during_an_answer_waits_unseen_for_the_prompt(
    where: Path, kernel: Client, tmp_path: Path, columns: int
) -> None:
    with terminal(where, tmp_path, columns=columns) as shell:
        shell.expect(PROMPT)
        spawned(shell, f"ann{columns}")
        with speaking(shell, kernel, f"ann{columns}", f"say NAME {STORY}"):
            before = len(shell.screen)
            shell.type("echo typed-$((40+2))\r")
            shell.quiet(1.0)
            assert "typed" not in shell.screen[before:]
        shell.expect(r"echo typed-\$")
        shell.expect(r"\ntyped-42\n")


@WIDTHS
def test_lines_are_kept_for_the_user_alone_and_found_again(where: Path, tmp_path: Path, columns: int) -> None:
    kept = tmp_path / "llmasos" / "history"
    kept.parent.mkdir()
    kept.write_text("")
    kept.chmod(0o644)
    with terminal(where, tmp_path, columns=columns) as shell:
        shell.expect(PROMPT)
        shell.enter("echo needle-$((6*7))")
        shell.expect(r"\nneedle-42\n")
        shell.expect(PROMPT)
        shell.enter("echo other")
        shell.expect(r"\nother\n")
        shell.type(CTRL_D)
        assert shell.wait() == 0
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    with terminal(where, tmp_path, columns=columns) as shell:
        shell.expect(PROMPT)
        shell.type(CTRL_R + "need")
        shell.quiet(0.5)
        shell.enter("")
        shell.enter("")
        shell.expect(r"\nneedle-42\n")
        shell.expect(PROMPT)
        shell.enter("history 3")
        shell.expect(r"\n +\d+  echo other\n +\d+  echo needle.*\n +\d+  history 3\n")
        shell.enter("quit")
        assert shell.wait() == 0


@WIDTHS
def test_chat_remembers_what_was_said_in_it(shell: Terminal, tmp_path: Path, columns: int) -> None:
    kit = f"kit{columns}"
    shell.enter(f"spawn {kit}")
    shell.expect("on tiny")
    for _ in range(2):
        shell.expect(PROMPT)
        shell.enter(f"chat {kit}")
        shell.expect("you:")
        shell.type("\x1b[A" if _ else "Hello there.")
        shell.quiet(0.5)
        shell.enter("")
        shell.expect(rf"{kit}: .*\n")
        shell.expect("you:")
        shell.enter("")
    shell.expect(PROMPT)
    shell.enter(f"cat {kit} | grep -c 'you: Hello there.'")
    shell.expect(r"\n2\n")
    assert stat.S_IMODE((tmp_path / "llmasos" / "chat_history").stat().st_mode) == 0o600


def joined(found: str, lines: list[str]) -> bool:
    """Whether it stands in the lines, over their ends."""
    return found.replace(" ", "") in "".join(line.removeprefix("       > ") for line in lines).replace(" ", "")


@WIDTHS
def test_completion_knows_agents_groups_options_variables_and_files(
    where: Path, tmp_path: Path, columns: int, kernel: Client
) -> None:
    name = f"zora{columns}"
    (tmp_path / "a file").write_text("inside\n")
    with terminal(where, tmp_path, columns=columns) as shell:
        shell.expect(PROMPT)
        shell.enter(f"group /zone{columns} pids_max=5")
        shell.expect("limits")
        shell.enter(f"spawn {name} --group /zone{columns}")
        shell.expect("on tiny")
        shell.expect(PROMPT)
        for typed, found in (
            (f"ps | cat; say {name[:-1]}{TAB}", f"say {name}"),
            (f"say {name} --no{TAB}", "--no-thoughts"),
            (f"groups /zone{columns}"[:-1] + TAB, f"groups /zone{columns}"),
            ("pol" + TAB, "policy"),
            ("policy f" + TAB, "policy f"),
            ("spawn x --dtype in" + TAB, "spawn x --dtype int"),
            ("echo $XDG_STATE_HO" + TAB, "echo $XDG_STATE_HOME"),
            (f"cat {tmp_path}/a" + TAB, "a\\ file"),
            ("echo hi > " + str(tmp_path) + "/a" + TAB, "a\\ file"),
            ("say cpu" + TAB, "say cpu"),  # a driver is no agent
            ("kill cpu" + TAB, "kill cpu"),
        ):
            shell.type(typed)
            shell.until(partial(joined, found), f"{found!r} of {typed!r}")
            shell.type(CTRL_C)
            shell.expect(PROMPT)


@WIDTHS
def test_completions_say_what_they_mean(shell: Terminal) -> None:
    for typed, said in (
        ("kill -" + TAB, "ends the process"),
        ("advise tiny " + TAB, "loads it and keeps it"),
        ("policy " + TAB, "shares of the device by nice value"),
        ("gre" + TAB, "program of the host"),
        ("spawn x --" + TAB, "system prompt"),
    ):
        shell.type(typed)
        shell.shows(re.escape(said))
        shell.type(CTRL_C)
        shell.expect(PROMPT)

"""The shell with the embedded model: what a person sees who talks to agents, on a terminal and in a script.

What the model says is its own affair; that it knows what it was told is checked, because that is what it was trained for.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from llmasos.syscalls import runtime
from llmasos.syscalls.blocking import Client
from llmasos.syscalls.table import BootInfoCall, Getinfo, Kill, StatsCall, Wait
from llmasos.userland.programs import ps
from llmasos.userland.programs.power import halt
from tests.booted import eventually
from tests.userland.command_line import llmasos, script
from tests.userland.prompt import PROMPT, STORY, WIDTHS, living, pid_of, speaking, terminal
from tests.userland.terminal import CTRL_C, CTRL_D, TAB, Terminal

FLAGS = ["--device", "cpu:threads=1", "--kv-bytes", "64MiB"]


# --- in a script ----------------------------------------------------------------------------------------------------


def test_an_agent_answers_and_knows_what_it_was_told_before(where: Path) -> None:
    ended = script(where, "spawn alice My name is Ada.", "say alice What is my name?")
    assert (ended.returncode, ended.stderr) == (0, "")
    first, second = ended.stdout.splitlines()
    assert re.fullmatch(r"\[\d+\] alice: \S.*", first)
    assert re.fullmatch(r"alice: .*Ada.*", second)


def test_the_conversation_is_read_back_from_the_token_log(where: Path) -> None:
    ended = script(
        where,
        "spawn bob My lucky number is 42.",
        "say bob What is my lucky number?",
        "cat bob",
        "cat --raw bob",
    )
    said = ended.stdout.splitlines()
    assert (ended.returncode, ended.stderr) == (0, "")
    assert said[2] == "you: My lucky number is 42."
    assert said[3] == f"bob: {said[0].partition('bob: ')[2]}"
    assert said[4] == "you: What is my lucky number?"
    assert said[5] == said[1]
    assert said[6].startswith("<|bos|>")


def test_a_system_prompt_is_part_of_the_conversation(where: Path) -> None:
    ended = script(where, 'spawn carol --system "You are brief." Hello.', "cat carol")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[1:3] == ["system: You are brief.", "you: Hello."]


def test_a_background_answer_is_waited_for_and_shown(where: Path) -> None:
    ended = script(where, "spawn dan Tell me a story about a cat. &", "wait dan", "cat dan")
    assert (ended.returncode, ended.stderr) == (0, "")
    said = ended.stdout.splitlines()
    assert re.fullmatch(r"\[\d+\] dan answers in the background; `cat \d+` shows it", said[0])
    assert re.fullmatch(r"\[\d+\] dan: idle after \d+ decoded tokens", said[1])
    assert said[2:3] == ["you: Tell me a story about a cat."]
    assert re.fullmatch(r"dan: \S.*", said[3])


def test_chat_takes_lines_until_an_empty_one(where: Path) -> None:
    ended = script(where, "spawn eve", "chat eve", "My name is Omar.", "What is my name?", "", "uptime")
    assert (ended.returncode, ended.stderr) == (0, "")
    said = ended.stdout.splitlines()
    assert re.fullmatch(r"eve: .*Omar.*", said[3])
    assert said[4].startswith("up ")


def test_a_full_token_budget_ends_the_answer_and_refuses_the_next(where: Path) -> None:
    ended = script(where, "spawn fay --tokens 5 Tell me a story about a dog.", "say fay Go on.")
    assert ended.returncode == 1
    assert "[its token budget is used up; `limits " in ended.stdout
    assert re.fullmatch(r"EDQUOT: .*5.*; `limits \d+ --tokens N` raises it\n", ended.stderr)
    assert "fay: " not in ended.stdout.partition("\n")[2]


def test_a_groups_token_budget_that_is_used_up_is_not_taken_for_the_processs(where: Path) -> None:
    ended = script(
        where,
        "group poor tokens_total=20",
        "spawn una --group poor Tell me a story about a dog.",
        "say una Go on.",
    )
    assert ended.returncode == 1
    assert "[a group's tokens_total is used up" in ended.stdout
    found = re.fullmatch(
        r"EDQUOT: tokens_total of group (\S+) is used up: 20 tokens; `group (\S+) tokens_total=N` raises it\n",
        ended.stderr,
    )
    assert found is not None, ended.stderr
    assert found[1] == found[2]
    assert found[1].endswith("/poor")


def test_a_context_that_is_short_because_of_a_group_says_so(where: Path) -> None:
    ended = script(
        where,
        "group tight kv_max=81920",  # two frames of bf16
        "spawn vic --group tight --dtype bf16 Tell me a long story about a fox.",
    )
    assert ended.returncode == 0
    assert "its group has KV memory (kv_max) for 32 tokens; `group /users/" in ended.stdout


def test_a_prompt_longer_than_the_context_is_refused_with_both_lengths(where: Path) -> None:
    ended = script(where, "spawn gus", "say gus " + "word " * 3000)
    assert ended.returncode == 1
    assert re.fullmatch(r"E2BIG: .*\d{4,} tokens.*2048.*\n", ended.stderr)


def test_what_was_refused_an_answer_is_not_in_the_conversation(where: Path) -> None:
    ended = script(where, "spawn ivo --tokens 3 Tell me a story.", "say ivo abc", "say ivo def &", "cat ivo")
    assert [line.partition(":")[0] for line in ended.stderr.splitlines()] == ["EDQUOT"] * 2
    assert "you: Tell me a story." in ended.stdout
    assert "abc" not in ended.stdout
    assert "def" not in ended.stdout


def test_an_answer_is_cut_at_max_and_says_so(where: Path) -> None:
    ended = script(where, "spawn hal --max 3 Tell me a story about a fox.")
    assert ended.returncode == 0
    assert "[as many tokens as it was allowed" in ended.stdout


def test_max_of_say_is_for_that_answer_alone(where: Path, kernel: Client) -> None:
    ended = script(
        where,
        "spawn lim --max 5",
        "say lim --max 2 Tell me a story about a fox.",
        "ps lim",
        "say lim Tell me a story about a fox.",
        "ps lim",
    )
    assert not ended.returncode, ended.stderr
    first, both = (int(count) for count in re.findall(r"decoded (\d+)", ended.stdout))
    assert first == 2
    assert both == 2 + 5


def test_a_stopped_process_is_not_waited_for(where: Path) -> None:
    ended = script(where, "spawn ida", "stop ida", "say ida Hello.")
    assert ended.returncode == 1
    assert re.fullmatch(r"EAGAIN: process \d+ \(ida\) is stopped; `cont \d+` lets it answer\n", ended.stderr)


def test_a_wrong_option_value_is_refused_before_anything_is_spawned(where: Path, kernel: Client) -> None:
    ended = script(where, "spawn jim --temperature hot", "spawn jim --nice 99", "spawn jim --max 0")
    assert ended.returncode == 1
    assert [line.partition(":")[0] for line in ended.stderr.splitlines()] == ["EINVAL"] * 3
    assert not ps.processes(kernel, lambda row: row.name == "jim")


def test_groups_are_made_filled_changed_and_removed_from_the_shell(where: Path) -> None:
    done = script(
        where,
        "group /guests kv_max=8MiB cpu_weight=50",
        "spawn eve --group /guests hello",
        "group /guests kv_high=4MiB kv_max=0",
        "ps eve",
        "groups",
        "join eve /users",
        "group /guests --remove",
        "groups /users",
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"limits +kv_max=8.0MiB\n", done.stdout)
    assert re.search(r"limits +kv_high=4.0MiB\n", done.stdout)
    assert re.search(r"^group +/guests$", done.stdout, re.MULTILINE)
    assert re.search(r"^/guests +1 .* 50 +\d+% +kv_high=4.0MiB$", done.stdout, re.MULTILINE)
    assert "/guests" not in done.stdout.rpartition("GROUP")[2]


def test_a_wrong_setting_of_a_group_says_which_there_are_and_changes_nothing(where: Path) -> None:
    done = script(
        where,
        "group /x kv=3",
        "group /x kv_max=much",
        "group /x cpu_weight=0",
        "group /x kv_action=beg",
        "groups /x",
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 5
    assert "kv_max, kv_high" in done.stderr
    assert "spill" in done.stderr or "beg" in done.stderr
    assert "no group 'x'" in done.stderr


def test_what_was_spawned_ends_with_the_shell_unless_detached(where: Path, kernel: Client) -> None:
    assert script(where, "spawn kim", "spawn leo --detach").returncode == 0
    eventually(lambda: not ps.processes(kernel, lambda row: row.name == "kim"), "kim ends with its shell")
    kernel(Kill(pid=pid_of(kernel, "leo")))


def test_the_readmes_program_runs_as_it_stands(where: Path, tmp_path: Path) -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "program.py").write_text(program)
    ended = llmasos(where, "run", str(tmp_path / "program.py"))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Ada" in ended.stdout
    assert re.search(r"[1-9]\d* pages shared; \[.*'alice'", ended.stdout)
    assert re.search(r"\nKILL from program \d+\n$", ended.stdout)


# --- on a terminal --------------------------------------------------------------------------------------------------


def test_the_prompt_completes_commands_and_names(shell: Terminal) -> None:
    shell.enter("spawn zebulon")
    shell.expect(r"zebulon on tiny")
    shell.expect(PROMPT)
    shell.type("upt" + TAB)
    shell.expect("ime")
    shell.enter("")
    shell.expect(r"up \d.*processes")
    shell.expect(PROMPT)
    shell.type("ps zeb" + TAB)
    shell.expect("ulon")
    shell.enter("")
    shell.expect(r"name +zebulon")


def test_ctrl_c_interrupts_the_answer_and_not_the_shell(shell: Terminal, kernel: Client) -> None:
    shell.enter("spawn mia My name is Ada.")
    shell.expect(r"mia: .*\n")
    shell.expect(PROMPT)
    with speaking(shell, kernel, "mia", f"say NAME {STORY}"):
        kills = kernel(StatsCall()).calls_by_name.get("kill", 0)
        shell.type(CTRL_C)
        eventually(lambda: kernel(StatsCall()).calls_by_name.get("kill", 0) > kills, "the shell sends SIGINT")
    shell.expect(r"\[interrupted\]")
    shell.expect(PROMPT)
    shell.enter("say mia What is my name?")
    shell.expect(r"mia: .*\n")
    shell.expect(PROMPT)
    shell.enter("exit")
    assert shell.wait() == 0


def test_a_driver_that_hangs_is_told_of_and_the_answer_goes_on(shell: Terminal, kernel: Client) -> None:
    shell.enter("spawn pia My name is Ada.")
    shell.expect(r"pia: .*\n")
    shell.expect(PROMPT)
    driver = kernel(BootInfoCall()).devices[0].os_pid
    os.kill(driver, signal.SIGSTOP)
    try:
        shell.enter("say pia What is my name?")
        shell.expect(r"\[device cpu0 has not answered for 5 s; .*hang_seconds")
    finally:
        os.kill(driver, signal.SIGCONT)
    shell.expect(r"Ada")
    shell.expect(PROMPT)


def test_ctrl_c_at_the_prompt_clears_the_line_and_ctrl_d_leaves(shell: Terminal) -> None:
    shell.type("kill 1" + CTRL_C)
    shell.expect(PROMPT)
    shell.enter("uptime")
    shell.expect(r"up \d")
    shell.expect(PROMPT)
    shell.type(CTRL_D)
    assert shell.wait() == 0


def test_an_error_on_a_terminal_is_a_line_and_the_status_of_the_shell_stays_0(shell: Terminal) -> None:
    shell.enter("kill 999999")
    shell.expect("ESRCH: ")
    shell.expect(PROMPT)
    shell.enter("exit")
    assert shell.wait() == 0


def test_a_finished_background_answer_is_announced_at_the_prompt(shell: Terminal, kernel: Client) -> None:
    shell.enter("spawn ned Hello. &")
    shell.expect("answers in the background")
    eventually(lambda: not living(kernel, "ned")[0].decoding, "ned has answered")
    shell.enter("")
    shell.expect(r"\[\d+\] ned: done, \d+ tokens; `cat \d+` shows it")


def test_top_is_live_until_q(shell: Terminal) -> None:
    shell.enter("top")
    shell.expect(r"cpu0 +busy \[")
    shell.expect("q leaves")
    shell.type("q")
    shell.enter("uptime")
    shell.expect(r"up \d")


def test_what_was_spawned_at_a_terminal_outlives_the_shell(where: Path, kernel: Client, tmp_path: Path) -> None:
    with terminal(where, tmp_path) as opened:
        opened.expect(PROMPT)
        opened.enter("spawn kim")
        opened.expect("talks to it")
        opened.enter("exit")
        assert opened.wait() == 0
    kim = pid_of(kernel, "kim")
    assert kernel(Getinfo(kim)).ppid == 1
    with terminal(where, tmp_path) as opened:
        opened.expect(PROMPT)
        opened.enter("say kim My name is Ada.")
        opened.expect("kim: ")
        opened.expect(PROMPT)
        opened.enter("exit")
        opened.expect("live")
        assert opened.wait() == 0
    kernel(Kill(pid=kim))
    assert kernel(Wait(kim)).pid == kim


@WIDTHS
def test_a_shell_without_a_kernel_boots_one_that_stays_with_its_agents(tmp_path: Path, columns: int) -> None:
    place = tmp_path / "r"

    def opens() -> Terminal:
        return terminal(place, tmp_path, "--runtime", str(place), "shell", columns=columns)

    try:
        with opens() as opened:
            lines = opened.expect(r"booted a kernel in the background[^>]*").splitlines()
            assert all(len(line) <= columns or len(line.split()) == 1 for line in lines)
            assert "`llmasos halt` ends it" in " ".join(lines)
            opened.expect(PROMPT)
            assert runtime.holder(place) is not None
            opened.enter("spawn alice --detach")
            opened.expect("talks to it")
            opened.enter("exit 3")
            assert opened.wait() == 3
        assert runtime.holder(place) is not None
        with opens() as opened:
            opened.expect(PROMPT)
            assert "booted" not in opened.screen
            opened.enter("ps alice")
            opened.expect(r"name +alice")
    finally:
        halt(place)
    assert not any(place.iterdir())


def test_a_shell_of_its_own_boots_a_kernel_that_ends_with_it(tmp_path: Path) -> None:
    place = tmp_path / "r"
    with terminal(place, tmp_path, "--runtime", str(place), "--private") as opened:
        opened.expect("booting a kernel that ends with this shell")
        opened.expect(PROMPT)
        assert runtime.holder(place) is not None
        opened.enter("exit 3")
        assert opened.wait() == 3
    assert not place.exists()


def test_a_hang_up_ends_the_shell_and_its_kernel(tmp_path: Path) -> None:
    place = tmp_path / "r"
    with terminal(place, tmp_path, "--runtime", str(place), "--private") as opened:
        opened.expect(PROMPT)
        assert runtime.holder(place) is not None
    eventually(lambda: runtime.holder(place) is None, "the kernel ends")
    eventually(lambda: not place.exists(), "its runtime directory is gone")

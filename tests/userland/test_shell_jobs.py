"""Jobs in the shell, on a terminal: Ctrl-Z, fg, bg, pipelines of agents and of programs of the host."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from llmasos.syscalls.blocking import Client
from llmasos.syscalls.records import Finish, State
from llmasos.syscalls.table import Getinfo, GroupStat, StatsCall
from tests.booted import eventually
from tests.userland.prompt import PROMPT, STORY, pid_of, spawned, speaking
from tests.userland.terminal import CTRL_C, CTRL_Z, Terminal

FLAGS = ["--device", "cpu:threads=1"]

pytestmark = pytest.mark.processes


def test_ctrl_z_stops_an_answer_and_fg_prints_the_rest(shell: Terminal, kernel: Client) -> None:
    spawned(shell, "sue")
    with speaking(shell, kernel, "sue", f"say NAME {STORY}") as pid:
        shell.type(CTRL_Z)
        shell.expect(r"\[\d+\] sue: stopped; `fg` goes on with it")
        shell.expect(PROMPT)
    eventually(lambda: kernel(Getinfo(pid)).state is State.STOPPED, "she is stopped")
    shell.enter("jobs")
    shell.expect(rf"%1  \[{pid}\] sue: stopped")
    shell.expect(PROMPT)
    shell.enter("fg")
    shell.expect(PROMPT)
    shell.enter("cat sue | tail -n 1; jobs; echo no-jobs")
    shell.expect(r"sue: .*")
    shell.expect(r"no-jobs\n")
    assert not kernel(Getinfo(pid)).decoding


def test_a_stopped_answer_goes_on_into_its_file(shell: Terminal, kernel: Client, tmp_path: Path) -> None:
    spawned(shell, "fay")
    kept = tmp_path / "story"
    with speaking(shell, kernel, "fay", f"say NAME '{STORY}' > {kept}"):
        shell.type(CTRL_Z)
        shell.expect(r"\[\d+\] fay: stopped; `fg` goes on with it")
        shell.expect(PROMPT)
    begun = kept.read_text()
    shell.enter("bg")
    shell.expect("ENOTSUP: the rest of what fay says goes to a file")
    shell.expect(PROMPT)
    seen = len(shell.screen)
    shell.enter("fg")
    shell.expect(PROMPT)
    shell.enter("echo told-$((1+1)); cat fay | tail -n 1 > last")
    shell.expect("told-2")
    shell.expect(PROMPT)
    whole = kept.read_text()
    assert whole.startswith(begun)
    assert len(whole) > len(begun)
    assert "stopped" not in whole
    last = Path("last")
    try:
        assert last.read_text() == f"fay: {whole}"
    finally:
        last.unlink()
    assert whole.strip()[-20:] not in shell.screen[seen:]  # an answer may end with blanks


def test_bg_lets_a_stopped_answer_go_on_unheard(shell: Terminal, kernel: Client) -> None:
    spawned(shell, "bea")
    with speaking(shell, kernel, "bea", f"say NAME {STORY}") as pid:
        shell.type(CTRL_Z)
        shell.expect(r"bea: stopped")
        shell.expect(PROMPT)
        shell.enter("bg %1")
        shell.expect("bea goes on in the background")
    eventually(lambda: not kernel(Getinfo(pid)).decoding, "she has answered")
    shell.enter("")
    shell.expect(rf"\[{pid}\] bea: done, \d+ tokens")


def test_a_pipeline_of_agents_is_a_control_group_that_signals_reach_at_once(shell: Terminal, kernel: Client) -> None:
    with speaking(shell, kernel, "one", f"spawn NAME '{STORY}' | spawn two 'Repeat:' | cat -") as first:
        assert "/job-" in kernel(Getinfo(first)).group
        sent = kernel(StatsCall()).calls_by_name.get("group_kill", 0)
        shell.type(CTRL_Z)
        shell.expect(r"%\d spawn one '.*' \| spawn two 'Repeat:' \| cat -: stopped")
        shell.expect(PROMPT)
        assert kernel(StatsCall()).calls_by_name["group_kill"] == sent + 1
    eventually(lambda: kernel(Getinfo(first)).state is State.STOPPED, "one is stopped")
    shell.enter("jobs")
    shell.expect(r"%\d  spawn one .*: stopped")
    shell.expect(PROMPT)
    shell.enter("fg")
    shell.expect(r"spawn one")
    shell.expect(PROMPT)
    home = kernel(Getinfo(first)).group
    assert "/job-" not in home
    assert kernel(Getinfo(pid_of(kernel, "two"))).group == home
    assert not [row.path for row in kernel(GroupStat("/", below=True)) if "/job-" in row.path]


def test_ctrl_c_interrupts_a_pipeline_and_not_the_shell(shell: Terminal, kernel: Client) -> None:
    with speaking(shell, kernel, "ivy", f"spawn NAME '{STORY}' | cat - | cat -") as pid:
        sent = kernel(StatsCall()).calls_by_name.get("group_kill", 0)
        shell.type(CTRL_C)
        eventually(lambda: kernel(StatsCall()).calls_by_name.get("group_kill", 0) > sent, "the shell sends SIGINT")
    shell.expect(PROMPT)
    shell.enter("echo status $?")
    shell.expect(r"\nstatus 130\n")
    assert not kernel(Getinfo(pid)).decoding


def test_agents_in_a_pipe_are_told_what_the_one_before_them_says(shell: Terminal, kernel: Client) -> None:
    shell.enter("spawn source | spawn sink")
    shell.expect(r"%1 what each says is told to the next, carried by this shell: it ends with the shell")
    shell.expect(PROMPT)
    for name, said in (("Ada", "My name is Ada."), ("Ben", "My name is Ben.")):
        shell.enter(f"say source {said}")
        shell.expect(rf"source: (.*{name}.*)\n")
        shell.expect(r"sink: .*\n")
        shell.enter("")
    shell.enter("cat sink | grep you:")
    shell.expect(r"you: .*Ada.*\nyou: .*Ben.*\n")
    shell.expect(PROMPT)
    source, sink = pid_of(kernel, "source"), pid_of(kernel, "sink")
    assert kernel(Getinfo(source)).group == kernel(Getinfo(sink)).group
    assert "/job-" in kernel(Getinfo(sink)).group
    shell.enter("kill %1")
    shell.expect(PROMPT)
    for pid in (source, sink):
        eventually(lambda pid=pid: kernel(Getinfo(pid)).state is State.ZOMBIE, "both are ended")  # type: ignore[misc]


def test_ctrl_c_ends_a_loop_of_answers_and_not_only_the_answer(shell: Terminal, kernel: Client) -> None:
    spawned(shell, "lou")
    with speaking(shell, kernel, "lou", f"for x in 1 2 3; do say NAME '{STORY}'; echo after-$x; done") as pid:
        shell.type(CTRL_C)
        shell.quiet(0.5)
    shell.expect(r"\[interrupted\]\n")
    shell.expect(PROMPT)
    shell.enter("echo $?; cat lou | grep -c you:")
    shell.expect(r"\n130\n\d+\n")
    assert not kernel(Getinfo(pid)).decoding


def test_what_a_job_runs_on_the_host_ends_with_the_shell(shell: Terminal) -> None:
    shell.enter("sh -c 'echo $$; sleep 600' > pid-of-a-sleep & echo begun")
    shell.expect(r"\nbegun\n")
    shell.expect(PROMPT)
    kept = Path("pid-of-a-sleep")
    try:
        eventually(lambda: kept.exists() and kept.read_text().strip().isdigit(), "it runs")
        pid = int(kept.read_text())
        shell.enter("exit")
        assert shell.wait() == 0
        eventually(lambda: not Path(f"/proc/{pid}").exists(), "it has ended")
    finally:
        kept.unlink(missing_ok=True)


def test_programs_of_the_host_have_the_terminal_and_its_keys(shell: Terminal) -> None:
    shell.enter("sleep 600")
    eventually(lambda: shell.foreground != os.getpgid(shell.process.pid), "it has the terminal")
    shell.type(CTRL_Z)
    shell.expect(r"%1 sleep 600: stopped")
    shell.expect(PROMPT)
    shell.enter("bg; jobs")
    shell.expect(r"%1  sleep 600: running")
    shell.expect(PROMPT)
    shell.enter("kill %1; wait; echo $?")
    shell.expect(PROMPT)
    shell.enter("cat - <<< piped | !cat; sh -c 'echo type something; read line; echo got $line'")
    shell.expect(r"piped\ntype something\n")
    shell.enter("some words")
    shell.expect(r"got some words\n")
    shell.expect(PROMPT)
    shell.enter("for x in 1 2 3; do echo turn-$x; sleep 600; done; echo reached-$((1+1))")
    shell.expect("turn-1")
    shell.quiet(0.5)
    shell.type(CTRL_C)
    shell.expect(PROMPT)
    assert "turn-2" not in shell.screen
    assert "reached-2" not in shell.screen


def test_a_reader_that_leaves_interrupts_the_agent_that_speaks_to_it(shell: Terminal, kernel: Client) -> None:
    spawned(shell, "max")
    shell.enter("set -o pipefail")
    shell.expect(PROMPT)
    with speaking(shell, kernel, "max", f"say NAME '{STORY}' | true; echo $?") as pid:
        pass
    shell.expect(r"\n141\n")
    eventually(lambda: kernel(Getinfo(pid)).finish is Finish.INTERRUPT, "its step has ended")


def test_a_full_reader_makes_the_writer_wait(shell: Terminal, tmp_path: Path) -> None:
    big, gate = tmp_path / "big", tmp_path / "gate"
    big.write_text("0123456789abcde\n" * 65536)
    os.mkfifo(gate)
    shell.enter(f"cat {big} | sh -c 'read line < {gate}; wc -c'")

    def position() -> int:
        for entry in Path(f"/proc/{shell.process.pid}/fd").iterdir():
            if os.path.realpath(entry) == str(big):
                return int(Path(f"/proc/{shell.process.pid}/fdinfo/{entry.name}").read_text().split()[1])
        return -1

    eventually(lambda: position() > 0, "cat reads")
    time.sleep(0.5)
    assert 0 < position() < big.stat().st_size / 2, "the pipe is full, and cat waits"
    gate.write_text("go\n")
    shell.expect(rf"\n *{big.stat().st_size}\n")

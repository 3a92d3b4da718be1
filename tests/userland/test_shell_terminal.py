"""The shell on a terminal, as a person has it: pasting, Ctrl-Z, jobs, history, what is typed meanwhile, and idleness."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from llmasos.syscalls import blocking
from llmasos.syscalls.blocking import Client
from llmasos.syscalls.records import Finish, ProcessInfo, State
from llmasos.syscalls.table import BootInfoCall, Getinfo, GroupStat, Kill, StatsCall
from llmasos.userland.programs import ps
from llmasos.userland.programs.boot import private_kernel
from tests.userland.terminal import CTRL_C, CTRL_D, CTRL_L, CTRL_R, CTRL_Z, TAB, WAIT_SECONDS, Terminal

PROMPT = "llmasos>"
ATTEMPTS = 5  # at catching an answer in its midst: one may have ended before the test was given the processor again
IDLE_SECONDS = 20.0
WIDTHS = pytest.mark.parametrize("columns", [60, 80, 200])

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("k")
    with private_kernel(place, ["--device", "cpu:threads=1"]):
        yield place


@pytest.fixture
def kernel(where: Path) -> Iterator[Client]:
    with blocking.connect(where, name="test") as client:
        yield client


@pytest.fixture
def shell(where: Path, tmp_path: Path) -> Iterator[Terminal]:
    with terminal(where, tmp_path) as opened:
        opened.expect(PROMPT)
        yield opened


def terminal(where: Path, home: Path, columns: int = 100) -> Terminal:
    environment = {"LLMASOS_RUNTIME": str(where), "XDG_STATE_HOME": str(home), "PYTHONWARNINGS": "ignore"}
    environment["PAGER"] = "less"
    return Terminal([sys.executable, "-m", "llmasos", "shell"], environment, columns=columns)


def paste(text: str) -> str:
    return f"\x1b[200~{text}\x1b[201~"


def eventually(holds: Callable[[], bool], what: str, pause: float = 0.02) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(pause)


def agent(kernel: Client, name: str) -> int:
    (row,) = ps.processes(kernel, lambda row: row.name == name)
    return row.pid


STORY = "Tell me a long story about a whale."


@contextmanager
def speaking(shell: Terminal, kernel: Client, name: str, line: str) -> Iterator[int]:
    """Have `line` typed, which makes the agent NAME speak. Within this it speaks for as long as a test likes: the driver
    is stopped in the midst of its answer. Gives its pid."""
    driver = kernel(BootInfoCall()).devices[0].os_pid

    def found() -> list[ProcessInfo]:
        return ps.processes(kernel, lambda row: row.name == name and row.state is not State.ZOMBIE)

    def begun(before: int) -> bool:
        return any(row.decoding or row.usage.decoded > before for row in found())

    try:
        for _ in range(ATTEMPTS):
            before = sum(row.usage.decoded for row in found())
            shell.enter(line.replace("NAME", name))
            eventually(partial(begun, before), "it speaks", pause=0.001)
            os.kill(driver, signal.SIGSTOP)
            rows = found()
            if rows[-1].decoding:
                yield rows[-1].pid
                return
            os.kill(driver, signal.SIGCONT)
            shell.expect(PROMPT)
            for row in rows if line.startswith("spawn") else []:
                kernel(Kill(row.pid))
        raise AssertionError(f"it was never caught in its midst, in {ATTEMPTS} attempts")
    finally:
        os.kill(driver, signal.SIGCONT)


def spawned(shell: Terminal, name: str) -> None:
    shell.enter(f"spawn {name}")
    shell.expect(f"{name} on tiny")
    shell.expect(PROMPT)


# --- what is pasted -------------------------------------------------------------------------------------------------


def test_lines_that_are_pasted_are_commands(shell: Terminal) -> None:
    shell.type(paste("echo one | tr a-z A-Z\n# a comment\necho two\n"))
    shell.enter("")
    shell.expect(r"\nONE\ntwo\n")
    shell.expect(PROMPT)


def test_lines_that_are_pasted_behind_free_text_belong_to_it(shell: Terminal, kernel: Client) -> None:
    shell.enter("spawn poet")
    shell.expect("poet on tiny")
    shell.expect(PROMPT)
    shell.type(paste("say poet A line of mine;\nanother | line\n# and a third"))
    shell.enter("")
    shell.expect(r"poet: .*\n")
    shell.expect(PROMPT)
    shell.enter("cat poet")
    shell.expect(r"you: A line of mine;\nanother \| line\n# and a third\n")


@WIDTHS
def test_a_line_that_is_begun_goes_on_behind_a_prompt_of_its_own(where: Path, tmp_path: Path, columns: int) -> None:
    with terminal(where, tmp_path, columns) as shell:
        shell.expect(PROMPT)
        shell.enter("for x in a b; do")
        shell.expect("> ")
        shell.enter("echo go-$x")
        shell.enter("done")
        shell.expect(r"\ngo-a\ngo-b\n")
        shell.quiet(0.5)
        lines = [line for line in shell.display if line]
        assert lines[-6:-1] == ["       > echo go-$x", "       > done", "go-a", "go-b", PROMPT]
        assert max(map(len, lines)) <= columns
        assert "agent" in lines[-1], "the situation stands in one line"
        assert sum("agent" in line and "decoding" in line for line in lines) == 1


# --- what is typed meanwhile ----------------------------------------------------------------------------------------


@WIDTHS
def test_what_is_typed_during_an_answer_waits_unseen_for_the_prompt(
    where: Path, kernel: Client, tmp_path: Path, columns: int
) -> None:
    with terminal(where, tmp_path, columns) as shell:
        shell.expect(PROMPT)
        spawned(shell, f"ann{columns}")
        with speaking(shell, kernel, f"ann{columns}", f"say NAME {STORY}"):
            before = len(shell.screen)
            shell.type("echo typed-$((40+2))\r")
            shell.quiet(1.0)
            assert "typed" not in shell.screen[before:]
        shell.expect(r"echo typed-\$")
        shell.expect(r"\ntyped-42\n")


def test_no_answer_of_the_terminal_is_ever_on_the_screen(shell: Terminal, kernel: Client) -> None:
    spawned(shell, "cleo")
    for key in (CTRL_L, CTRL_C):
        with speaking(shell, kernel, "cleo", f"say NAME {STORY}"):
            shell.type(CTRL_L + key)
            shell.type("\x1b[1;1R")  # as of a terminal that was asked before, and is late
            shell.quiet(1.0)
        shell.expect(r"\n")
        shell.enter("echo there")
        shell.expect(r"\nthere\n")
        shell.expect(PROMPT)
    assert b"\x1b[6n" not in shell.raw, "the terminal is not asked where its cursor is"
    assert "^[" not in shell.screen
    assert not [line for line in shell.display if "1;1R" in line]


def test_an_idle_shell_makes_no_calls_and_sleeps(shell: Terminal, kernel: Client) -> None:
    shell.enter("spawn idler Hello. &")
    eventually(
        lambda: any(row.usage.decoded and not row.decoding for row in ps.processes(kernel) if row.name == "idler"),
        "it has answered",
    )
    shell.enter("uptime")
    shell.expect("processes")
    shell.quiet(3.0)
    before, woken = kernel(StatsCall()), wake_ups(shell.process.pid)
    time.sleep(IDLE_SECONDS)
    after = kernel(StatsCall())
    assert sum(after.calls_by_name.values()) - sum(before.calls_by_name.values()) == 1, "that of this test"
    assert wake_ups(shell.process.pid) - woken <= 1, "two a minute"


def wake_ups(pid: int) -> int:
    """How often the threads of a process have been woken."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


# --- jobs -----------------------------------------------------------------------------------------------------------


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
    assert whole.rstrip("\n")[-20:] not in shell.screen[seen:]


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
    assert kernel(Getinfo(agent(kernel, "two"))).group == home
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
    source, sink = agent(kernel, "source"), agent(kernel, "sink")
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


@pytest.mark.skipif(shutil.which("less") is None, reason="there is no less")
def test_a_pager_is_not_stopped_under_the_shell(where: Path, tmp_path: Path) -> None:
    with terminal(where, tmp_path, 80) as shell:
        shell.expect(PROMPT)
        shell.enter("help")
        shell.expect("Agents")
        shell.quiet(0.5)
        shell.type(CTRL_Z)
        shell.quiet(0.5)
        shell.type("q")
        shell.expect(PROMPT)
        shell.enter("echo there-$((1+1))")
        shell.expect("there-2")


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
    shell.quiet(1.0)
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
    assert kernel(Getinfo(pid)).finish is Finish.INTERRUPT


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


# --- history, completion --------------------------------------------------------------------------------------------


def test_lines_are_kept_for_the_user_alone_and_found_again(where: Path, tmp_path: Path) -> None:
    kept = tmp_path / "llmasos" / "history"
    kept.parent.mkdir()
    kept.write_text("")
    kept.chmod(0o644)
    with terminal(where, tmp_path) as shell:
        shell.expect(PROMPT)
        shell.enter("echo needle-$((6*7))")
        shell.expect(r"\nneedle-42\n")
        shell.expect(PROMPT)
        shell.enter("echo other")
        shell.expect(r"\nother\n")
        shell.type(CTRL_D)
        assert shell.wait() == 0
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    with terminal(where, tmp_path) as shell:
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


def test_chat_remembers_what_was_said_in_it(shell: Terminal, tmp_path: Path) -> None:
    shell.enter("spawn kit")
    shell.expect("kit on tiny")
    for _ in range(2):
        shell.expect(PROMPT)
        shell.enter("chat kit")
        shell.expect("you:")
        shell.type("\x1b[A" if _ else "Hello there.")
        shell.quiet(0.5)
        shell.enter("")
        shell.expect(r"kit: .*\n")
        shell.expect("you:")
        shell.enter("")
    shell.expect(PROMPT)
    shell.enter("cat kit | grep -c 'you: Hello there.'")
    shell.expect(r"\n2\n")
    assert stat.S_IMODE((tmp_path / "llmasos" / "chat_history").stat().st_mode) == 0o600


@WIDTHS
def test_completion_knows_agents_groups_options_variables_and_files(
    where: Path, tmp_path: Path, columns: int, kernel: Client
) -> None:
    name = f"zora{columns}"
    (tmp_path / "a file").write_text("inside\n")
    with terminal(where, tmp_path, columns) as shell:
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
            shell.quiet(0.3)
            shown = "".join(line.removeprefix("       > ") for line in shell.display).replace(" ", "")
            assert found.replace(" ", "") in shown, (typed, shell.display)
            shell.type(CTRL_C)
            shell.expect(PROMPT)


def test_completions_say_what_they_mean(shell: Terminal) -> None:
    for typed, said in (
        ("kill -" + TAB, "ends the process"),
        ("advise tiny " + TAB, "loads it and keeps it"),
        ("policy " + TAB, "shares of the device by nice value"),
        ("gre" + TAB, "program of the host"),
        ("spawn x --" + TAB, "system prompt"),
    ):
        shell.type(typed)
        shell.quiet(0.3)
        assert any(said in line for line in shell.display), (typed, shell.display)
        shell.type(CTRL_C)
        shell.expect(PROMPT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_the_shell_leaves_the_terminal_as_it_was(
    where: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with terminal(where, tmp_path) as shell:
        shell.expect(PROMPT)
        echoes = shell.modes()[3] & termios.ECHO
        assert not echoes, "between prompts nothing is echoed"
        shell.process.send_signal(number)
        assert shell.wait() == -number
        assert shell.modes()[3] & termios.ECHO


def test_a_full_disk_does_not_end_the_shell(shell: Terminal) -> None:
    shell.enter("echo hi > /dev/full")
    shell.expect("EIO: /dev/full: No space left on device")
    shell.enter("echo $? again")
    shell.expect(r"1 again\n")

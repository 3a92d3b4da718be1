"""The shell and its terminal: what it leaves on the screen, in the modes, and on the processor while nobody types."""

from __future__ import annotations

import shutil
import signal
import termios
import time
from pathlib import Path

import pytest

from llmasos.syscalls.blocking import Client
from llmasos.syscalls.table import StatsCall
from llmasos.userland.programs import ps
from tests.booted import eventually
from tests.userland.prompt import PROMPT, STORY, WIDTHS, spawned, speaking, terminal
from tests.userland.terminal import CTRL_C, CTRL_L, CTRL_Z, Terminal

FLAGS = ["--device", "cpu:threads=1"]

pytestmark = pytest.mark.processes
IDLE_SECONDS = 20.0


@WIDTHS
def test_no_answer_of_the_terminal_is_ever_on_the_screen(shell: Terminal, kernel: Client, columns: int) -> None:
    cleo = f"cleo{columns}"
    spawned(shell, cleo)
    for key in (CTRL_L, CTRL_C):
        with speaking(shell, kernel, cleo, f"say NAME {STORY}"):
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


@pytest.mark.skipif(shutil.which("less") is None, reason="there is no less")
def test_a_pager_is_not_stopped_under_the_shell(where: Path, tmp_path: Path) -> None:
    with terminal(where, tmp_path, columns=80, PAGER="less") as shell:
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

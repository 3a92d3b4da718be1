"""What would do harm by mistake, or hold somebody up for no reason: ends of systems, agents that are stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from llmasos.syscalls.blocking import Client
from llmasos.syscalls.records import Signal, State
from llmasos.syscalls.table import Getinfo, Kill
from tests.booted import eventually
from tests.reborn import reborn
from tests.userland.command_line import llmasos
from tests.userland.prompt import PROMPT, STORY, spawned, speaking, terminal
from tests.userland.terminal import CTRL_C, Terminal

pytestmark = pytest.mark.processes
FLAGS = ["--device", "cpu:threads=1"]


def test_halt_asks_where_agents_live(tmp_path: Path) -> None:
    with reborn(tmp_path / "run") as kernel, terminal(kernel.place, tmp_path) as shell:
        shell.expect(PROMPT)
        shell.enter("spawn ada")
        shell.expect("ada on tiny")
        shell.expect(PROMPT)
        shell.enter("halt")
        shell.expect(r"one agent ends with it \(`halt --keep` leaves them to the next kernel\); halt\? \[y/N\]")
        shell.enter("")
        shell.expect("nothing was halted")
        shell.expect(PROMPT)
        os.kill(shell.process.pid, signal.SIGQUIT)
        shell.enter("halt --keep")
        shell.expect("the kernel has halted; the next one goes on with its agents")
        assert shell.wait() == 0
        kernel.end()
        kernel.boot()
        assert "ada" in llmasos(kernel.place, "ps").stdout
        ended = llmasos(kernel.place, "shell", typed="halt\n")
        assert (ended.returncode, ended.stdout) == (0, "the kernel has halted\n"), "a script is not asked"
        kernel.end()


@pytest.mark.parametrize("name", ["reboot", "shutdown", "poweroff", "pkill", "killall", "renice"])
def test_what_is_the_machines_is_not_taken_for_this_systems(name: str, where: Path, tmp_path: Path) -> None:
    harmless = tmp_path / name
    harmless.write_text("#!/bin/sh\necho ran\n")
    harmless.chmod(0o755)
    line = f"PATH={tmp_path}:$PATH; export PATH; {name}; echo $?; !{name}"
    ran = llmasos(where, "shell", "-c", line)
    assert ran.stdout == "2\nran\n"
    assert f"{name!r} is the machine's own" in ran.stderr
    assert f"`!{name}` if you mean it" in ran.stderr


def test_an_agent_that_is_stopped_in_its_answer_is_not_called_answering(kernel: Client, shell: Terminal) -> None:
    spawned(shell, "sue")
    with speaking(shell, kernel, "sue", f"say NAME {STORY} &") as pid:
        kernel(Kill(pid, Signal.STOP))
    eventually(lambda: kernel(Getinfo(pid)).state is State.STOPPED, "it is stopped")
    assert kernel(Getinfo(pid)).decoding
    shell.enter("say sue again")
    shell.expect(r"EAGAIN: process \d+ \(sue\) is stopped in the midst of an answer; `cont \d+` lets it answer")
    shell.enter("cat sue")
    shell.expect(r"\(it is stopped; `cont \d+` lets it go on\)")
    shell.enter("wait sue")
    shell.expect(r"sue is stopped, and does nothing until `cont \d+`")
    shell.type(CTRL_C)
    shell.expect(PROMPT)
    kernel(Kill(pid))

"""What fingers expect: names that are taken, a private kernel beside one's own, settings, sections of man."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmasos.syscalls import runtime
from llmasos.syscalls.blocking import Client
from llmasos.syscalls.records import Signal
from llmasos.syscalls.table import Kill, Spawn
from llmasos.userland.programs.boot import private_kernel
from llmasos.userland.shell import man
from llmasos.userland.shell.situation import fitted
from llmasos.userland.shell.words import COMMANDS
from tests.booted import SIM
from tests.userland.command_line import DEADLINE, llmasos
from tests.userland.prompt import PROMPT, living, terminal

pytestmark = pytest.mark.processes
MODEL = "sim:context=256,vocab=100"


def test_a_name_that_is_taken_is_told_of(where: Path, kernel: Client) -> None:
    first = llmasos(where, "shell", "-c", "spawn same --detach; spawn same --detach")
    one, two = first.stdout.splitlines()
    assert "`say same ...` talks to it" in one
    pid = two.partition("]")[0].removeprefix("[")
    assert two.endswith(f"`say {pid} ...` talks to it; 2 processes are called so: say which by its pid")
    for row in living(kernel, "same"):
        kernel(Kill(row.pid))


def test_verbs_take_patterns_of_names(where: Path, kernel: Client) -> None:
    for name in ("fk-1", "fk-2", "other"):
        kernel(Spawn(MODEL, [1], name=name, detached=True))
    ran = llmasos(where, "kill", "fk-*")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert not living(kernel, "fk-1") + living(kernel, "fk-2")
    assert living(kernel, "other")
    told = llmasos(where, "wait", "fk-?")
    assert [line.partition(": ")[2][:11] for line in told.stdout.splitlines()] == ["exited with"] * 2
    assert llmasos(where, "kill", "fk-*").returncode == 1
    assert llmasos(where, "kill", "-s", "KILL", "other").returncode == 0
    listed = llmasos(where, "kill", "-l").stdout.split()
    assert listed == [word for signal in Signal for word in (str(signal.value), signal.name)]


def test_an_input_that_is_no_text_is_told_in_words(where: Path, agent: int) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "llmasos", "--runtime", str(where), "say", str(agent)],
        input=b"caf\xe9",
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    assert ran.returncode == 2
    assert b"standard input is no UTF-8: byte 3 is 0xE9; `iconv" in ran.stderr


def test_the_manual_is_searched_and_sections_do_no_harm(where: Path) -> None:
    found = llmasos(where, "man", "-k", "vocabulary").stdout + llmasos(where, "man", "-k", "copy").stdout
    assert "fork" in found
    assert llmasos(where, "man", "2", "fork").stdout == llmasos(where, "man", "fork").stdout
    assert llmasos(where, "man", "-k", "nothing-has-this").returncode == 1
    assert "man explains one topic" in llmasos(where, "man", "fork", "exec").stderr


def test_the_examples_of_a_verb_are_lines_of_the_other_shell(tmp_path: Path) -> None:
    page = "\n".join(part.term for part in man.of_command(COMMANDS["say"], verb=True))
    (line,) = [text for text in page.splitlines() if text.startswith("llmasos say alice")]
    split = subprocess.run(["sh", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True)
    assert split.stdout.splitlines() == ["llmasos", "say", "alice", "what's my name?"]
    assert "[&]" not in llmasos(tmp_path, "say").stderr


def test_a_shell_begins_with_lines_of_its_own_and_forgets_those_with_a_blank(where: Path, tmp_path: Path) -> None:
    (tmp_path / "config" / "llmasos").mkdir(parents=True)
    (tmp_path / "config" / "llmasos" / "shellrc").write_text("hi() { echo hi $1; }\nalias up=uptime\nkill nobody\n")
    with terminal(where, tmp_path, XDG_CONFIG_HOME=str(tmp_path / "config")) as shell:
        shell.expect(r"shellrc:\s+line\s+3:\s+ESRCH")
        shell.expect(PROMPT)
        shell.enter(" hi secretly")
        shell.expect(r"\nhi secretly")
        shell.expect(PROMPT)
        shell.enter("hi openly")
        shell.expect(r"\nhi openly")
        shell.expect(PROMPT)
        shell.enter("exit")
        assert shell.wait() == 0
    kept = (tmp_path / "llmasos" / "history").read_text()
    assert "hi openly" in kept
    assert "secretly" not in kept


def test_a_private_kernel_runs_beside_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("XDG_", "LLMASOS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))

    def shell(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "llmasos", *words, "-c", "echo $LLMASOS_RUNTIME; sh -c 'echo $LLMASOS_RUNTIME'"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )

    usual = runtime.default()
    with private_kernel(usual, SIM):
        ran = shell("shell", "--private")
        assert ran.returncode == 0, ran.stderr
        place = Path(ran.stdout.splitlines()[-1])
        assert place != usual
        assert not place.exists()
        named = shell("--runtime", str(usual), "shell", "--private")
        assert named.returncode == 0, "that is the usual place"
        assert runtime.holder(usual) is not None


def test_a_new_group_has_no_pressure_to_show(where: Path) -> None:
    ran = llmasos(where, "group", "/fresh", "pids_max=3")
    assert ran.returncode == 0
    assert "pressure" not in ran.stdout
    assert "pids_max=3" in ran.stdout
    assert "pressure" in json.loads(llmasos(where, "group", "/fresh", "--json").stdout)


@pytest.mark.parametrize(
    ("width", "shown"), [(40, "1 agent  |  tiny 0/9 pages …"), (20, "1 agent …"), (3, "1 …"), (0, "")]
)
def test_the_line_below_leaves_out_whole_parts(width: int, shown: str) -> None:
    assert fitted("1 agent  |  tiny 0/9 pages  |  8 tokens decoded", width) == shown

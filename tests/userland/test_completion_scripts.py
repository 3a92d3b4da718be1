"""Tab in bash, zsh and fish: the scripts that `llmasos completion` prints, in the shells themselves, in a terminal."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from llmasos.syscalls import blocking
from llmasos.syscalls.records import Signal, State
from llmasos.syscalls.table import Getinfo, GroupCreate, Kill, Spawn
from llmasos.userland.programs.boot import private_kernel
from llmasos.userland.shell import completing
from llmasos.userland.shell.completion import ShellCompleter
from llmasos.userland.shell.grammar import Kind
from llmasos.userland.shell.oneshot import VERBS
from llmasos.userland.shell.words import COMMANDS
from tests.booted import eventually
from tests.userland.command_line import DEADLINE, llmasos
from tests.userland.terminal import TAB, Terminal


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The runtime directory of a kernel with an agent called sleepwalker and a group /night/shift."""
    place = tmp_path_factory.mktemp("k")
    with private_kernel(place, ["--device", "sim:time_scale=0"]), blocking.connect(place, name="test") as kernel:
        kernel(Spawn(model="sim:context=256,vocab=100", name="sleepwalker"))
        kernel(GroupCreate("/night"))
        kernel(GroupCreate("/night/shift"))
        yield place


@pytest.fixture
def environment(where: Path, tmp_path: Path) -> dict[str, str]:
    """One in which a person can say `llmasos`, and has no files of their own."""
    command = tmp_path / "bin" / "llmasos"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m llmasos "$@"\n')
    command.chmod(0o755)
    (tmp_path / "image-file.img").touch()
    root = Path(__file__).resolve().parents[2]
    return {
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "LLMASOS_RUNTIME": str(where),
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
    }


LINES = [  # what is typed before Tab, and what stands there then
    ("llmasos checkp", "llmasos checkpoint "),
    ("llmasos kill sleepw", "llmasos kill sleepwalker "),
    ("llmasos spawn --temp", "llmasos spawn --temperature "),
    ("llmasos join sleepwalker /night/sh", "llmasos join sleepwalker /night/shift "),
    ("llmasos policy lott", "llmasos policy lottery "),
    ("llmasos pagein sim:context", "llmasos pagein sim:context=256,vocab=100 "),
    ("llmasos restore image-f", "llmasos restore image-file.img "),
    ("llmasos completion fi", "llmasos completion fish "),
    ("llmasos cat ./image-f", "llmasos cat ./image-file.img "),
    ("llmasos shell image-f", "llmasos shell image-file.img "),
]

SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source <(llmasos completion bash); PS1='READY> '"),
    "zsh": (
        ["zsh", "-f", "-i"],
        "autoload -Uz compinit; compinit -u -D; source <(llmasos completion zsh); PS1='READY> '",
    ),
    "fish": (
        ["fish", "--no-config", "-i"],
        "llmasos completion fish | source; function fish_prompt; echo 'READY> '; end",
    ),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_tab_completes_in_the_shell_itself(shell: str, environment: dict[str, str], tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here")
    command, setup = SHELLS[shell]
    echo = tmp_path / "bin" / "said"  # what the line came to, as the shell hands it over
    echo.write_text('#!/bin/sh\nprintf "GOT<%s>\\n" "$*"\n')
    echo.chmod(0o755)
    start = ["env", "-C", str(tmp_path), *command]
    with Terminal([shutil.which("env") or "env", *start[1:]], environment, columns=200) as terminal:
        terminal.enter(f"{setup}; said set up")
        terminal.expect(r"GOT<set up>")
        for typed, whole in LINES:
            terminal.enter("said next")
            terminal.expect("GOT<next>")
            terminal.type(f"{typed}{TAB}")
            terminal.quiet(1.5)
            terminal.type("\x01said \x05\r")  # to the beginning of the line, and back to its end
            assert terminal.expect(r"GOT<[^>]*>").strip() == f"GOT<{whole.strip()}>", typed


def test_bash_reads_the_script_without_a_word(environment: dict[str, str]) -> None:
    for shell in ("bash", "zsh", "fish"):
        if shutil.which(shell) is None:
            continue
        said = completing.script(shell)
        checked = subprocess.run([shell, "-n"], input=said, capture_output=True, text=True, timeout=DEADLINE, check=False)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", ""), shell


def candidates(where: Path, *words: str) -> list[str]:
    return [line.partition("\t")[0] for line in llmasos(where, "__complete", *words).stdout.splitlines()]


def test_candidates_are_those_of_the_place_in_the_line(where: Path) -> None:
    assert "sleepwalker" in candidates(where, "kill", "")
    assert "-STOP" in candidates(where, "kill", "-S")
    assert candidates(where, "ps", "-o", "pid,NA") == ["pid,NAME"]
    assert candidates(where, "groups", "--sort", "-STA") == ["-STALL"]
    assert candidates(where, "say", "sleepwalker", "") == [], "text is anybody's"
    assert candidates(where, "advise", "tiny", "p") == ["pin"]
    assert candidates(where, "man", "EBU") == ["EBUSY"]
    assert candidates(where, "spawn", "a", "--group", "/ni") == ["/night", "/night/shift"]
    assert candidates(where, "run", "") == [completing.FILES]
    assert candidates(where, "fly", "") == []


def test_only_wait_is_offered_processes_that_have_exited(where: Path) -> None:
    with blocking.connect(where, name="test") as kernel:
        pid = kernel(Spawn(model="sim:context=256,vocab=100", name="late"))
        assert "late" in candidates(where, "say", "la")
        kernel(Kill(pid, Signal.KILL))
        eventually(lambda: kernel(Getinfo(pid)).state is State.ZOMBIE, "it has exited")
        for verb in ("kill", "say", "ps"):
            assert candidates(where, verb, "la") == []
            assert str(pid) not in candidates(where, verb, "")
        assert candidates(where, "wait", "la") == ["late"]
        for line, offered in (("wait la", ["late"]), ("kill la", []), ("say la", [])):
            found = ShellCompleter(COMMANDS, kernel).get_completions(Document(line), CompleteEvent())
            assert [one.text for one in found] == offered, line


def test_bash_falls_back_to_names_of_files(environment: dict[str, str]) -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed here")
    said = "source <(llmasos completion bash); complete -p llmasos"
    shown = subprocess.run(
        ["bash", "-c", said], env=environment, capture_output=True, text=True, timeout=DEADLINE, check=True
    )
    assert "-o default" in shown.stdout


def test_a_name_that_a_shell_would_carry_out_is_not_put_into_its_line(where: Path) -> None:
    with blocking.connect(where, name="test") as kernel:
        for name in ("$(touch gone)", "`id`", "a;b", "two words", "x'y", "-rf"):
            pid = kernel(Spawn(model="sim:context=256,vocab=100", name=name))
            found = candidates(where, "kill", "")
            assert str(pid) in found
            assert name not in found


def test_without_a_kernel_there_is_no_complaint(tmp_path: Path) -> None:
    ended = llmasos(tmp_path, "__complete", "kill", "")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert "kill" in candidates(tmp_path, "ki")


@pytest.mark.parametrize("name", VERBS)
def test_every_kind_of_word_is_completed_or_is_free(name: str) -> None:
    free = {Kind.NAME, Kind.TIME, Kind.INTEGER, Kind.DECIMAL, Kind.TEXT, Kind.WORDS, Kind.SIGNAL}
    asked = {*completing._ASK, Kind.FILE, Kind.COLUMN, Kind.COLUMNS}
    command = VERBS[name]
    kinds = {param.kind for param in command.params} | {option.kind for option in command.options if option.kind}
    assert kinds <= free | asked

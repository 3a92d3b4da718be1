"""The shell's language, beside bash: both run the same scripts, and print and return the same.

What a command of this system does is tested elsewhere; here are words, pipes, redirections, flow and statuses.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.programs.boot import private_kernel
from llmasos.userland.programs.screen import Screen
from llmasos.userland.sdk import actions
from llmasos.userland.sdk.system import System
from llmasos.userland.shell.evaluate import leave
from llmasos.userland.shell.main import Session
from llmasos.userland.shell.script import run_lines

BASH = shutil.which("bash")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    place = tmp_path_factory.mktemp("k")
    with private_kernel(place, ["--device", "sim"]), System.connect(place, name="test") as connected:
        yield connected


class Ran:
    """A script that has run: what it printed and returned."""

    def __init__(self, system: System, script: str, place: Path, *arguments: str) -> None:
        with (place / "out").open("w+") as out, (place / "err").open("w+") as err:
            shell = Session(system, Screen(out, err), lambda _: "", interactive=False)
            shell.variables.arguments = list(arguments)
            status = run_lines(shell, script.splitlines(), leaves=True)
            self.status = leave(shell, shell.status if shell.status is not None else status)
        self.out = (place / "out").read_text()
        self.err = (place / "err").read_text()


KEPT = (Path(__file__).with_name("shell_scripts.txt")).read_text()
SCRIPTS = {name: text[:-1] for name, text in re.findall(r"^==== (.*)\n((?:(?!====).*\n)+)", KEPT, re.MULTILINE)}


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) == KEPT.count("==== ") >= 78


@pytest.mark.skipif(BASH is None, reason="there is no bash to compare with")
@pytest.mark.processes
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_does_what_it_does_in_bash(
    name: str, system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = SCRIPTS[name]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for place in (ours, theirs):
        (place / "run").mkdir(parents=True)
    assert BASH is not None
    (theirs / "script").write_text(f"set +m\n{script}\n" if "return" not in name else script)
    command = [BASH, str(theirs / "script"), "p1", "p  2", "p3"]
    if name == "return in a file":
        command = [BASH, "-c", f'. "{theirs}/script"']
    expected = subprocess.run(
        command, cwd=theirs / "run", capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False
    )
    monkeypatch.chdir(ours / "run")
    ran = Ran(system, script, ours, "p1", "p  2", "p3")
    assert (ran.out, ran.status) == (expected.stdout, expected.returncode), ran.err


def test_a_model_whose_template_cannot_be_rendered_is_spoken_to_in_plain_text_and_that_is_told_once(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = SyscallError(Errno.EINVAL, "the template is broken in line 3")
    monkeypatch.setattr(actions, "_chat_of", lambda *_: broken)
    ran = Ran(system, "spawn ann hello\nsay ann and again\nspawn ben hello", tmp_path)
    assert (ran.status, ran.err) == (0, "sim is spoken to in plain text: the template is broken in line 3\n")

"""Where errors go, and what is said of them: redirected, to a full disk, misspelt, not to be written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.table import Rename
from llmasos.syscalls.wire import encode_request
from tests.userland.command_line import DEADLINE, llmasos

pytestmark = pytest.mark.processes
FULL = "No space left on device"


@pytest.mark.parametrize("line", ["kill nobody", "cat -x", "cat ./nowhere", "say nobody 'hello'", "f", "eval f"])
def test_an_error_goes_where_stderr_is_redirected(line: str, where: Path, tmp_path: Path) -> None:
    ran = llmasos(where, "shell", "-c", f"f() {{ kill nobody; }}; {line} 2> errors; echo $?", cwd=tmp_path)
    assert ran.stderr == ""
    status = int(ran.stdout)
    assert status in (1, 2)
    assert (tmp_path / "errors").read_text().count("\n") == 1


def test_a_command_whose_stderr_is_full_has_its_own_status(where: Path) -> None:
    ran = llmasos(
        where, "shell", "-c", "kill 2> /dev/full; echo $?; kill nobody 2> /dev/full; echo $?; true 2> /dev/full; echo $?"
    )
    assert ran.stdout == "2\n1\n0\n"
    assert set(ran.stderr.splitlines()) <= {f"EIO: /dev/full: {FULL}"}


@pytest.mark.parametrize(
    "line", ["ps; ps; uptime; echo x", "for i in 1 2 3 4; do echo $i; done", "f() { ps; ps; }; f; f"]
)
def test_a_full_disk_is_told_of_once(line: str, where: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "llmasos", "--runtime", str(where), "shell", "-c", line],
            stdout=full,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
    assert ran.returncode == 1
    assert ran.stderr == f"EIO: the output cannot be written: {FULL}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["shell", "-c", "shel"], "did you mean `!llmasos shell`"),
        (["shell", "-c", "status"], "'status' is a verb of the command line"),
        (["shell", "-c", "frok"], "did you mean 'fork'?"),
        (["shell", "-c", "ps --jsno"], "did you mean --json?"),
        (["shel"], "did you mean 'shell'?"),
        (["ps", "--jsno"], "did you mean --json?"),
        (["ps", "-o", "NAM"], "did you mean NAME?"),
        (["spawn", "x", "hello", "--jsno"], "did you mean --json?"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_nearest(words: list[str], said: str, where: Path) -> None:
    ran = llmasos(where, *words)
    assert ran.returncode in (1, 2, 127)
    assert said in ran.stderr


def test_a_name_that_is_no_text_is_told_in_words(where: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "llmasos", "--runtime", str(where), "spawn", b"n\xe9"],
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    assert ran.returncode == 2
    assert b"its character 1 is the byte 0xE9, which is no UTF-8" in ran.stderr
    assert b"codec" not in ran.stderr
    with pytest.raises(SyscallError, match="character 0 is half a surrogate pair"):
        encode_request(1, Rename(1, "\ud800"))


def test_a_model_that_the_kernel_knows_is_checked_by_its_name(where: Path) -> None:
    by_path = Path(__file__).parents[2] / "models" / "tiny"
    first, second = llmasos(where, "models", "check", "tiny"), llmasos(where, "models", "check", str(by_path))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout

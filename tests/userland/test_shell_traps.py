"""What happens to a shell from outside, beside bash: Ctrl-C with a `trap`, and what runs at the end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.userland.command_line import DEADLINE, llmasos

pytestmark = pytest.mark.processes
BASH = shutil.which("bash")


def interrupted(command: list[str], where: Path, place: Path) -> tuple[str, int]:
    """Press Ctrl-C once the script says `ready`; what it prints and returns. The script waits for a file, so that nothing
    depends on the time it takes."""
    place.mkdir()
    reset = "import os, signal, sys; [signal.signal(n, signal.SIG_DFL) for n in set(signal.valid_signals()) - {9, 19}]"
    reset += "; os.execv(sys.argv[1], sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, "-c", reset, *command],  # in the background Ctrl-C may be ignored
        env={**os.environ, "LLMASOS_RUNTIME": str(where)},
        cwd=place,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as script:
        assert script.stdout is not None
        assert script.stdout.readline() == "ready\n"
        os.killpg(script.pid, signal.SIGINT)
        if "ignored" in command[-1]:
            (place / "go").touch()
        out, _ = script.communicate(timeout=DEADLINE)
        return out, script.returncode


WAIT = "sh -c 'echo ready; while [ ! -e go ]; do sleep 0.1; done'"


@pytest.mark.skipif(BASH is None, reason="there is no bash to compare with")
@pytest.mark.parametrize(
    "script",
    [
        f"trap 'echo heard' INT; {WAIT}; echo going on $?; trap",
        f"trap 'echo heard; exit 5' INT; trap 'echo bye $?' EXIT; {WAIT}; echo never",
        f"trap 'echo bye' EXIT; {WAIT}; echo never",
        f"trap '' INT; echo ignored > /dev/null; {WAIT}; echo on $?",
        f"trap 'echo heard' INT; for i in 1 2; do if [ $i = 1 ]; then {WAIT}; fi; echo $i; done; echo end",
        f"trap 'echo outer' INT; (trap - INT; {WAIT}; echo never); echo after $?",
        f"trap 'echo no' INT; trap - INT; {WAIT}; echo never",
    ],
)
def test_ctrl_c_does_what_it_does_in_bash(script: str, where: Path, tmp_path: Path) -> None:
    assert BASH is not None
    theirs = interrupted([BASH, "-c", script], where, tmp_path / "theirs")
    ours = interrupted([sys.executable, "-m", "llmasos", "shell", "-c", script], where, tmp_path / "ours")
    said, status = theirs
    # A shell that dies of SIGINT has status 130, as its parent says it.
    assert ours == (said, 128 - status if status < 0 else status)


def test_lines_are_said_one_by_one(where: Path, tmp_path: Path) -> None:
    (tmp_path / "questions").write_text("one\ntwo\nthree\n")
    lines = (
        'spawn ann > /dev/null; while read -r line; do n=$((n+1)); echo "$n: $line"; '
        'say ann --max 1 "$line" > /dev/null; done < ./questions; cat ann --json | grep -c one'
    )
    ran = llmasos(where, "shell", "-c", lines, cwd=tmp_path)
    assert ran.stdout == "1: one\n2: two\n3: three\n1\n", ran.stderr


def test_read_with_a_prompt_asks_the_person_and_without_an_input_reads_tokens(where: Path) -> None:
    typed = "read -p 'name? ' who\nada\necho hello $who\nread -r path\nC:\\new\necho $path\n"
    ran = llmasos(where, "shell", typed=typed)
    assert (ran.returncode, ran.stdout) == (0, "hello ada\nC:\\new\n"), ran.stderr
    ran = llmasos(where, "shell", "-c", "spawn bob; say bob --max 2 'hi' > /dev/null; read bob 0 1")
    assert ran.stdout.splitlines()[-1].split()[0] == "0", "a position, and a token"


def test_a_file_that_is_sourced_or_evaluated_where_its_status_is_looked_at_fails_nothing(
    where: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("false\necho went on\nfalse\n")
    ran = llmasos(where, "shell", typed="set -e\n. ./file || echo tested\neval false || echo tested\n", cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (0, "went on\ntested\ntested\n"), ran.stderr

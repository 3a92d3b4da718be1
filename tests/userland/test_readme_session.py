"""The sessions in the documents are typed, line by line, into the shell of a fresh kernel: no line is refused, and the
agents answer what the documents say they answer."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmasos.userland.programs.boot import private_kernel
from tests.booted import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "llmasos> "
SAID = re.compile(r"(?:\[\d+\] )?alice: ")  # what she answers; how long bob's story is by then, nobody knows


def session(document: str) -> tuple[list[str], list[str]]:
    """The lines that a document has typed, in order, and the answers that it shows."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    typed = [line.removeprefix(PROMPT) for line in lines if line.startswith(PROMPT)]
    return typed, [line for line in lines if SAID.match(line)]


def run(lines: list[str], place: Path) -> subprocess.CompletedProcess[str]:
    with private_kernel(place, ["--device", "cpu:threads=1"]):
        return subprocess.run(
            [sys.executable, "-m", "llmasos", "--runtime", str(place), "shell"],
            input="\n".join(lines) + "\n",
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            cwd=place.parent,  # some sessions write files
        )


@pytest.mark.parametrize("document", ["README.md", "docs/shell.md"])
def test_every_line_of_a_documents_session_is_accepted(document: str, tmp_path: Path) -> None:
    typed, answers = session(document)
    assert len(typed) >= 3
    assert len(answers) >= 2
    done = run(typed, tmp_path / "runtime")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in answers if line not in done.stdout.splitlines()] == []


@pytest.mark.parametrize("wrong", ["stop alice 7", "stop # alice", "say nobody hello", "frok 6"])
def test_a_session_with_a_line_that_is_refused_is_noticed(wrong: str, tmp_path: Path) -> None:
    done = run(["spawn alice", wrong, "ps"], tmp_path / "runtime")
    assert done.returncode == 1
    assert re.fullmatch(r"E[A-Z]+: .+\n", done.stderr), done.stderr

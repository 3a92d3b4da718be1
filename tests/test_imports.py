"""What is imported when: a command line and a blocking program start without waiting for what they do not use."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "transformers",
    "trio",
    "numpy",
    "asyncio",
    "jinja2",
    "tokenizers",
    "rich",
    "prompt_toolkit",
    "textual",
)


def loaded(program: str) -> set[str]:
    """Which of the heavy modules a program has imported at its end."""
    ask = f"import sys\n{program}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "program",
    [
        "import llmasos",
        "import llmasos; llmasos.System, llmasos.LLM, llmasos.Client, llmasos.SyscallError",
        "from llmasos.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: print()",
        "import llmasos.syscalls.blocking",
    ],
    ids=["llmasos", "system", "help", "blocking"],
)
def test_a_program_that_makes_blocking_calls_imports_nothing_heavy(program: str) -> None:
    assert loaded(program) == set()


def test_every_public_name_is_there_and_no_other() -> None:
    import llmasos

    for name in llmasos.__all__:
        assert getattr(llmasos, name) is not None
        assert name in dir(llmasos)
    with pytest.raises(AttributeError, match="nothing"):
        llmasos.nothing  # noqa: B018


def test_no_test_file_imports_from_another() -> None:
    """What several need is in modules beside them: a file of tests can be run, split, renamed and dropped alone."""
    files = [*Path(__file__).parent.rglob("*.py")]
    assert len(files) > 100
    importing = re.compile(
        r"^\s*(?:from|import) (?:\S+\.)?test_\w+|^\s*from tests\S* import (?:.*\b)?test_\w+", re.MULTILINE
    )
    assert [file.name for file in files if importing.search(file.read_text())] == []

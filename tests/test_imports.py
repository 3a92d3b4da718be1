"""What is imported when: a command line and a blocking program start without waiting for what they do not use."""

from __future__ import annotations

import subprocess
import sys

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

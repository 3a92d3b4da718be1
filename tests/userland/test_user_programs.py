"""Programs as users write them: each runs alike in both faces and under every event loop, type checkers find nothing in
them, and find every one of twenty mistakes."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from llmasos.userland.sdk.system import System
from tests.loops import LOOPS, run_under

pytestmark = [pytest.mark.processes, pytest.mark.long]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PROGRAMS = sorted((HERE / "user_programs").glob("*.py"))

HEAD = """\
from __future__ import annotations

from llmasos import LLM, Client, Errno, Limits, Process, SyscallError, System, aio


def blocking(system: System, agent: Process, llm: LLM, client: Client) -> None:
"""
MISTAKES = [
    "agent.ask(3)",
    "agent.ask()",
    'agent.ask("Who?", max_token=3)',
    'agent.ask("Who?", timeout="soon")',
    'number: int = agent.ask("Who?")',
    'system.spawn(temp=3)',
    'system.spawn("tiny", temperature="hot")',
    'system.spawn("tiny", thoughts="all")',
    'system.spawn("tiny", None, "name")',
    'system.spawn(limits=100)',
    'agent.nice("low")',
    'agent.limits(tokens=3)',
    'agent.fork("two")',
    'agent.fork(2).kill()',
    'system.group("guests", kv_maximum=3)',
    'system.advise("tiny", "keep it")',
    'agent.info().tokens',
    'llm.generate("Once", max_new_tokens="ten")',
    'client.predict(agent, "Who?")',
    'Errno.ENOWHERE',
]  # fmt: skip


def program(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_twelve() -> None:
    assert len(PROGRAMS) == 12
    assert len(set(MISTAKES)) == 20


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # trio's, of a stream that is left
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_does_the_same_in_both_faces_and_under_every_loop(cpu_system: System, path: Path) -> None:
    module, place = program(path), str(cpu_system.kernel.runtime)
    wanted = module.blocking(place)
    assert wanted
    assert {loop: run_under(loop, module.awaited, place) for loop in LOOPS} == dict.fromkeys(LOOPS, wanted)


def mypy(*files: Path) -> list[tuple[str, int]]:
    """What `mypy --strict` objects to: files and lines."""
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary"]
    said = subprocess.run([*command, *map(str, files)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert said.returncode in (0, 1), said.stdout + said.stderr
    found = [re.match(r"(.+?):(\d+): error:", line) for line in said.stdout.splitlines()]
    return [(Path(one[1]).name, int(one[2])) for one in found if one is not None]


def pyright(*files: Path) -> list[tuple[str, int]]:
    """What pyright objects to, in its own strictness."""
    settings = files[0].parent / "pyrightconfig.json"
    settings.write_text(
        json.dumps(
            {
                "typeCheckingMode": "standard",
                "pythonVersion": "3.11",
                "extraPaths": [str(ROOT)],
                "include": [*map(str, files)],
            }
        )
    )
    command = [
        sys.executable,
        "-m",
        "basedpyright",
        "--project",
        str(settings),
        "--outputjson",
        "--pythonpath",
        sys.executable,
    ]
    said = subprocess.run(command, cwd=files[0].parent, capture_output=True, text=True, check=False)
    assert said.returncode in (0, 1), said.stdout + said.stderr
    told = [one for one in json.loads(said.stdout)["generalDiagnostics"] if one["severity"] == "error"]
    return [(Path(one["file"]).name, one["range"]["start"]["line"] + 1) for one in told]


@pytest.mark.parametrize("check", [mypy, pyright])
def test_type_checkers_catch_every_mistake_and_find_nothing_in_the_programs(check: object, tmp_path: Path) -> None:
    assert callable(check)
    wrong = tmp_path / "mistakes.py"
    lines = [*MISTAKES, "aio.System.connect(3)"]
    wrong.write_text(HEAD + textwrap.indent("\n".join(lines), "    ") + "\n")
    copies = [wrong]
    for path in PROGRAMS:
        copies.append(tmp_path / path.name)
        copies[-1].write_text(path.read_text())
    first = HEAD.count("\n") + 1
    assert sorted(set(check(*copies))) == [("mistakes.py", first + i) for i in range(len(lines))]

"""The examples, and every block of the programming guide, as OS processes against one private kernel."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples import tool_caller
from tests.booted import booted

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
GUIDE = ROOT / "docs" / "programming.md"
PATIENCE = 240.0  # seconds, for a machine that is busy; on an idle one each takes a few

ESSENTIAL = {
    "ten_lines": r"alice's twin: Your name is Ada\.",
    "best_of_n": r"best of 8: fig, lemon, banana, plum$",
    "tree_of_thought": r"found: (?=.*rain)(?=.*happy)",
    "tool_caller": r"calculate: 42$",
    "pipeline": r"8 of 8 lists came out as they went in$",
}


@pytest.fixture(scope="module")
def runtime() -> Iterator[Path]:
    with booted("--device", "cpu:threads=1") as kernel:
        yield kernel.place


def run(runtime: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python on the kernel of a runtime directory, from the root of the checkout, until it ends."""
    environment = {
        **os.environ,
        "LLMASOS_RUNTIME": str(runtime),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_every_example_is_tried_and_listed() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(ESSENTIAL)
    for page in (EXAMPLES / "README.md", GUIDE):
        assert all(f"{name}.py" in page.read_text() for name in ESSENTIAL)


@pytest.mark.parametrize("name", ESSENTIAL)
def test_an_example_imports_the_package_as_its_users_do(name: str) -> None:
    """The names of `llmasos` and `llmasos.aio`, and the system calls; apart from them trio and Python's own library."""
    for node in ast.walk(ast.parse((EXAMPLES / f"{name}.py").read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        else:
            found = [node.module or "."] if isinstance(node, ast.ImportFrom) else []
        for module in found:
            ours = module in ("llmasos", "llmasos.aio", "llmasos.syscalls.table")
            assert ours or module == "trio" or module.split(".")[0] in sys.stdlib_module_names, module


@pytest.mark.parametrize("name", ESSENTIAL)
def test_an_example_does_what_it_says_and_exits_0(runtime: Path, name: str) -> None:
    done = run(runtime, str(EXAMPLES / f"{name}.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(ESSENTIAL[name], done.stdout, re.MULTILINE), done.stdout
    assert done.stderr == ""


def test_an_example_that_fails_says_why_in_one_line_and_exits_1(runtime: Path) -> None:
    done = run(runtime, str(EXAMPLES / "best_of_n.py"), "-n", "1000")
    assert done.returncode == 1
    assert re.fullmatch(r"best_of_n: E\w+: .*\n", done.stderr), done.stderr


def test_every_block_of_the_programming_guide_runs(runtime: Path) -> None:
    """The blocks are compiled at their own lines of the guide, so that a traceback points there."""
    guide = GUIDE.read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL))
    program = "".join(
        f"exec(compile({chr(10) * guide.count(chr(10), 0, block.start(1)) + block[1]!r}, {str(GUIDE)!r}, 'exec'))\n"
        for block in blocks
    )
    done = run(runtime, "-c", program)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert len(blocks) > 10


# --- what the model may write, and the tool caller must not fall over -----------------------------------------------


@pytest.mark.parametrize(
    ("said", "result"),
    [
        ('{"tool": "calculate", "arguments": {"expression": "(12 + 30) * 7"}}', "294"),
        ('{"tool": "calculate", "arguments": {"expression": "1 / 8 - 1"}}', "-0.875"),
        ('{"tool": "remind", "arguments": {"text": "stretch", "minutes": 5}}', "stretch"),
    ],
)
def test_a_tool_call_is_carried_out(said: str, result: str) -> None:
    assert tool_caller.act(said)[1].endswith(result)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ('{"tool": "time", "arguments": {"city": "Os', "Unterminated"),
        ("[]", "not of the form"),
        ('{"tool": "time"}', "not of the form"),
        ('{"tool": "time", "arguments": ["Oslo"]}', "not of the form"),
        ('{"tool": "weather", "arguments": {"city": "Oslo"}}', "no tool 'weather'"),
        ('{"tool": ["time"], "arguments": {}}', "no tool"),
        ('{"tool": "time", "arguments": {}}', "does not take"),
        ('{"tool": "time", "arguments": {"city": 7}}', "does not take"),
        ('{"tool": "time", "arguments": {"city": "Nowhere at all"}}', "no time zone"),
        ('{"tool": "remind", "arguments": {"text": "x", "minutes": "soon"}}', "does not take"),
        ('{"tool": "remind", "arguments": {"text": "x", "minutes": 1e300}}', "does not take"),
        ('{"tool": "calculate", "arguments": {"expression": "1 / 0"}}', "does not take"),
        ('{"tool": "calculate", "arguments": {"expression": "1 +"}}', "does not take"),
        ('{"tool": "calculate", "arguments": {"expression": "9 ** 9 ** 9"}}', "not plain arithmetic"),
        ('{"tool": "calculate", "arguments": {"expression": "__import__(\'os\')"}}', "not plain arithmetic"),
    ],
)
def test_a_bad_tool_call_is_refused_with_a_reason(said: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        tool_caller.act(said)

"""Which tests of the core run which statements, and the processor time of each.

Measured by probes: the statements that are asked about call a function first, all others are what they are. So it takes
no longer than the tests do.
"""

from __future__ import annotations

import ast
import builtins
import ctypes
import importlib.abc
import importlib.machinery
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Collection, Generator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import NoReturn

import msgspec
import pytest

from tests.mutation.mutants import Mutant

ROOT = Path(__file__).resolve().parents[2]
TESTS = "tests/kernel"
FIRST = "tests/kernel/test_lives.py::test_the_core_does_what_it_did[plain]"  # it looks at all that it runs
OPTIONS = ["-q", "-s", "-x", "-m", "not processes", "--hypothesis-profile=quick", "--hypothesis-seed=0"]
OPTIONS += ["-p", "no:cacheprovider", "-p", "no:xdist", "--timeout=0"]  # no clock decides, on a slow machine either
OPTIONS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what is imported before the fork
IMPORT = ""  # in a map: a line that runs when its module is imported
_PR_SET_PDEATHSIG = 1


class Map(msgspec.Struct):
    """Which tests run which statements, and the seconds of processor time that each takes."""

    seconds: dict[str, float] = {}
    lines: dict[str, dict[str, list[str]]] = {}  # path -> the line where a statement begins -> tests, or IMPORT

    def has(self, mutant: Mutant) -> bool:
        return str(mutant.statement) in self.lines.get(mutant.path, {})

    def tests_of(self, mutant: Mutant, seconds: float = 0.0) -> list[str]:
        """The tests that run a mutant's statement, all if it runs at import: a recorded life, then the quickest first.
        `seconds`: of processor time, together; 0 is as long as it takes."""
        found = self._of(mutant)
        every = set(self.seconds) if self.at_import(mutant) else set(found) & self.seconds.keys()
        ordered, taken = sorted(every, key=lambda test: (test != FIRST, self.seconds[test], test)), 0.0
        for at, test in enumerate(ordered):
            taken += self.seconds[test]
            if seconds and taken > seconds:
                return ordered[:at]
        return ordered

    def at_import(self, mutant: Mutant) -> bool:
        return not mutant.function or IMPORT in self._of(mutant)

    def _of(self, mutant: Mutant) -> list[str]:
        return self.lines.get(mutant.path, {}).get(str(mutant.statement), [])


class Changed(importlib.machinery.SourceFileLoader):
    """Gives modules of the core another text, each by what `changed` makes of its file's name."""

    def __init__(self, module: str, file: Path, tree: ast.Module) -> None:
        super().__init__(module, os.fspath(file))
        self._module, self._file, self._tree = module, file, tree

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self._module:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, origin=os.fspath(self._file))

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._tree, os.fspath(self._file), "exec")


def change(path: str, tree: ast.Module) -> None:
    """From now on this file of the core is imported with another text."""
    module = "llmasos." + path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    sys.meta_path.insert(0, Changed(module, ROOT / "llmasos" / path, tree))


def probed(text: str, lines: Collection[int], probe: str) -> ast.Module:
    """A file's tree in which each statement that begins at one of these lines calls `probe` with its line first."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            if isinstance(block := getattr(node, name, None), list):
                block[:] = [one for statement in block for one in _with_probe(statement, lines, probe)]
    return ast.fix_missing_locations(tree)


def _with_probe(statement: ast.stmt, lines: Collection[int], probe: str) -> list[ast.stmt]:
    if statement.lineno not in lines:
        return [statement]
    call = ast.Call(ast.Name(probe, ast.Load()), [ast.Constant(statement.lineno)], [])
    return [ast.copy_location(ast.Expr(call), statement), statement]


class _Measuring:
    """A plugin of pytest's: the probes that each test meets, and how long it takes."""

    def __init__(self, hits: dict[str, set[int]], result: Map) -> None:
        self._hits, self._result = hits, result

    def note(self, test: str) -> None:
        for path, lines in self._hits.items():
            for line in lines:
                self._result.lines[path].setdefault(str(line), []).append(test)
            lines.clear()

    def pytest_collection_finish(self) -> None:
        self.note(IMPORT)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        begun = time.process_time()
        try:
            return (yield)
        finally:
            self._result.seconds[item.nodeid] = round(time.process_time() - begun, 3)
            self.note(item.nodeid)


def measure(wanted: Sequence[Mutant], workers: int) -> Map:
    """Which tests run these mutants' statements. The tests must be green."""
    with tempfile.TemporaryDirectory(prefix="llmasos-map-") as place:
        shares: list[list[str]] = [[] for _ in range(workers)]
        for test in sorted((ROOT / TESTS).glob("test_*.py"), key=lambda file: -file.stat().st_size):
            min(shares, key=len).append(os.fspath(test.relative_to(ROOT)))
        children = {}
        for number, share in enumerate(shares):
            if (pid := os.fork()) == 0:
                _measure(wanted, share, Path(place, str(number)))
            children[pid] = number
        result = Map(lines={one.path: {} for one in wanted})
        for one in wanted:
            result.lines[one.path].setdefault(str(one.statement), [])
        for pid, number in children.items():
            if os.waitpid(pid, 0)[1]:
                raise SystemExit("the tests fail without a mutant")
            part = read(Path(place, str(number)))
            result.seconds |= part.seconds
            for path, lines in part.lines.items():
                for line, tests in lines.items():
                    result.lines[path][line] = sorted({*result.lines[path][line], *tests})
    return result


def _measure(wanted: Sequence[Mutant], tests: list[str], place: Path) -> NoReturn:
    code = 1
    try:
        end_with_parent()
        preload()
        hits: dict[str, set[int]] = {one.path: set() for one in wanted}
        for path, met in hits.items():
            name = f"_met_{path.replace('/', '_').replace('.', '_')}"
            setattr(builtins, name, met.add)
            lines = {one.statement for one in wanted if one.path == path and one.function}
            change(path, probed((ROOT / path).read_text(), lines, name))
        result = Map(lines={path: {} for path in hits})
        code = int(pytest.main([*tests, *OPTIONS], plugins=[_Measuring(hits, result)]))
        write(place, result)
    finally:
        sys.stdout.flush()
        os._exit(code)


def preload() -> None:
    """Import what the tests need and what is none of the kernel's, once for all forks."""
    import hypothesis.stateful
    import numpy
    import torch
    import trio.testing

    from llmasos.userland.sdk import system
    from tests import models_zoo

    torch.set_num_threads(1)  # threads do not come with a fork
    hypothesis.settings.register_profile("without a database", database=None)  # no trial learns from another
    hypothesis.settings.load_profile("without a database")
    assert all((hypothesis.stateful, numpy, torch, trio.testing, system, models_zoo))
    if any(name.startswith("llmasos.kernel") for name in sys.modules):
        raise SystemExit("the kernel is imported before it is mutated")


def end_with_parent() -> None:
    """A campaign may be stopped at any moment: nothing of it stays."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def temporary() -> Path:
    """A folder of its own for what a child's tests leave behind; whoever calls removes it (`forget`). Its name is short,
    since tests bind sockets below it."""
    place = Path(tempfile.mkdtemp(prefix="m", dir="/tmp"))
    os.environ["TMPDIR"] = os.environ["PYTEST_DEBUG_TEMPROOT"] = os.fspath(place)
    tempfile.tempdir = None
    return place


def forget(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)


def read(file: Path) -> Map:
    return msgspec.json.decode(file.read_bytes(), type=Map)


def write(file: Path, known: Map) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(msgspec.to_builtins(known)))

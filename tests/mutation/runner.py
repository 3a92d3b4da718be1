"""Runs the core's tests against mutants, each in a fork of a process that has imported everything but the kernel.

A test is tried against a mutant only if it runs the mutated line, the quick ones first and until one fails. Which tests
run which lines is measured once (`Map`), with coverage's contexts. No clock decides: a test has ten times the processor
time that it took without a mutant, and five seconds more.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import importlib.abc
import importlib.machinery
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Generator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import msgspec
import pytest

from tests.mutation.mutants import Mutant, mutated

ROOT = Path(__file__).resolve().parents[2]
TESTS = "tests/kernel"
OPTIONS = [
    "-q",
    "-x",
    "-m",
    "not processes",
    "--hypothesis-profile=quick",
    "--hypothesis-seed=0",
    "-p",
    "no:cacheprovider",
]
OPTIONS += ["-p", "no:xdist", "-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what is imported before the fork
SPARE_SECONDS, TIMES = 5.0, 10.0  # of processor time, for each test
MEMORY = 6 << 30  # bytes of address space beyond what the parent has
SURVIVED, KILLED, TIMED_OUT = "survived", "killed", "timed out"
_EXIT_TIMED_OUT = 99
_PR_SET_PDEATHSIG = 1


class Map(msgspec.Struct):
    """Which tests run which lines, and the seconds of processor time that each takes."""

    seconds: dict[str, float] = {}
    lines: dict[str, dict[str, list[str]]] = {}  # path -> line -> tests

    def tests_of(self, mutant: Mutant) -> list[str]:
        """The tests that run a mutant's statement, the quickest first; outside of functions, which run at import: all."""
        lines, found = self.lines.get(mutant.path, {}), set(self.seconds)
        if mutant.function:
            found = {test for line in (mutant.line, mutant.statement) for test in lines.get(str(line), [])}
        return sorted(found, key=lambda test: (self.seconds[test], test))


class Verdict(msgspec.Struct):
    """What became of a mutant. `by`: the test that failed, or what else ended it."""

    name: str
    status: str
    by: str
    tests: int
    seconds: float


class _Changed(importlib.machinery.SourceFileLoader):
    """Gives one module a mutated text."""

    def __init__(self, module: str, file: Path, tree: ast.Module) -> None:
        super().__init__(module, os.fspath(file))
        self._module, self._file, self._tree = module, file, tree

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self._module:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, origin=os.fspath(self._file))

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._tree, os.fspath(self._file), "exec")


class _Chosen:
    """A plugin of pytest's: the tests that there are to be, in their order, each with its processor time."""

    def __init__(self, seconds: dict[str, float], order: list[str]) -> None:
        self._seconds, self._order = seconds, {test: place for place, test in enumerate(order)}
        self.failed = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self._order:
            chosen = (item for item in items if item.nodeid in self._order)
            items[:] = sorted(chosen, key=lambda item: self._order[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self.failed = item.nodeid
        signal.signal(signal.SIGPROF, lambda *_: os._exit(_EXIT_TIMED_OUT))
        signal.setitimer(signal.ITIMER_PROF, self._seconds.get(item.nodeid, 1.0) * TIMES + SPARE_SECONDS)
        return (yield)


class _Measuring:
    """A plugin of pytest's: which lines each test runs, and how long it takes."""

    def __init__(self, coverage: Any) -> None:
        self._coverage = coverage
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._coverage.switch_context(item.nodeid)
        begun = time.process_time()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.process_time() - begun


def measure() -> Map:
    """The map of all tests, measured in this process; pytest must be green."""
    import coverage

    measured = coverage.Coverage(data_file=None, source_pkgs=["llmasos.kernel"], omit=["*/kernel/edge/*"])
    measured.start()
    plugin = _Measuring(measured)
    code = pytest.main([TESTS, *OPTIONS], plugins=[plugin])
    measured.stop()
    if code != 0:
        raise SystemExit(f"the tests fail without a mutant (pytest's exit status {int(code)})")
    data, result = measured.get_data(), Map(plugin.seconds)
    for file in data.measured_files():
        path = os.fspath(Path(file).resolve().relative_to(ROOT))
        contexts = data.contexts_by_lineno(file)
        result.lines[path] = {str(line): [test for test in tests if test] for line, tests in contexts.items()}
    return result


def preload() -> None:
    """Import what the tests need and what is none of the kernel's, once for all forks."""
    import hypothesis.stateful
    import numpy
    import torch
    import trio.testing

    from llmasos.userland.sdk import system
    from tests import models_zoo

    assert all((hypothesis.stateful, numpy, torch, trio.testing, system, models_zoo))
    if any(name.startswith("llmasos.kernel") for name in sys.modules):
        raise SystemExit("the kernel is imported before it is mutated")


class Trial:
    """One mutant, under its tests in a child process."""

    def __init__(self, mutant: Mutant, known: Map, files: Sequence[str] = ()) -> None:
        self._mutant, self._order = mutant, [] if files else known.tests_of(mutant)
        self._begun = time.monotonic()
        self._reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reading)
            _try(mutant, known, self._order, files, writing)
        os.close(writing)

    def verdict(self, status: int) -> Verdict:
        """To be called with the child's wait status, once."""
        with open(self._reading) as pipe:
            by = pipe.read()
        code = os.waitstatus_to_exitcode(status)
        kind = SURVIVED if code == 0 else TIMED_OUT if code == _EXIT_TIMED_OUT else KILLED
        how = "" if code == 0 else by or f"exit status {code}"
        if code > 1 and code != _EXIT_TIMED_OUT and not by:
            raise SystemExit(f"{self._mutant.name}: pytest could not run its tests (exit status {code})")
        return Verdict(self._mutant.name, kind, how, len(self._order), round(time.monotonic() - self._begun, 1))


def _try(mutant: Mutant, known: Map, order: list[str], files: Sequence[str], writing: int) -> None:
    """In the child: run the tests of `order`, else all in `files`, say which failed, and end. Never returns."""
    code = int(pytest.ExitCode.INTERNAL_ERROR)
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # the campaign may be stopped at any moment
        quiet = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(quiet, number)
        limit = int(resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])) + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        module = "llmasos." + mutant.path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        tree = mutated((ROOT / mutant.path).read_text(), mutant.number)
        sys.meta_path.insert(0, _Changed(module, ROOT / "llmasos" / mutant.path, tree))
        files = files or list(dict.fromkeys(test.partition("::")[0] for test in order))
        chosen = _Chosen(known.seconds, order)
        code = int(pytest.main([*files, *OPTIONS], plugins=[chosen])) if files else 0
        if code == pytest.ExitCode.INTERRUPTED:  # a test's file cannot be imported with the mutant
            code, chosen.failed = 1, "(import)"
        with contextlib.suppress(OSError):
            os.write(writing, chosen.failed.encode())
    finally:
        os._exit(code)


def read(file: Path) -> Map:
    return msgspec.json.decode(file.read_bytes(), type=Map)


def write(file: Path, known: Map) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(msgspec.to_builtins(known)))

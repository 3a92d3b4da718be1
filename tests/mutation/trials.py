"""Tries mutants, each in a fork of its own.

Two servers wait for mutants. The *warm* one has imported the kernel and collected the tests: its fork puts the mutated
function's code in the place of the function's, and begins with the first test at once. The *bare* one has imported
everything but the kernel, for faults in what runs at import. A test is tried only if it runs the mutated line, and
the first that fails ends the trial: nothing is shrunk or explained. No clock decides: a test has eight times the
processor time that it took without a mutant, and three seconds more.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import mmap
import os
import resource
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import NoReturn

import msgspec
import pytest

from tests.mutation.mutants import Mutant, mutated
from tests.mutation.runner import OPTIONS, ROOT, TESTS, Map, change, end_with_parent, forget, preload, temporary

SPARE_SECONDS, TIMES = 3.0, 8.0  # of processor time, for each test
HUNG_SECONDS, HUNG_TIMES = 60, 30  # of anybody's time: for tests that wait for what never comes
MEMORY = 6 << 30  # bytes of address space beyond what the parent has
SURVIVED, KILLED, TIMED_OUT, FAILED = "survived", "killed", "timed out", "could not be tried"
AT_IMPORT = "(import)"  # what noticed a mutant with which a test's file cannot be imported
_FAILED_TEST, _EXIT_TIMED_OUT, _EXIT_AT_IMPORT = 1, 99, 98


class Verdict(msgspec.Struct):
    """What became of a mutant. `by`: the test that failed, or what else ended it. `seconds`: of processor time."""

    name: str
    status: str
    by: str
    tests: int
    seconds: float


class Asked(msgspec.Struct):
    """A mutant to be tried. `files`: by all the tests in these, else by those of the map, `seconds` together (0: all).
    `control`: no mutant, and only this test. `without`: not by these tests."""

    mutant: Mutant
    files: list[str] = []
    seconds: float = 0.0
    bare: bool = False
    control: str = ""
    without: list[str] = []

    @property
    def name(self) -> str:
        return self.control or self.mutant.name


class NotInFunctions(Exception):
    """A mutant changes what runs at import."""


def changed_functions(old: CodeType, new: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """A module's outermost functions that differ: as they are, and as the mutant has them. NotInFunctions: more does."""
    if _outside(old) != _outside(new):
        raise NotInFunctions
    within = ([one for one in code.co_consts if isinstance(one, CodeType)] for code in (old, new))
    for one, other in zip(*within, strict=True):
        if one.co_flags & inspect.CO_OPTIMIZED:
            if one != other:
                yield one, other
        else:
            yield from changed_functions(one, other)


def _outside(code: CodeType) -> tuple[bytes, tuple[str, ...], list[str]]:
    """What a module or a class does itself; of its functions no more than that they are there."""
    return code.co_code, code.co_names, ["code" if isinstance(one, CodeType) else repr(one) for one in code.co_consts]


def replace(pairs: list[tuple[CodeType, CodeType]], functions: dict[tuple[str, str, int], list[FunctionType]]) -> None:
    """Put mutated code in the place of a function's, wherever the function is. NotInFunctions: it cannot be."""
    for old, new in pairs:
        there = functions.get(_place(old), [])
        if not there:
            raise NotInFunctions
        for function in there:
            try:
                function.__code__ = new
            except ValueError as error:  # another number of free variables
                raise NotInFunctions from error


def _place(code: CodeType) -> tuple[str, str, int]:
    return code.co_filename, code.co_qualname, code.co_firstlineno


def _functions(package: str) -> dict[tuple[str, str, int], list[FunctionType]]:
    found: dict[tuple[str, str, int], list[FunctionType]] = {}
    for one in gc.get_objects():
        if type(one) is FunctionType and (one.__module__ or "").startswith(package):
            found.setdefault(_place(one.__code__), []).append(one)
    return found


class _Trying:
    """A plugin of pytest's, in the process of one mutant: the tests in their order, until one fails."""

    def __init__(self, seconds: dict[str, float], order: list[str], told: mmap.mmap) -> None:
        self._seconds, self._order, self._told = seconds, {test: place for place, test in enumerate(order)}, told

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self._order:
            chosen = (item for item in items if item.nodeid in self._order)
            items[:] = sorted(chosen, key=lambda item: self._order[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        tell(self._told, item.nodeid)
        seconds = self._seconds.get(item.nodeid, 1.0)
        signal.signal(signal.SIGPROF, lambda *_: os._exit(_EXIT_TIMED_OUT))
        signal.setitimer(signal.ITIMER_PROF, seconds * TIMES + SPARE_SECONDS)
        signal.alarm(int(HUNG_SECONDS + seconds * HUNG_TIMES))
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> None:
        if call.excinfo is not None and not issubclass(call.excinfo.type, pytest.skip.Exception | pytest.xfail.Exception):
            os._exit(_FAILED_TEST)


class _Warm:
    """A plugin of pytest's: when the tests are collected it serves mutants, instead of running them."""

    def __init__(self, serve: Callable[[pytest.Session], None]) -> None:
        self._serve = serve

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self._serve(session)
        return True


class Servers:
    """The two servers; a context, at whose end they end."""

    def __init__(self, known: Map) -> None:
        preload()
        self._answers, writing = os.pipe()
        self._asking: dict[bool, int] = {}
        for bare in (True, False):
            reading, asking = os.pipe()
            if os.fork() == 0:
                for other in (asking, self._answers, *self._asking.values()):
                    os.close(other)
                _serve(known, reading, writing, bare)
            os.close(reading)
            self._asking[bare] = asking
        os.close(writing)
        self._known, self._left = known, b""
        self._waiting: dict[str, Asked] = {}
        self._sound, self._doubted = dict[tuple[bool, str], bool](), list[tuple[Asked, Verdict]]()

    def ask(self, asked: Asked) -> None:
        asked.bare = asked.bare or self._known.at_import(asked.mutant)
        self._waiting[asked.name] = asked
        os.write(self._asking[asked.bare], msgspec.json.encode(asked) + b"\n")

    def answer(self) -> Verdict:
        """The next verdict, of whichever mutant that was asked for. A test that notices something has been tried once
        without a mutant in the same way; where it fails then it does not count."""
        while True:
            for at, (asked, verdict) in enumerate(self._doubted):
                if (sound := self._sound.get((asked.bare, verdict.by))) is not None:
                    del self._doubted[at]
                    if sound:
                        return verdict
                    self.ask(msgspec.structs.replace(asked, without=[*asked.without, verdict.by]))
                    break
            verdict = self._heard()
            asked = self._waiting.pop(verdict.name)
            if asked.control:
                self._sound[asked.bare, asked.control] = verdict.status == SURVIVED
            elif verdict.status == FAILED and asked.bare:
                raise SystemExit(f"{verdict.name}: pytest could not run its tests ({verdict.by})")
            elif verdict.status == FAILED:
                self.ask(msgspec.structs.replace(asked, bare=True))
            elif verdict.status == SURVIVED or verdict.by == AT_IMPORT:
                return verdict
            else:
                self._doubted.append((asked, verdict))
                if (asked.bare, verdict.by) not in self._sound and verdict.by not in self._waiting:
                    self.ask(Asked(asked.mutant, bare=asked.bare, control=verdict.by))

    def _heard(self) -> Verdict:
        while b"\n" not in self._left:
            if not (more := os.read(self._answers, 1 << 16)):
                raise SystemExit("a server of mutants has ended")
            self._left += more
        line, _, self._left = self._left.partition(b"\n")
        return msgspec.json.decode(line, type=Verdict)

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *raised: object) -> None:
        for asking in self._asking.values():
            os.close(asking)
        for _ in self._asking:
            os.wait()


def _serve(known: Map, reading: int, writing: int, bare: bool) -> NoReturn:
    """In a server: a handler for each mutant that is asked for, until nobody can ask."""
    code = 1
    try:
        end_with_parent()
        if bare:
            _handle(known, reading, writing, lambda asked, told: _try_bare(known, asked, told))
            code = 0
        else:
            warm = _Warm(lambda session: _warm(known, session, reading, writing))
            code = int(pytest.main([TESTS, *OPTIONS, "-qq"], plugins=[warm]))
    finally:
        os._exit(code)


def _warm(known: Map, session: pytest.Session, reading: int, writing: int) -> None:
    functions, items = _functions("llmasos.kernel"), {item.nodeid: item for item in session.items}
    _handle(known, reading, writing, lambda asked, told: _try_warm(known, asked, told, functions, items))


def _handle(known: Map, reading: int, writing: int, attempt: Callable[[Asked, mmap.mmap], None]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for handlers
    gc.freeze()  # forks write to no page that only a collection would touch
    with os.fdopen(reading, "rb") as requests:
        while line := requests.readline():
            if os.fork() == 0:
                end_with_parent()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                asked = msgspec.json.decode(line, type=Asked)
                try:
                    os.write(writing, msgspec.json.encode(_verdict(known, asked, attempt)) + b"\n")
                finally:
                    os._exit(0)


def _verdict(known: Map, asked: Asked, attempt: Callable[[Asked, mmap.mmap], None]) -> Verdict:
    """In a handler: one mutant in a child of its own, and what became of it."""
    told, place = mmap.mmap(-1, 4096), temporary()
    if (pid := os.fork()) == 0:
        try:
            _confine()
            attempt(asked, told)
        finally:
            os._exit(int(pytest.ExitCode.INTERNAL_ERROR))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    forget(place)
    by, used = told.read().rstrip(b"\0").decode(), resource.getrusage(resource.RUSAGE_CHILDREN)
    kinds = {0: SURVIVED, 1: KILLED, _EXIT_TIMED_OUT: TIMED_OUT, -signal.SIGALRM: TIMED_OUT}
    kind = kinds.get(code, KILLED if code < 0 and by else FAILED)
    by = by if kind != SURVIVED else ""
    tests = len(asked.files or known.tests_of(asked.mutant, asked.seconds))
    return Verdict(asked.name, kind, by, tests, round(used.ru_utime + used.ru_stime, 1))


def _confine() -> None:
    os.setsid()
    end_with_parent()
    quiet = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(quiet, number)
    limit = int(resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])) + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from hypothesis.internal.conjecture import engine

    engine.ConjectureRunner.shrink_interesting_test_cases = lambda self: None  # type: ignore[method-assign]


def _try_warm(
    known: Map,
    asked: Asked,
    told: mmap.mmap,
    functions: dict[tuple[str, str, int], list[FunctionType]],
    items: dict[str, pytest.Item],
) -> NoReturn:
    file, tests = os.fspath(ROOT / "llmasos" / asked.mutant.path), _chosen(known, asked, items)
    text = (ROOT / asked.mutant.path).read_text()
    with contextlib.suppress(NotInFunctions):
        if not asked.control:
            old, new = (compile(one, file, "exec") for one in (text, mutated(text, asked.mutant.number)))
            if not (pairs := list(changed_functions(old, new))):  # the compiler makes the same of both
                os._exit(0)
            replace(pairs, functions)
        chosen = [items[test] for test in tests]
        if chosen:
            chosen[0].config.pluginmanager.register(_Trying(known.seconds, tests, told))
        after: list[pytest.Item | None] = [*chosen[1:], None]
        for item, following in zip(chosen, after, strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        os._exit(0)
    os._exit(_EXIT_AT_IMPORT)


def _chosen(known: Map, asked: Asked, items: dict[str, pytest.Item]) -> list[str]:
    if asked.control:
        return [asked.control]
    if asked.files:
        found = [test for test in items if test.partition("::")[0] in asked.files]
    else:
        found = [test for test in known.tests_of(asked.mutant, asked.seconds) if test in items]
    return [test for test in found if test not in asked.without]


def _try_bare(known: Map, asked: Asked, told: mmap.mmap) -> NoReturn:
    mutant = asked.mutant
    if not asked.control:
        change(mutant.path, mutated((ROOT / mutant.path).read_text(), mutant.number))
    order = [asked.control] if asked.control else [] if asked.files else known.tests_of(mutant, asked.seconds)
    order = [test for test in order if test not in asked.without]
    files = asked.files or list(dict.fromkeys(test.partition("::")[0] for test in order))
    tell(told, AT_IMPORT)
    status = int(pytest.main([*files, *OPTIONS], plugins=[_Trying(known.seconds, order, told)])) if files else 0
    os._exit(1 if status == pytest.ExitCode.INTERRUPTED else status)


def tell(told: mmap.mmap, what: str) -> None:
    told[:] = what.encode()[: len(told)].ljust(len(told), b"\0")

"""The tour points at functions and classes that exist, as a script of the xv6 book checks its own pointers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from llmasos.drivers.protocol import Load, Probe, Step, ToDriver
from llmasos.drivers.sim import open_device
from llmasos.kernel import events
from llmasos.kernel.clock import MILLISECOND
from llmasos.kernel.core import Kernel
from llmasos.kernel.journal.state import State
from llmasos.syscalls import table

ROOT = Path(__file__).resolve().parent.parent
TOUR = (ROOT / "docs" / "tour.md").read_text()
_POINTER = re.compile(r"`([\w/.-]+\.py):([\w.]+)`")
_WALK = re.compile(r"^## \d+\. (.+)$", re.MULTILINE)
_STEP = re.compile(r"^(\d+)\. ", re.MULTILINE)


@cache
def names_of(path: str) -> frozenset[str]:
    """What a file defines at its top, and in the classes there (`Class.method`)."""
    return frozenset(_defined(ast.parse((ROOT / path).read_text()).body))


def _defined(body: list[ast.stmt], within: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield within + node.name
        if isinstance(node, ast.ClassDef) and not within:
            yield from _defined(node.body, f"{node.name}.")
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (within + target.id for target in targets if isinstance(target, ast.Name))


def walks() -> dict[str, str]:
    """The text of each walk by its title."""
    found = list(_WALK.finditer(TOUR))
    ends = [walk.start() for walk in found[1:]] + [TOUR.index("\n## Where to add\n")]
    return {walk[1]: TOUR[walk.end() : end] for walk, end in zip(found, ends, strict=True)}


def test_every_pointer_of_the_tour_names_something_that_its_file_defines() -> None:
    pointers = _POINTER.findall(TOUR)
    wrong = [f"{path}:{name}" for path, name in pointers if not (ROOT / path).exists() or name not in names_of(path)]
    assert not wrong, f"docs/tour.md points at what is not there: {wrong}"


def test_a_pointer_at_a_name_that_is_not_there_would_be_found() -> None:
    assert "Kernel.handle" in names_of("kernel/core.py")
    assert {"Kernel.hand", "handle", "Request"}.isdisjoint(names_of("kernel/core.py"))  # what it imports is elsewhere


def test_every_walk_goes_on_from_stop_to_stop() -> None:
    assert len(walks()) == 6
    for title, text in walks().items():
        steps = [int(number) for number in _STEP.findall(text)]
        assert steps, f"{title} has no stops"
        assert steps == list(range(1, len(steps) + 1)), f"{title}: its stops are numbered {steps}"
        assert len(_POINTER.findall(text)) >= len(steps) / 2, f"{title} points at little"


def test_a_decode_is_followed_through_all_parts_of_the_system() -> None:
    text = next(iter(walks().values()))
    folders = list(dict.fromkeys(path.partition("/")[0] for path, _ in _POINTER.findall(text)))
    assert folders == ["userland", "syscalls", "kernel", "drivers"]


class Told:
    """A kernel with a journal and a simulated driver; `lines` say what each event came to."""

    def __init__(self) -> None:
        self.kernel = Kernel(events.KernelConfig([events.DeviceConfig("sim0", "sim")]))
        self.kernel.boot(0, State(b"a key of the tickets"))
        self.driver = open_device({})
        self.asked: list[ToDriver] = []
        self.lines: list[str] = []
        self._now = 0
        self._event(events.Syscall(1, 1, table.Attach("told"), 0), "Attach")
        self._event(events.FromDevice("sim0", 1, self.driver.hello()), "Hello")

    def call(self, seq: int, call: table.Call[Any]) -> None:
        self._event(events.Syscall(1, seq, call, 0), type(call).__name__)

    def serve(self) -> None:
        """The driver answers the next request."""
        request = self.asked.pop(0)
        match request:
            case Probe():
                self._event(events.FromDevice("sim0", 1, self.driver.probe(request)), "Probed")
            case Load():
                self._event(events.FromDevice("sim0", 1, self.driver.fetch(request, lambda _: None)()), "Loaded")
            case Step():
                self._event(events.FromDevice("sim0", 1, self.driver.step(request)), "StepDone")

    def _event(self, event: events.Event, name: str) -> None:
        self._now += 10 * MILLISECOND
        said = []
        for action in self.kernel.handle(event, self._now):
            if isinstance(action, events.Send):
                self.asked.append(action.message)
                said.append(f"Send {type(action.message).__name__}")
            elif isinstance(action, events.Append | events.Reply):
                said.append(type(action).__name__)
        self.lines.append(f"{name:8} -> {', '.join(said)}".rstrip())


def test_the_core_takes_and_says_what_the_tour_shows() -> None:
    shown = TOUR.partition("```text\n")[2].partition("\n```")[0].splitlines()
    told = Told()
    told.call(2, table.Spawn("sim:", tokens=list(range(40))))
    while told.asked:
        told.serve()
    pid = max(process.pid for process in told.kernel.table)
    told.call(3, table.Decode(pid, 4, wait=False))
    told.call(4, table.Read(pid, 40))
    told.call(5, table.Fork(pid))
    while told.asked:
        told.serve()
    assert told.lines == shown

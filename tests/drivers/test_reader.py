"""The thread that reads models: a request that stands still, or that nobody wants, does not hold those behind it."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from llmasos.drivers.protocol import Abandon, Failed, Inspect, Load, Loaded, Probe, Probed
from llmasos.drivers.reader import Reader, Report, Request
from llmasos.syscalls.errno import Errno, SyscallError
from tests import models_zoo
from tests.booted import eventually
from tests.drivers.process import driver


class Readings:
    """A reader whose requests do what the test says by their path; `answers` are those finished."""

    def __init__(self) -> None:
        self.answers: queue.SimpleQueue[tuple[int, object]] = queue.SimpleQueue()
        self.told: list[tuple[int, float]] = []
        self.begun: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.disk, self.disk_end = os.pipe()  # a read from it stands still until the test writes
        self.go = threading.Event()
        self.reader = Reader(
            self._act,
            lambda request, outcome: self.answers.put((request.ref, outcome)),
            lambda ref, fraction: self.told.append((ref, fraction)),
        )

    def _act(self, request: Request, report: Report) -> object:
        self.begun.put(request.ref)
        try:
            match request.path:
                case "hangs":
                    os.read(self.disk, 1)
                case "works":
                    while not self.go.is_set():
                        report(0.5)
            report(1.0)
        except SyscallError as error:
            return error.errno
        return request.path

    def ask(self, ref: int, path: str) -> None:
        self.reader.put(Probe(ref, path, ""))


@pytest.fixture
def readings() -> Readings:
    return Readings()


def test_requests_are_done_one_after_the_other(readings: Readings) -> None:
    for ref in range(20):
        readings.ask(ref, "quick")
    assert [readings.answers.get(timeout=60)[0] for _ in range(20)] == list(range(20))


def test_one_that_stands_still_is_given_up_and_the_next_is_done(readings: Readings) -> None:
    readings.ask(1, "hangs")
    readings.ask(2, "quick")
    assert readings.begun.get(timeout=60) == 1
    given_up: list[Request | None] = []
    eventually(lambda: bool(given_up.append(readings.reader.give_up(0.1)) or given_up[-1]), "it is given up")
    assert given_up[-1] is not None
    assert given_up[-1].ref == 1
    assert readings.answers.get(timeout=60) == (2, "quick")
    os.write(readings.disk_end, b"x")  # the disk is back: what the old thread comes to is thrown away
    readings.ask(3, "quick")
    assert readings.answers.get(timeout=60) == (3, "quick")
    assert readings.answers.empty()


def test_one_that_works_is_not_given_up_however_long_it_takes(readings: Readings) -> None:
    readings.ask(1, "works")
    assert readings.begun.get(timeout=60) == 1
    seen = 0
    while seen < 200:  # each time it has used processor time since the last
        before = len(readings.told)
        eventually(lambda: len(readings.told) > before, "it gets on")  # noqa: B023
        assert readings.reader.give_up(1e-9) is None
        seen += 1
    readings.go.set()
    assert readings.answers.get(timeout=60) == (1, "works")


@pytest.mark.parametrize("begun", [True, False])
def test_one_that_nobody_wants_ends_at_its_next_sign_of_progress(readings: Readings, begun: bool) -> None:
    if not begun:
        readings.ask(1, "hangs")
    readings.ask(2, "works")
    assert readings.begun.get(timeout=60) == (2 if begun else 1)
    readings.reader.cancel(2)
    readings.ask(3, "quick")
    if not begun:
        os.write(readings.disk_end, b"x")
        assert readings.answers.get(timeout=60) == (1, "hangs")
    assert readings.answers.get(timeout=60) == (2, Errno.EINTR)
    assert readings.answers.get(timeout=60) == (3, "quick")


def test_nothing_is_given_up_where_nothing_is_done(readings: Readings) -> None:
    assert readings.reader.give_up(0.0) is None
    readings.reader.cancel(5)
    readings.ask(6, "quick")
    assert readings.answers.get(timeout=60) == (6, "quick")


def test_a_driver_answers_a_load_that_was_abandoned_and_goes_on(
    tmp_path: Path, zoo: Callable[[str], Path], slow: Path
) -> None:
    with driver("cpu", tmp_path / "r", "threads=1", "dtype=fp32") as cpu:
        cpu.send(Load(1, 11, str(slow), "", 8))  # holds the others up until its disk answers
        cpu.send(Load(2, 12, str(zoo("llama")), "", 8))
        cpu.send(Load(3, 13, str(zoo("llama")), "", 8))
        cpu.send(Abandon(2))
        cpu.send(Abandon(99))  # of what nobody asked
        cpu.send(Inspect(50, str(tmp_path / "nothing")))  # answered beside the loads, after Abandon was heard
        assert cpu.wait_for(Failed, 50).errno is Errno.ENOENT
        (slow / "go").touch()
        assert cpu.wait_for(Failed, 1).errno is Errno.EIO
        assert cpu.wait_for(Failed, 2).errno is Errno.EINTR
        cpu.wait_for(Loaded, 3)
        cpu.send(Probe(4, str(zoo("llama")), ""))
        assert cpu.wait_for(Probed, 4).vocab == models_zoo.VOCAB

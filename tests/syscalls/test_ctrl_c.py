"""Ctrl-C in the blocking client at every moment at which it may come: nothing stays locked, nobody's answer is lost."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import pytest

from llmasos.syscalls import blocking
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.table import Exit, Feed, Getinfo, Null, Read, Spawn, Wait
from tests.booted import PATIENCE, Booted, booted, eventually

pytestmark = pytest.mark.processes
# Python's own code that a client calls while it holds a lock, where there is some
FILES = ("blocking.py", "turn.py", "line.py", "stream.py", "calls.py", "threading.py")


class Interrupted(KeyboardInterrupt):
    pass


@pytest.fixture(scope="module")
def kernel() -> Iterator[Booted]:
    with booted() as found:
        yield found


def interrupted(moment: int, act: Callable[[], object]) -> bool:
    """Have Ctrl-C come at that moment of `act`; whether there was such a one. CPython looks for signals when a function
    begins and after each call of C code, when what that has returned is stored nowhere yet; a profiler hears of both."""
    count = 0

    def profile(frame: FrameType, event: str, _: Any) -> None:
        nonlocal count
        if event in ("call", "c_return") and frame.f_code.co_filename.endswith(FILES):
            count += 1
            if count == moment:
                raise Interrupted  # which takes this function out

    sys.setprofile(profile)
    try:
        act()
    except Interrupted:
        return True
    finally:
        sys.setprofile(None)
    return False


class Other:
    """A thread that waits for the end of a process, and so may lead when the main thread calls."""

    def __init__(self, program: blocking.Client, watch: blocking.Client) -> None:
        self.program, self.watch = program, watch
        self.pid = program(Spawn("sim", [1], detached=True), timeout=PATIENCE)
        self.status = -1
        self.thread = threading.Thread(target=self._wait, daemon=True)
        self.thread.start()
        eventually(lambda: bool(len(program._calls)), "its call is under way", pause=0.0)

    def _wait(self) -> None:
        self.status = self.program(Wait(self.pid)).status

    def hears(self) -> bool:
        """Whether it is told of the end, though no other thread makes a call."""
        self.watch(Exit(self.pid, 7), timeout=PATIENCE)
        self.thread.join(PATIENCE)
        return self.status == 7


@pytest.mark.parametrize("leads", [True, False], ids=["another leads", "alone"])
def test_ctrl_c_at_any_moment_of_a_call_leaves_a_connection_that_can_be_used(kernel: Booted, leads: bool) -> None:
    with kernel.connect("main") as program, kernel.connect("watch") as watch:
        moment, came = 0, True
        while came:
            moment += 1
            other = Other(program, watch) if leads else None
            came = interrupted(moment, lambda: program(Null()))
            assert not program._lock._is_owned(), f"moment {moment}"  # type: ignore[attr-defined]
            assert other is None or other.hears(), f"moment {moment}"
            assert program._leader is None
            assert program(Null(), timeout=PATIENCE) is None
        assert moment > 20
        assert not len(program._calls)


def test_ctrl_c_at_any_moment_does_a_call_once_or_not_at_all(kernel: Booted) -> None:
    with kernel.connect("main") as program:
        pid, moment, came, done = program(Spawn("sim", []), timeout=PATIENCE), 0, True, 0
        while came:
            moment += 1
            came = interrupted(moment, partial(program, Feed(pid, [moment])))
            tokens = program(Read(pid), timeout=PATIENCE).tokens
            assert tokens[:done] == [one for one in tokens if one < moment]
            assert tokens[done:] in ([], [moment])
            done = len(tokens)
        assert tokens[-1] == moment


def test_ctrl_c_while_it_closes_leaves_nothing_locked(kernel: Booted) -> None:
    moment, came = 0, True
    with kernel.connect("watch") as watch:
        while came:
            moment += 1
            program = kernel.connect("main")
            came = interrupted(moment, program.close)
            assert not program._lock._is_owned(), f"moment {moment}"  # type: ignore[attr-defined]
            program.close()
            eventually(partial(fails, watch, program.pid), "it has gone")


def fails(watch: blocking.Client, pid: int) -> bool:
    try:
        watch(Getinfo(pid), timeout=PATIENCE)
    except SyscallError:
        return True
    return False


def test_the_moments_are_those_at_which_a_lock_can_be_lost() -> None:
    """As in threading.Condition.wait, which is why the client has none."""
    lost = False
    for moment in range(1, 100):
        lock = threading.RLock()
        turn = threading.Condition(lock)
        try:
            with lock:
                if not interrupted(moment, partial(turn.wait, 0.0)):
                    break
        except RuntimeError:
            lost = True  # it is released, though nobody holds it
    assert lost

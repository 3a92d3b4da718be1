"""A kernel that boots says how far it has come, and nobody takes it for dead meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos.kernel.edge import lock
from llmasos.syscalls import blocking, readiness, runtime
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.reconnect import Search

AT_ONCE = 0.0  # seconds: what is there is read, and nothing is waited for


@pytest.fixture
def booting(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A runtime directory that is held, where nobody listens yet, with the symbolic link to a journal; and the lock."""
    place = tmp_path / "run"
    lock.prepare(place)
    held = lock.hold(place)
    (place / runtime.JOURNAL).touch()
    yield place, held
    lock.release(place, held)


def heard(said: bytes, *, ended: bool = False) -> tuple[bool | None, list[str]]:
    read, write = os.pipe()
    lines: list[str] = []
    with os.fdopen(read, "rb") as pipe:
        os.write(write, said)
        if ended:
            os.close(write)
        up = readiness.await_ready(pipe, AT_ONCE, lines.append)
        if not ended:
            os.close(write)
    return up, lines


def test_who_waits_hears_each_line_and_then_that_the_devices_are_up() -> None:
    assert heard(b"1 of 3\n2 of 3\n\n") == (True, ["1 of 3", "2 of 3"])
    assert heard(b"\n") == (True, [])


def test_the_end_of_the_pipe_is_the_end_of_the_kernel_and_silence_is_neither() -> None:
    assert heard(b"1 of 3\n", ended=True) == (False, ["1 of 3"])
    assert heard(b"1 of 3\n2 of") == (None, ["1 of 3"])


def test_a_note_in_the_lock_is_there_until_it_is_taken_out_or_its_kernel_has_gone(booting: tuple[Path, int]) -> None:
    place, held = booting
    assert readiness.noted(place) == ""
    readiness.note(held, "restored 20,000 of 100,000 processes")
    readiness.note(held, "restored 9 of 10")
    assert readiness.noted(place) == "restored 9 of 10"
    assert runtime.holder(place) == os.getpid()
    readiness.note(held, "")
    assert readiness.noted(place) == ""
    readiness.note(held, "restored 10 of 10")
    (place / runtime.LOCK).write_bytes((place / runtime.LOCK).read_bytes())
    os.rename(place / runtime.LOCK, place / "moved")
    (place / runtime.LOCK).write_bytes((place / "moved").read_bytes())  # what a dead kernel has left: nobody holds it
    assert readiness.noted(place) == ""


def test_who_connects_meanwhile_is_told_that_the_kernel_boots_and_how_far_it_is(booting: tuple[Path, int]) -> None:
    place, held = booting
    readiness.note(held, "restored 9 of 10")
    with pytest.raises(SyscallError, match=r"is booting, .*\(restored 9 of 10\); try again") as caught:
        blocking.connect(place, timeout=0.05)
    assert caught.value.errno is Errno.ETIME


def test_a_program_waits_on_for_a_kernel_that_gets_on_and_for_no_other(booting: tuple[Path, int]) -> None:
    place, held = booting
    search = Search(place, seconds=30.0, now=0.0, notify=None)
    readiness.note(held, "restored 1 of 10")
    assert not search.found(30.0)
    assert search.until == 60.0
    readiness.note(held, "restored 2 of 10")
    assert not search.found(60.0)
    with pytest.raises(SyscallError) as caught:
        search.found(90.0)
    assert caught.value.errno is Errno.EPIPE

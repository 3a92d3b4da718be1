"""Connecting where the operating system has nothing left for it: an errno says what to do, and nothing stays open."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmasos.syscalls import blocking, runtime, scarce
from llmasos.syscalls.errno import Errno, SyscallError
from tests.booted import PATIENCE, Booted, booted
from tests.leftovers import nothing_left_open

pytestmark = pytest.mark.processes
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    place = tmp_path_factory.mktemp("scarce") / "run"
    with booted("--device", "sim:time_scale=0", "--journal", os.fspath(place), place=place) as found:
        yield found


Told = list[tuple[str, str]]  # what a program was told each time: errno and reason


@pytest.fixture(scope="module")
def told(kernel: Booted) -> dict[str, Told]:
    """What a program was told that connected with ever more descriptors, in each of its ways (scarcely.py)."""
    program = subprocess.run(
        [sys.executable, "-m", "tests.syscalls.scarcely", os.fspath(kernel.place)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=runtime.environment(),
        timeout=PATIENCE,
        check=True,
    )
    found: dict[str, Told] = json.loads(program.stdout)
    return found


def reasons(told: Told) -> list[str]:
    assert {errno for errno, _ in told} == {"EAGAIN"}
    return [reason for _, reason in told]


@pytest.mark.parametrize("way", ["blockingly", "by_the_sdk"])
def test_a_program_without_descriptors_is_told_how_to_have_some(told: dict[str, Told], way: str) -> None:
    said = reasons(told[way])
    assert len(said) >= 4  # to look for it, for the connection, two to wake up, two for the thread
    assert all("as many files and sockets open as it may have" in one and "ulimit -n" in one for one in said)


def test_a_program_under_an_event_loop_is_told_too(told: dict[str, Told]) -> None:
    (said,) = reasons(told["under_an_event_loop"])
    assert "ulimit -n" in said


def test_libzmq_is_not_asked_for_what_it_would_end_the_program_without(told: dict[str, Told]) -> None:
    assert len(reasons(told["by_libzmq"])) == scarce.LIBZMQ


def test_a_private_kernel_without_descriptors_leaves_nothing_open(told: dict[str, Told]) -> None:
    assert len(reasons(told["with_a_private_kernel"])) == 6


def test_a_thread_that_cannot_be_had_is_an_errno_too(kernel: Booted, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with nothing_left_open(), monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(SyscallError, match="gets no thread for its connection") as caught:
            blocking.connect(kernel.place, timeout=PATIENCE)
    assert caught.value.errno is Errno.EAGAIN


@pytest.mark.parametrize(
    ("number", "want"),
    [
        (errno.EMFILE, Errno.EAGAIN),
        (errno.ENFILE, Errno.EAGAIN),
        (errno.ENOMEM, Errno.EAGAIN),
        (errno.ENOBUFS, Errno.EAGAIN),
        (errno.EACCES, Errno.EPERM),
        (errno.ENOENT, Errno.ENOENT),
        (errno.EAFNOSUPPORT, Errno.EIO),
    ],
)
def test_whatever_the_operating_system_refuses_is_an_errno(
    kernel: Booted, monkeypatch: pytest.MonkeyPatch, number: int, want: Errno
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("socket.socketpair", refuse)
        with pytest.raises(SyscallError) as caught:
            blocking.connect(kernel.place, timeout=PATIENCE)
    assert caught.value.errno is want

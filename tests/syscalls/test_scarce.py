"""Connecting where the operating system has nothing left for it: an errno says what to do, and nothing stays open."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

import llmasos
from llmasos.syscalls import blocking, client, scarce
from llmasos.syscalls.dealer import Dealer
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.remote import Remote
from tests.booted import PATIENCE, Booted, booted

pytestmark = pytest.mark.processes
MOST = 24  # more descriptors than any connection takes


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    place = tmp_path_factory.mktemp("scarce") / "run"
    with booted("--device", "sim:time_scale=0", "--journal", os.fspath(place), place=place) as found:
        yield found


def opened() -> list[int]:
    """The descriptors that are open."""
    found = []
    for one in sorted(int(name) for name in os.listdir("/proc/self/fd")):
        with suppress(OSError):  # that of looking
            os.fstat(one)
            found.append(one)
    return found


@contextmanager
def left(count: int) -> Iterator[None]:
    """Within this the program may open so many descriptors more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = opened()
    free = [one for one in range(used[-1] + MOST + 2) if one not in used]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[count], hard))  # numbers from this on cannot be had
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def refused(connect: Callable[[], object]) -> SyscallError | None:
    try:
        connect()
    except SyscallError as error:
        return error
    return None


def tries(connect: Callable[[], object]) -> list[str]:
    """What comes of connecting with ever more descriptors, until it works; nothing else than EAGAIN does before."""
    before, said = opened(), list[str]()
    for count in range(MOST):
        with left(count):
            if (error := refused(connect)) is None:
                return said
        said.append(error.reason)
        assert error.errno is Errno.EAGAIN, error
        assert set(opened()) <= set(before), f"{count} were left, and something stays open"
    raise AssertionError(f"{MOST} descriptors are not enough")


def blockingly(kernel: Booted) -> None:
    blocking.connect(kernel.place, timeout=PATIENCE).close()


def by_the_sdk(kernel: Booted) -> None:
    with llmasos.System.connect(kernel.place, timeout=PATIENCE):
        pass


@pytest.mark.parametrize("connect", [blockingly, by_the_sdk])
def test_a_program_without_descriptors_is_told_how_to_have_some(
    kernel: Booted, connect: Callable[[Booted], None]
) -> None:
    connect(kernel)  # what is imported late
    said = tries(lambda: connect(kernel))
    assert len(said) >= 4  # to look for it, for the connection, two to wake up, two for the thread
    assert all("as many files and sockets open as it may have" in one and "ulimit -n" in one for one in said)


def test_a_program_under_an_event_loop_is_told_too(kernel: Booted) -> None:
    async def main() -> None:
        await once()
        before = opened()
        with left(0):
            error = await once()
        assert error is not None
        assert (error.errno, "ulimit -n" in error.reason) == (Errno.EAGAIN, True)
        await trio.lowlevel.checkpoint()
        assert opened() == before
        with left(1):
            assert await once() is None

    async def once() -> SyscallError | None:
        try:
            async with client.connect(kernel.place, timeout=PATIENCE):
                return None
        except SyscallError as error:
            return error

    trio.run(main)


def test_libzmq_is_not_asked_for_what_it_would_end_the_program_without() -> None:
    far = Remote("127.0.0.1", 1, bytes(31) + b"\1", bytes(31) + b"\2")
    said = tries(lambda: scarce_dealer(far))
    assert scarce.LIBZMQ - 4 <= len(said) <= scarce.LIBZMQ  # libzmq's threads may still close what was used before


def scarce_dealer(far: Remote) -> None:
    with scarce.told():
        Dealer(far).close()


def test_a_private_kernel_without_descriptors_leaves_nothing_open(tmp_path: Path) -> None:
    before = opened()
    for count in range(6):
        with left(count), pytest.raises(SyscallError) as caught:
            llmasos.System.connect(tmp_path / "run", boot=True)
        assert caught.value.errno is Errno.EAGAIN
        assert opened() == before


def test_a_thread_that_cannot_be_had_is_an_errno_too(kernel: Booted, monkeypatch: pytest.MonkeyPatch) -> None:
    before = opened()

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(SyscallError, match="gets no thread for its connection") as caught:
            blocking.connect(kernel.place, timeout=PATIENCE)
    assert caught.value.errno is Errno.EAGAIN
    assert opened() == before


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

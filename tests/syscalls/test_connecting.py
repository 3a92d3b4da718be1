"""Connecting where nobody accepts: it keeps its timeout, and stops nothing else."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import anyio
import pytest

from llmasos.kernel.edge import lock
from llmasos.syscalls import blocking, client, runtime
from llmasos.syscalls.errno import Errno, SyscallError
from tests.booted import PATIENCE


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """The runtime directory of a kernel that accepts nobody, and whose queue is full."""
    place = tmp_path / "run"
    lock.prepare(place)
    held = lock.hold(place)
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(os.fspath(place / runtime.PROGRAMS))
        listener.listen(0)
        with suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(os.fspath(place / runtime.PROGRAMS))
        yield place
    lock.release(place, held)


def test_while_the_queue_is_full_connecting_keeps_its_timeout(full: Path) -> None:
    with pytest.raises(SyscallError, match=r"has not answered within 0\.5 s") as caught:
        blocking.connect(full, timeout=0.5)
    assert caught.value.errno is Errno.ETIME


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_while_the_queue_is_full_connecting_lets_the_event_loop_go_on(full: Path, backend: str) -> None:
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await anyio.sleep(0.01)
            turns += 1

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(turn)
            with pytest.raises(SyscallError) as caught:
                async with client.connect(full, timeout=0.5):
                    pass
            assert caught.value.errno is Errno.ETIME
            group.cancel_scope.cancel()

    anyio.run(main, backend=backend)
    assert turns > 1


def test_a_kernel_that_dies_while_a_program_attaches_is_gone_and_no_other_error(tmp_path: Path) -> None:
    place = tmp_path / "run"
    lock.prepare(place)
    held = lock.hold(place)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(place / runtime.PROGRAMS))
        listener.listen(1)

        def die() -> None:
            listener.accept()[0].close()
            listener.close()  # as all that a kernel has is when it dies
            os.unlink(place / runtime.PROGRAMS)
            lock.release(place, held)

        death = threading.Thread(target=die)
        death.start()
        with pytest.raises(SyscallError) as caught:
            blocking.connect(place, timeout=PATIENCE)
        death.join()
    assert caught.value.errno is Errno.ECONNREFUSED

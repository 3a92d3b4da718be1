"""The journal of a dead kernel has lost its end on the disk: programs hear ESTALE, and can go on with what there is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llmasos.syscalls import blocking, client, runtime
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Feed, Read, Spawn
from tests.booted import PATIENCE
from tests.loops import run_under
from tests.reborn import Reborn

pytestmark = pytest.mark.processes


@pytest.fixture
def kernel(tmp_path: Path) -> Reborn:
    kernel = Reborn(tmp_path / "run", device="sim:time_scale=0")
    kernel.boot()
    return kernel


def forget(kernel: Reborn, size: int) -> None:
    """The kernel dies, and of its journal only so much has come to the disk."""
    kernel.kill()
    os.truncate(kernel.place / runtime.JOURNAL, size)
    kernel.boot()


def size_of(kernel: Reborn) -> int:
    return (kernel.place / runtime.JOURNAL).stat().st_size


def stale(call: Callable[[], object]) -> None:
    with pytest.raises(SyscallError, match="answers that it has had are lost") as caught:
        call()
    assert caught.value.errno is Errno.ESTALE


def test_a_blocking_program_hears_estale_and_takes_up_what_there_is(kernel: Reborn) -> None:
    with blocking.connect(kernel.place, timeout=PATIENCE) as program:
        pid = program(Spawn("sim", [1, 2, 3]))
        size = size_of(kernel)
        assert program(Feed(pid, [4])) == 4
        forget(kernel, size)
        stale(lambda: program(Read(pid)))
        stale(lambda: program(Feed(pid, [5])))
        with blocking.connect(kernel.place, timeout=PATIENCE, ticket=program.boot.ticket) as again:
            assert again.pid == program.pid
            assert again(Read(pid)).tokens == [1, 2, 3]
            assert again(Spawn("sim", [1])) > pid + 1
    kernel.end()


def test_a_call_that_waits_hears_it_too_in_an_event_loop(kernel: Reborn) -> None:
    async def scenario() -> None:
        async with client.connect(kernel.place, timeout=PATIENCE) as program:
            pid = await program(Spawn("sim", [1, 2, 3]))
            size = size_of(kernel)
            assert await program(Feed(pid, [4])) == 4
            forget(kernel, size)
            with pytest.raises(SyscallError, match="answers that it has had are lost") as caught:
                await program(Read(pid, 4, follow=True))
            assert caught.value.errno is Errno.ESTALE
            async with client.connect(kernel.place, timeout=PATIENCE, ticket=program.boot.ticket) as again:
                assert (await again(Read(pid))).length == 3

    run_under("asyncio", scenario)
    kernel.end()

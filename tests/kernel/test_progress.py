"""What a boot that takes long says of itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos.kernel.edge import lock
from llmasos.kernel.edge.progress import Progress
from llmasos.kernel.edge.service import Manager
from llmasos.kernel.events import Log
from llmasos.simulator import simulate
from llmasos.syscalls import readiness, runtime
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.table import Spawn
from llmasos.userland.programs.boot import boot_if_none


class Told(Manager):
    def __init__(self) -> None:
        self.facts: list[str] = []

    def tell(self, *facts: str) -> None:
        self.facts += facts


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of what is tested, as its only element."""
    now = [100.0]
    monkeypatch.setattr("llmasos.kernel.edge.progress.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def held(tmp_path: Path) -> Iterator[int]:
    lock.prepare(tmp_path / "run")
    held = lock.hold(tmp_path / "run")
    yield held
    lock.release(tmp_path / "run", held)


def test_a_boot_that_takes_long_says_every_second_how_far_it_is_to_all_who_wait(
    time: list[float], held: int, tmp_path: Path
) -> None:
    lines, told = list[Log](), Told()
    read, write = os.pipe()
    with os.fdopen(read, "rb") as pipe:
        booting = Progress(lines.append, write, held, told)
        for moment, done in (100.9, 10_000), (101.1, 20_000), (101.9, 30_000), (102.2, 40_000):
            time[0] = moment
            booting.restored(done, 100_000)
        said = [f"journal: restored {done} of 100,000 processes" for done in ("20,000", "40,000")]
        assert [line.text for line in lines] == said
        assert readiness.noted(tmp_path / "run") == said[-1]
        assert told.facts[-2:] == ["EXTEND_TIMEOUT_USEC=30000000", f"STATUS={said[-1]}"]
        booting.listens()
        assert readiness.noted(tmp_path / "run") == ""
        booting.ready()
        heard: list[str] = []
        assert readiness.await_ready(pipe, 0.0, heard.append)
        assert heard == said


def test_a_boot_that_is_short_says_nothing(time: list[float], held: int) -> None:
    lines: list[Log] = []
    booting = Progress(lines.append, -1, held, Told())
    booting.read(1 << 20, 1 << 21)
    booting.restored(1_000, 2_000)
    time[0] += 60.0  # a slow machine, and nothing worth saying
    booting.read(500, 1_000)
    assert not lines


def test_nobody_who_does_not_read_holds_a_boot_up(time: list[float], held: int) -> None:
    read, write = os.pipe()
    booting = Progress(lambda line: None, write, held, Told())
    for done in range(5_000):  # more than a pipe takes
        time[0] += 1.0
        booting.restored(done, 5_000)
    os.close(read)
    booting.ready()


def test_the_core_tells_how_many_processes_are_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmasos.kernel.recovery.recovery._TOLD", 2)
    sim = simulate()
    program = sim.program()
    for _ in range(5):
        program.call(Spawn("sim", [1, 2, 3]))
    saved, told = sim.kernel.snapshot(), list[tuple[int, int]]()
    sim.core(sim.file).boot(0, saved, progress=lambda done, of: told.append((done, of)))
    assert told == [(2, 5), (4, 5)]


@pytest.mark.processes
@pytest.mark.parametrize("boots", [True, False])
def test_who_boots_a_kernel_that_lasts_hears_how_far_it_is_and_its_last_words_alone(
    boots: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detached = tmp_path / "detached.py"  # says what `boot --detach` says
    ends = "print('kernel 1 runs')" if boots else "sys.exit(print('llmasos boot: no disk', file=sys.stderr) or 1)"
    detached.write_text(f"import sys\nprint('journal: restored 1 of 2 processes', flush=True)\n{ends}\n")
    monkeypatch.setattr(runtime, "module", lambda name: [sys.executable, str(detached)])
    said: list[str] = []
    if boots:
        assert boot_if_none(tmp_path / "run", say=said.append)
    else:
        with pytest.raises(SyscallError, match=r"^EIO: the kernel did not boot: no disk$"):
            boot_if_none(tmp_path / "run", say=said.append)
    assert said == ["journal: restored 1 of 2 processes"]

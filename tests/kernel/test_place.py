"""The files of a kernel: what is missing is noticed, and made again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from llmasos.kernel.edge import lock, place
from llmasos.kernel.edge.place import Place
from llmasos.syscalls import runtime
from llmasos.syscalls.errno import Errno, SyscallError
from tests.booted import PATIENCE


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Place]:
    directory = tmp_path / "run"
    lock.prepare(directory)
    (tmp_path / "journal").touch()
    found = Place(directory, lock.hold(directory), (directory / runtime.JOURNAL, tmp_path / "journal"))
    make(found)
    yield found
    os.close(found.lock)


def make(kept: Place) -> None:
    for name in (runtime.PROGRAMS, runtime.DRIVERS):
        (kept.directory / name).touch()
    if kept.sign is not None and not os.path.lexists(kept.sign[0]):
        kept.sign[0].symlink_to(kept.sign[1])


@pytest.mark.parametrize("name", [runtime.PROGRAMS, runtime.DRIVERS, runtime.LOCK, runtime.JOURNAL, ""])
def test_a_file_that_is_removed_is_missed_and_made_again(kept: Place, name: str) -> None:
    assert not kept.missing()
    shutil.rmtree(kept.directory) if not name else (kept.directory / name).unlink()
    assert kept.missing()
    kept.make_again()
    make(kept)
    assert not kept.missing()
    assert runtime.holder(kept.directory) == os.getpid()
    with pytest.raises(SyscallError) as caught:
        lock.hold(kept.directory)
    assert caught.value.errno is Errno.EBUSY


def test_another_kernel_that_has_the_place_by_now_keeps_it(kept: Place) -> None:
    (kept.directory / runtime.LOCK).unlink()
    other = lock.hold(kept.directory)
    assert kept.missing()
    with pytest.raises(SyscallError) as caught:
        kept.make_again()
    assert caught.value.errno is Errno.EBUSY
    os.close(other)


def test_removals_are_told_also_of_the_directory_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "LOOK_SECONDS", 0.05)
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "file").touch()
    looks: list[bool] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(place.watch, lambda: [directory], lambda: looks.append(directory.exists()))
            with trio.fail_after(PATIENCE):
                while not looks:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                (directory / "file").unlink()
                while len(looks) < 2:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                directory.rename(tmp_path / "elsewhere")
                while looks[-1]:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    trio.run(main)

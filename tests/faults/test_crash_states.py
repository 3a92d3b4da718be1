"""Crash states that the file system allows, a drawn part of them: `python -m tests.faults.crash_states` boots all."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from llmasos.drivers import checkpoint_file
from llmasos.kernel.edge import journal_file
from llmasos.kernel.edge.journal_keeper import Fsync
from llmasos.syscalls import atomic_file
from tests.faults.crash_states import Lost, check
from tests.faults.disk import Disk, Write, crashes, lay


@pytest.mark.parametrize("faulty", [False, True], ids=["good", "failing"])
@pytest.mark.parametrize("fsync", ["always", "interval", "never"])
def test_whatever_a_power_loss_leaves_of_a_journal_is_a_prefix_that_has_what_was_promised(
    fsync: Fsync, faulty: bool
) -> None:
    booter, _ = check(11, fsync, 14, 0, faulty=faulty, points=6)
    assert booter.states > 20


def test_journals_are_compacted_while_they_are_looked_at() -> None:
    _, written = check(2, "always", 20, 0, faulty=False, points=8)
    assert written.compacted


def test_a_disk_that_says_that_it_has_synced_and_has_not_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail."""
    monkeypatch.setattr(Disk, "_fdatasync", lambda self, call, fd: call(fd))
    with pytest.raises(Lost, match=r"always: position .* was promised"):
        check(11, "always", 14, 1, faulty=False)


def test_a_file_that_takes_the_journals_name_before_it_is_on_the_disk_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_file, "replace_durably", lambda path, new: journal_file.replace(path))
    with pytest.raises(Lost):
        check(11, "always", 14, 1, faulty=False)


def every_outcome(disk: Disk, place: Path) -> list[tuple[int, Path]]:
    """A directory for each crash state, with the operation that the crash came behind."""
    found = []
    for at in range(len(disk.ops) + 1):
        for number, tree in enumerate(crashes(disk, at, random.Random(at), most=2)):
            lay(tree, directory := place / f"{at}-{number}")
            found.append((at, directory))
    return found


def test_a_durable_file_is_the_old_one_or_the_new_one_and_the_new_one_once_it_is_said_to_be(tmp_path: Path) -> None:
    (live := tmp_path / "live").mkdir()
    (live / "key").write_bytes(b"old" * 3000)
    disk = Disk(live)
    with disk.recording(), atomic_file.replacing(live / "key", durable=True) as descriptor:
        atomic_file.write_all(descriptor, b"new" * 3000)
    states = every_outcome(disk, tmp_path)
    assert {(directory / "key").read_bytes() for _, directory in states} == {b"old" * 3000, b"new" * 3000}
    assert all((directory / "key").read_bytes() == b"new" * 3000 for at, directory in states if at == len(disk.ops))


def test_a_process_image_that_is_said_to_be_written_is_there_whole(tmp_path: Path) -> None:
    (live := tmp_path / "live").mkdir()
    disk = Disk(live)
    parts = [bytes([number]) * 5000 for number in range(3)]
    with disk.recording():
        checkpoint_file.write(os.fspath(live / "image"), b"head", 5000, parts)
    assert any(isinstance(op, Write) for op in disk.ops)
    for at, directory in every_outcome(disk, tmp_path):
        image = directory / "image"
        assert image.exists() or at < len(disk.ops), "its name is lost"
        if image.exists():
            with checkpoint_file.Reader(os.fspath(image)) as reader:
                assert (reader.head, reader.parts) == (b"head", 3)


def test_what_a_disk_refuses_is_not_in_what_it_may_have(tmp_path: Path) -> None:
    disk = Disk(tmp_path)

    def full(call: str) -> None:
        if call == "write":
            raise OSError(errno.ENOSPC, "full")

    with disk.recording():
        fd = os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(fd, b"12")
        disk.fault = full
        with pytest.raises(OSError, match="full"):
            os.write(fd, b"34")
        os.close(fd)
    trees = list(crashes(disk, len(disk.ops), random.Random(0)))
    assert {tree.get("file") for tree in trees} == {None, b"", b"1", b"12", b"\0\0", b"1\0"}

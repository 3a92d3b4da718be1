"""A file that is replaced is the old one or the new one, never something between, however its writer ends."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.syscalls.atomic_file import replacing, write_all


@pytest.fixture(params=[True, False], ids=["without a name", "with one"])
def unnamed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the file system has files without a name."""
    if not request.param:
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)  # opening a directory to write fails as where there are none
    return bool(request.param)


def put(path: Path, content: bytes, **options: bool | int) -> None:
    with replacing(path, **options) as descriptor:  # type: ignore[arg-type]
        write_all(descriptor, content)


@pytest.mark.usefixtures("unnamed")
@pytest.mark.parametrize("durable", [False, True])
def test_the_name_is_given_when_the_block_ends(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file"
    put(path, b"old", durable=durable)
    with replacing(path, durable=durable) as descriptor:
        write_all(descriptor, b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.usefixtures("unnamed")
def test_what_raises_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    put(tmp_path / "file", b"old")

    def interrupted() -> None:
        with replacing(tmp_path / "file") as descriptor:
            write_all(descriptor, b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.usefixtures("unnamed")
def test_a_failed_rename_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="irectory"):
        put(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.usefixtures("unnamed")
@pytest.mark.parametrize(("mode", "umask"), [(0o600, 0o022), (0o666, 0o022), (0o666, 0o002)])
def test_others_may_read_it_as_far_as_mode_and_umask_say(tmp_path: Path, mode: int, umask: int) -> None:
    before = os.umask(umask)
    try:
        put(tmp_path / "file", b"new", mode=mode)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode & ~umask


KILLED = """
import os, sys
from llmasos.syscalls.atomic_file import replacing, write_all
os.O_TMPFILE = os.O_DIRECTORY
with replacing(sys.argv[1]) as descriptor:
    write_all(descriptor, b"half")
    print(flush=True)
    sys.stdin.read()
"""


@pytest.mark.processes
def test_what_a_killed_writer_left_goes_with_the_next_and_what_is_being_written_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    put(path, b"old")
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdout.readline()
    put(tmp_path / "other", b"")
    assert len(os.listdir(tmp_path)) == 3
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdin.close()
    child.stdout.close()
    assert path.read_bytes() == b"old"
    put(tmp_path / "other", b"")
    assert sorted(os.listdir(tmp_path)) == ["file", "other"]


def test_without_locks_nothing_of_others_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / ".llmasos-0123456789abcdef.part"
    left.write_bytes(b"somebody's")

    def none(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    put(tmp_path / "file", b"new")
    assert left.read_bytes() == b"somebody's"


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(1, 50))
def test_all_buffers_are_written_however_little_each_call_takes(buffers: list[bytes], most: int) -> None:
    reader, writer = os.pipe()
    whole = os.writev
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "writev", lambda fd, some: whole(fd, [bytes(some[0])[:most]]))
            assert write_all(writer, *buffers) == sum(map(len, buffers))
        os.close(writer)
        writer = -1
        with os.fdopen(reader, "rb") as stream:
            assert stream.read() == b"".join(buffers)
    finally:
        if writer >= 0:
            os.close(writer)

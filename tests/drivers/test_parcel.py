"""Parcels: files in memory that another driver opens, that nobody changes, and of which nothing is ever left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmasos.drivers import parcel
from llmasos.drivers.checkpoint_file import Reader
from llmasos.syscalls.errno import Errno, SyscallError
from tests.drivers.parcels import PARTS, made
from tests.leftovers import nothing_left_open


@pytest.mark.parametrize("key", [b"", b"open sesame"])
def test_what_was_put_in_is_what_another_process_takes_out(key: bytes) -> None:
    path, name = made(key)
    script = (
        "import sys; from llmasos.drivers.checkpoint_file import Reader\n"
        "with Reader(sys.argv[1], sys.argv[2].encode()) as file:\n"
        "    into = bytearray(96)\n"
        "    print(file.id.hex(), file.mine, file.flaw)\n"
        "    for number in range(file.parts):\n"
        "        file.read(number, memoryview(into)); print(into.hex())\n"
    )
    try:
        said = subprocess.run(
            [sys.executable, "-c", script, path, key.decode()], capture_output=True, text=True, check=True
        ).stdout.split()
    finally:
        parcel.release(path)
    assert said == [name.hex(), "True", *(part.hex() for part in PARTS)]


def test_nobody_changes_it_and_only_its_owner_may_read_it() -> None:
    path, _ = made()
    assert os.stat(path).st_mode & 0o777 == 0o600
    for how in ("r+b", "wb"):
        with pytest.raises(PermissionError), open(path, how, buffering=0) as file:
            file.write(b"other")
    parcel.release(path)


def test_once_let_go_it_is_gone_and_letting_go_again_harms_nobody() -> None:
    path, _ = made()
    assert path in parcel.held()
    parcel.release(path)
    parcel.release(path)
    assert path not in parcel.held()
    with pytest.raises(SyscallError) as caught:
        Reader(path)
    assert caught.value.errno is Errno.ENOENT
    parcel.release("/proc/1/fd/1")


def test_one_that_could_not_be_written_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, buffers: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("llmasos.drivers.checkpoint_file.os.writev", full)
    with nothing_left_open(), pytest.raises(SyscallError, match="No space") as caught:
        made()
    assert caught.value.errno is Errno.EIO
    assert parcel.held() == []


def test_a_writer_that_is_killed_leaves_nothing_and_a_reader_keeps_what_it_has_opened(tmp_path: Path) -> None:
    script = "import sys, time; from tests.drivers.parcels import made\nprint(made()[0], flush=True); time.sleep(600)\n"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        path = writer.stdout.readline().strip()
        with Reader(path) as opened:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            into = bytearray(96)
            opened.read(3, memoryview(into))
            assert bytes(into) == PARTS[3]
            with pytest.raises(SyscallError):
                Reader(path)
    assert not [name for name in os.listdir("/dev/shm") if "parcel" in name]

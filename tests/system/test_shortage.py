"""A kernel and its drivers where the system gives less than they want: a slow or full disk, files that may not grow,
memory that may not."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

from llmasos.kernel.edge import journal_file
from llmasos.syscalls import blocking, runtime
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import BootInfoCall, Checkpoint, Decode, Dmesg, Feed, Null, Read, Restore, Spawn, StatsCall
from tests.booted import PATIENCE, Booted, booted, eventually

pytestmark = pytest.mark.processes

SLOW = """
    import os, sys, time
    from llmasos.kernel.edge import boot
    gate, fdatasync = sys.argv.pop(1), os.fdatasync
    def slowly(fd):
        while not os.path.exists(gate):
            time.sleep(0.01)
        fdatasync(fd)
    os.fdatasync = slowly
    sys.exit(boot.main())
"""


@contextmanager
def limited(pid: int, which: int, most: int) -> Iterator[None]:
    """A limit of another process, for a while."""
    soft, hard = resource.prlimit(pid, which)
    resource.prlimit(pid, which, (most, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, which, (soft, hard))


def journaled(place: Path, fsync: str) -> list[str]:
    """Words for a kernel in `place` with a journal."""
    config = place.parent / "kernel.toml"
    config.write_text(f'[journal]\nfsync = "{fsync}"\n')
    return ["--device", "sim:time_scale=0", "--config", os.fspath(config), "--journal", os.fspath(place)]


def said(program: blocking.Client, text: str) -> bool:
    return any(text in line.text for line in program(Dmesg()))


def test_a_disk_that_takes_long_holds_up_only_the_answers_that_need_it(tmp_path: Path) -> None:
    place, gate = tmp_path / "run", tmp_path / "gate"
    words = [*journaled(place, "always"), "--runtime", os.fspath(place), "--die-with-parent", "--quiet"]
    gate.touch()
    command = [sys.executable, "-c", dedent(SLOW), os.fspath(gate), *words]
    kernel = subprocess.Popen(command, stdin=subprocess.PIPE, env=runtime.environment())
    try:
        eventually(lambda: runtime.listening(place), "it listens")
        with blocking.connect(place, timeout=PATIENCE) as one, blocking.connect(place, timeout=PATIENCE) as other:
            pid = one(Spawn("sim", [1, 2, 3]), timeout=PATIENCE)
            gate.unlink()
            fed: list[int] = []
            feeding = threading.Thread(target=lambda: fed.append(one(Feed(pid, [4]), timeout=PATIENCE)))
            feeding.start()
            eventually(lambda: other(StatsCall()).journal.startswith("slow: "), "stats says so")
            for _ in range(10):
                other(Null())
            assert said(other, "the disk has been at a sync for 2.0 s")
            assert not fed
            gate.touch()
            feeding.join(PATIENCE)
            assert fed == [4]
            eventually(lambda: other(StatsCall()).journal == "kept", "it is as it was")
            assert said(other, "s for a sync")
    finally:
        assert kernel.stdin is not None
        kernel.stdin.close()
        assert kernel.wait(timeout=PATIENCE) == 0


def test_a_kernel_whose_files_may_not_grow_says_so_and_loses_nothing(tmp_path: Path) -> None:
    place = tmp_path / "run"
    with booted(*journaled(place, "interval"), "--plain", place=place) as kernel, kernel.connect() as program:
        pid = program(Spawn("sim", [1, 2, 3], detached=True), timeout=PATIENCE)
        journal = place / runtime.JOURNAL
        with limited(kernel.pid, resource.RLIMIT_FSIZE, 16):
            program(Feed(pid, [4]))
            assert "File too large" in program(StatsCall()).journal
            program(Decode(pid, 3))
            before = journal_file.read(journal).state
            assert list(before.processes[pid].log) == [1, 2, 3], "what there was is still there"
        eventually(lambda: program(StatsCall()).journal == "kept", "there is room again")
        log = program(Read(pid, 0)).tokens
        assert len(log) == 7
        assert list(journal_file.read(journal).state.processes[pid].log) == log


def driver_of(kernel: Booted) -> int:
    (found,) = psutil.Process(kernel.pid).children()
    return found.pid


def test_a_driver_whose_files_may_not_grow_refuses_the_image_and_goes_on(tmp_path: Path) -> None:
    with booted() as kernel, kernel.connect() as program:
        pid = program(Spawn("sim", list(range(200))), timeout=PATIENCE)
        tokens = program(Decode(pid, 3)).tokens
        whole = os.fspath(tmp_path / "whole")
        program(Checkpoint(pid, whole), timeout=PATIENCE)
        with limited(driver_of(kernel), resource.RLIMIT_FSIZE, 100):
            with pytest.raises(SyscallError, match="File too large") as caught:
                program(Checkpoint(pid, os.fspath(tmp_path / "image")), timeout=PATIENCE)
            assert caught.value.errno is Errno.EIO
            assert not (tmp_path / "image").exists()
            twin = program(Restore(whole), timeout=PATIENCE)
            assert program(Read(twin, 200)).tokens == tokens
        program(Checkpoint(pid, os.fspath(tmp_path / "image")), timeout=PATIENCE)
        assert [device.restarts for device in program(BootInfoCall()).devices] == [0]


def test_a_kernel_that_may_have_no_more_memory_refuses_what_would_take_some_and_does_all_else() -> None:
    device = "sim:time_scale=0,context=2000000,layers=2,block_bytes=64"
    with booted("--device", device) as kernel, kernel.connect() as program:
        pid = program(Spawn("sim", [1, 2, 3]), timeout=PATIENCE)
        used = psutil.Process(kernel.pid).memory_info().vms
        with limited(kernel.pid, resource.RLIMIT_AS, used + (28 << 20)):
            with pytest.raises(SyscallError, match="bytes of address space") as caught:
                program(Spawn("sim", [7] * 1_000_000), timeout=PATIENCE)
            assert caught.value.errno is Errno.EAGAIN
            with kernel.connect() as operator:
                operator(Null())  # else nobody could come and end processes
            with pytest.raises(SyscallError, match="bytes of address space"):
                program(Feed(pid, [4]))
            assert len(program(Decode(pid, 3)).tokens) == 3, "what it has goes on"
            program(StatsCall())
        assert program(Feed(pid, [4])) == 7
        program(Spawn("sim", [7] * 1_000_000), timeout=PATIENCE)


def test_a_driver_that_may_have_no_more_memory_refuses_the_model_and_lives() -> None:
    with booted("--device", "cpu") as kernel, kernel.connect() as program:
        eventually(lambda: program(BootInfoCall()).devices[0].state == "up", "the driver is up")
        driver = driver_of(kernel)
        used = psutil.Process(driver).memory_info().vms
        with limited(driver, resource.RLIMIT_AS, used + (1 << 20)):
            with pytest.raises(SyscallError, match="no memory for") as caught:
                program(Spawn("tiny", [1, 2, 3]), timeout=PATIENCE)
            assert caught.value.errno is Errno.ENOMEM
        assert len(program(Decode(program(Spawn("tiny", [1, 2, 3]), timeout=PATIENCE), 3), timeout=PATIENCE).tokens) == 3
        assert [device.restarts for device in program(BootInfoCall()).devices] == [0]

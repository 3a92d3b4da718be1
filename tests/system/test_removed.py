"""Files of a running kernel that somebody removes are made again, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llmasos.syscalls import blocking, runtime
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Decode, Dmesg, Feed, Null, Ps, Spawn, StatsCall
from tests.booted import PATIENCE, command, eventually, is_gone, wait_for_kernel

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is looked after every half minute"),
]


class Lasting:
    """A kernel with its runtime directory and its journal in two places."""

    def __init__(self, base: Path) -> None:
        self.place, self.state = base / "run", base / "state"
        self.process: subprocess.Popen[bytes] | None = None

    def boot(self) -> int:
        words = ["--device", "sim:time_scale=0", "--journal", os.fspath(self.state), "--quiet"]
        self.process = process = subprocess.Popen(command(self.place, *words))
        wait_for_kernel(self.place, lambda: process.poll() is None)
        return process.pid

    def end(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(timeout=PATIENCE)

    def connect(self) -> blocking.Client:
        return blocking.connect(self.place, timeout=PATIENCE)

    def reached(self) -> bool:
        try:
            with self.connect() as program:
                program(Null())
        except SyscallError as error:
            if error.errno is not Errno.ECONNREFUSED:
                raise
            return False
        return True


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Lasting]:
    running = Lasting(tmp_path)
    running.boot()
    yield running
    assert running.process is not None
    drivers = psutil.Process(running.process.pid).children(recursive=True)
    running.end(signal.SIGTERM)
    eventually(lambda: all(map(is_gone, drivers)), "the drivers are gone")


def spawned(program: blocking.Client) -> int:
    pid = program(Spawn("sim:1b", [1, 2, 3], detached=True), timeout=PATIENCE)
    program(Decode(pid, 5), timeout=PATIENCE)
    return pid


@pytest.mark.parametrize("gone", ["the runtime directory", "its sockets", "its lock", "all of them, moved away"])
def test_a_kernel_whose_runtime_directory_goes_is_found_again(kernel: Lasting, gone: str) -> None:
    with kernel.connect() as attached:
        agent = spawned(attached)
        held = runtime.holder(kernel.place)
        match gone:
            case "the runtime directory":
                shutil.rmtree(kernel.place)
            case "its sockets":
                for name in (runtime.PROGRAMS, runtime.DRIVERS):
                    (kernel.place / name).unlink()
            case "its lock":
                (kernel.place / runtime.LOCK).unlink()
            case _:
                kernel.place.rename(kernel.place.with_name("moved"))
        eventually(lambda: kernel.reached() and runtime.holder(kernel.place) == held, "it is found again")
        attached(Feed(agent, [4]), timeout=PATIENCE)  # who was attached notices nothing
        eventually(lambda: any("made again" in line.text for line in attached(Dmesg())), "the log says so")
        second = subprocess.run(command(kernel.place), capture_output=True, text=True, timeout=PATIENCE)
        assert second.returncode == 1
        assert f"pid {held}" in second.stderr
    kernel.end(signal.SIGKILL)
    kernel.boot()
    with kernel.connect() as program:
        (row,) = [row for row in program(Ps()) if row.pid == agent]
        assert row.length == 3 + 5 + 1


def test_a_journal_that_somebody_removes_is_written_anew(kernel: Lasting) -> None:
    with kernel.connect() as program:
        agent = spawned(program)
        shutil.rmtree(kernel.state)
        path = kernel.state / runtime.JOURNAL
        eventually(lambda: path.exists() and program(StatsCall()).journal == "kept", "it is written anew")
        program(Feed(agent, [4]), timeout=PATIENCE)
        other = subprocess.run(
            command(kernel.place.with_name("other"), "--journal", os.fspath(kernel.state)),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert "another kernel keeps its journal" in other.stderr
    kernel.end(signal.SIGKILL)
    kernel.boot()
    with kernel.connect() as program:
        (row,) = [row for row in program(Ps()) if row.pid == agent]
        assert row.length == 3 + 5 + 1

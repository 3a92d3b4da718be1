"""A kernel process for tests: its own runtime directory, and gone when the test is, however that ends."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from llmasos.syscalls import blocking, calls
from llmasos.syscalls.errno import Errno, SyscallError

PATIENCE = 120.0  # seconds: the machine may be busy
SIM = ["--device", "sim:time_scale=0"]


class Booted:
    """A running kernel. `pid` is its OS pid, `place` its runtime directory."""

    def __init__(self, process: subprocess.Popen[str], place: Path) -> None:
        self.process = process
        self.place = place
        self.pid = process.pid

    def connect(self, name: str = "test", **options: Any) -> blocking.Client:
        return blocking.connect(self.place, name=name, timeout=PATIENCE, **options)

    def descendants(self) -> list[psutil.Process]:
        """The kernel's own process and those of its drivers."""
        kernel = psutil.Process(self.pid)
        return [kernel, *kernel.children(recursive=True)]

    def wait(self) -> int:
        return self.process.wait(timeout=PATIENCE)

    def output(self) -> str:
        """All it has printed; to be called after its end."""
        assert self.process.stdout is not None
        return self.process.stdout.read()


def command(place: Path, *arguments: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "llmasos.kernel.edge.boot",
        "--runtime",
        os.fspath(place),
        *(arguments or SIM),
    ]


@contextmanager
def booted(*arguments: str, place: Path | None = None, descriptors: int = 0) -> Iterator[Booted]:
    """Boot a kernel (with a simulated device, unless arguments say otherwise) and wait until it answers. `descriptors`:
    how many it may have open."""
    with tempfile.TemporaryDirectory(prefix="llmasos-") as base:
        place = place or Path(base) / "run"
        limited = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh"] if descriptors else []
        process = subprocess.Popen(
            [*limited, *command(place, *arguments), "--die-with-parent"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            wait_for_kernel(place, lambda: process.poll() is None)
            yield Booted(process, place)
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            finally:
                process.stdout.close()


def wait_for_kernel(place: Path, alive: Callable[[], bool]) -> None:
    def answers() -> bool:
        if not alive():
            raise AssertionError("the kernel has ended before it answered")
        try:
            return calls.kernel_listens(place)
        except SyscallError as error:
            if error.errno is not Errno.ECONNREFUSED:
                raise
            return False

    eventually(answers, "the kernel answers")


def eventually(condition: Callable[[], bool], what: str, pause: float = 0.02) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        time.sleep(pause)


def is_gone(process: psutil.Process) -> bool:
    """Ended (a zombie that its new parent has not collected counts)."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True

"""A kernel with a journal, for tests that kill it and boot it again."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.booted import PATIENCE, command, eventually, is_gone, wait_for_kernel


class Reborn:
    """A kernel with a journal (or without), to be killed and booted again in the same runtime directory."""

    def __init__(self, place: Path, *flags: str, device: str = "cpu:threads=1", journal: bool = True) -> None:
        self.place = place
        kept = ["--journal", os.fspath(place)] if journal else []
        self._flags = ["--device", device, "--kv-bytes", "64MiB", *kept, *flags]
        self._process: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        self._process = subprocess.Popen(
            [*command(self.place, *self._flags), "--die-with-parent"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        process = self._process
        wait_for_kernel(self.place, lambda: process.poll() is None)

    def kill(self) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
        process.stdin.close()
        self._process = None
        eventually(lambda: all(map(is_gone, family)), "its drivers are gone, too")

    def end(self) -> None:
        """Halt, if it runs."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            assert self._process.wait(PATIENCE) == 0
            self._process = None


@contextmanager
def reborn(place: Path, *flags: str) -> Iterator[Reborn]:
    kernel = Reborn(place, *flags)
    kernel.boot()
    try:
        yield kernel
    finally:
        kernel.end()

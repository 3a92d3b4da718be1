"""Stretches of files, read into memory when they are asked for.

llama.cpp and safetensors map a model's files. But a process that reads a mapped page behind the end of a file that was
shortened meanwhile is killed by a signal, with all work on its device; and pages once read count as this process's memory
until the map goes. Bytes read here belong to the reader: a shortened file is an error of that reader alone, and memory is
released after use.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np

from llmasos.modelfiles.files import broken, open_regular, shown
from llmasos.syscalls.errno import Errno, SyscallError

_PIECE = 1 << 24  # bytes asked of the system at a time


class Spans:
    """The files that something is read from, each opened once, so that a file put in its place later does not matter.
    Several threads may use it."""

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}
        self._lock = threading.Lock()  # guards them

    def read(self, file: Path, offset: int, size: int) -> np.ndarray:
        """`count` bytes (uint8) of the file from `offset` on. Raises EIO: the file is shorter by now, or cannot be
        read."""
        found = np.empty(size, np.uint8)
        rest = memoryview(found)  # type: ignore[arg-type]  # numpy's stubs say it from 3.12 on
        try:
            descriptor = self._descriptor(file)
            while rest:
                done = os.preadv(descriptor, [rest[:_PIECE]], offset)
                if not done:
                    raise broken(
                        f"broken weights: {shown(file)} ends at {os.fstat(descriptor).st_size}, it has become shorter "
                        "while it was read; copy or download it again"
                    )
                offset += done
                rest = rest[done:]
        except OSError as error:
            raise SyscallError(Errno.EIO, f"{shown(file)} cannot be read: {error.strerror}") from None
        return found

    def _descriptor(self, file: Path) -> int:
        with self._lock:
            if file not in self._files:
                with open_regular(file) as opened:
                    self._files[file] = os.dup(opened.fileno())
            return self._files[file]

    def __del__(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)

"""The swap file: bounded, without a name, so that it is gone when the driver is, however it went.

Images take stretches of it (disk_places.py), as partitions are cut from a disk.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import weakref
from pathlib import Path

from llmasos.drivers import places
from llmasos.syscalls.errno import Errno, SyscallError

MOST, SHARE_OF_DISK = 4 << 30, 4  # bytes, and of the free disk one part in four, unless the options say otherwise
LEAST = 1 << 20  # bytes; a smaller file is not worth it
_log = logging.getLogger(__name__)


class SwapFile:
    """A file without a name, of at most `size` bytes; takes space as it is written."""

    def __init__(self, directory: Path, size: int) -> None:
        self.size = size
        directory.mkdir(parents=True, exist_ok=True)
        # TemporaryFile unlinks at once (O_TMPFILE where the system has it): no name, nothing to be left behind.
        with tempfile.TemporaryFile(dir=directory) as file:
            self.descriptor = os.dup(file.fileno())
        self.close = weakref.finalize(self, os.close, self.descriptor)
        self._regions: list[tuple[int, int]] = []  # (start, end), in order

    @property
    def room(self) -> int:
        """The longest stretch that `take` would give."""
        ends = [0, *(end for _, end in self._regions)]
        starts = [*(start for start, _ in self._regions), self.size]
        return max(start - end for start, end in zip(starts, ends, strict=True))

    def take(self, size: int) -> int:
        """The start of a stretch of the file that nobody else has. Raises MemoryError."""
        if not size:
            return self.size  # where no stretch begins, so that giving it back gives back no other
        start = 0
        for number, (taken, end) in enumerate([*self._regions, (self.size, self.size)]):
            if taken - start >= size:
                self._regions.insert(number, (start, start + size))
                return start
            start = end
        raise MemoryError(f"{size} bytes are not free in a swap file of {self.size}")

    def give(self, start: int) -> None:
        """Free the stretch from `start` on."""
        self._regions = [region for region in self._regions if region[0] != start]


def open_swap(size: int | None, directory: Path | None) -> SwapFile | None:
    """The swap file of a driver with the options swap=`size` (bytes) and swapdir=`directory`, each None if not given.

    None: there is to be no swap. Raises EIO where it was asked for and cannot be made.
    """
    place = directory or places.swap_directory()
    most = MOST if size is None else size
    try:
        if most:
            place.mkdir(parents=True, exist_ok=True)
            if size is None:
                most = min(most, shutil.disk_usage(place).free // SHARE_OF_DISK)
                if most < LEAST:
                    _log.warning("no swap: %s is full; KV that does not fit is computed again", place)
                    return None
        return SwapFile(place, most) if most else None
    except OSError as error:
        if size is None and directory is None:  # a home that cannot be written, as in a read-only container
            why = error.strerror
            _log.warning("no swap: %s cannot be made (%s); KV that does not fit is computed again", place, why)
            return None
        raise SyscallError(
            Errno.EIO, f"no swap file can be made in {place}: {error.strerror}; use swapdir=DIR or swap=0"
        ) from None

"""What a driver does in the runtime directory of a kernel that is gone and has not cleaned up: it removes the sockets and
the lock, unless another kernel has the directory by now.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from pathlib import Path

from llmasos.syscalls import runtime

_CLEAN_SECONDS = 2.0  # how long a kernel that is being killed may keep its lock after its pipes have closed
_RETRY_SECONDS = 0.02


def recorded(place: Path) -> bytes:
    """The holder's record in the lock (its pid and start time); empty if there is no lock."""
    try:
        return (place / runtime.LOCK).read_bytes()
    except OSError:
        return b""


def _locked(place: Path, lock: int, holder: bytes) -> bool:
    """Take the lock of the dead kernel `holder`. False: another kernel has it.

    The operating system closes the descriptors of a killed process one by one: its end of a driver's pipe may close
    before it releases the lock.
    """
    deadline = time.monotonic() + _CLEAN_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if recorded(place) != holder or time.monotonic() >= deadline:
                return False
        time.sleep(_RETRY_SECONDS)


def clean(place: Path, holder: bytes) -> None:
    """Remove the sockets and the lock of a kernel that is gone, unless another kernel holds the lock. `holder` is the
    record of the kernel that is gone."""
    try:
        lock = os.open(place / runtime.LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # it went in good order, or somebody else has cleaned
    try:
        if not _locked(place, lock, holder):
            return
        # Only the file that still has the name: a new kernel may have put its own in place.
        if os.path.samestat(os.fstat(lock), os.stat(place / runtime.LOCK)):
            for name in (runtime.PROGRAMS, runtime.DRIVERS, runtime.LOCK):
                (place / name).unlink(missing_ok=True)
            if not os.path.lexists(place / runtime.JOURNAL):  # or the next kernel has its sandboxes
                shutil.rmtree(place / runtime.SANDBOXES, ignore_errors=True)
    except OSError:
        return  # gone in the meantime
    finally:
        os.close(lock)

"""Parcels: process images that never see a disk, on their way from one driver to another.

A parcel is a file in memory without a name (memfd_create), sealed once it is written. Another process of the same user
opens it through the writer's descriptor, /proc/PID/fd/N. It is gone when the last descriptor is closed, so a writer, a
reader or a kernel that is killed leaves nothing behind.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from llmasos.syscalls.errno import Errno, SyscallError

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL

_held: dict[str, int] = {}  # path -> descriptor, of the parcels of this process that wait to be fetched


@contextmanager
def made() -> Iterator[tuple[int, str]]:
    """A descriptor to write the parcel to, and the path under which others open it afterwards, until `release`. An
    exception in the block leaves no parcel. Raises ENOTSUP where the system has no files in memory."""
    if not hasattr(os, "memfd_create"):
        raise SyscallError(Errno.ENOTSUP, "this system has no files in memory (memfd_create)")
    descriptor = os.memfd_create("llmasos-parcel", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.fchmod(descriptor, 0o600)
        path = f"/proc/{os.getpid()}/fd/{descriptor}"
        yield descriptor, path
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    _held[path] = descriptor


def release(path: str) -> None:
    """Forget a parcel: nobody will open it any more. An unknown path is ignored."""
    descriptor = _held.pop(path, None)
    if descriptor is not None:
        with suppress(OSError):
            os.close(descriptor)


def held() -> list[str]:
    """Paths of the parcels that wait."""
    return list(_held)

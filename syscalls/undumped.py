"""What a process knows stays out of core dumps, and out of reach of other processes.

Kernel and drivers hold everybody's texts and keys in memory. A limit of 0 does not keep a dump from a program that the
system pipes it into (core(5)), a limit of 1 byte does: no dump is that short; and a dump that somebody forces has none of
the memory. A process that is not dumpable besides belongs to root in /proc, so that no other of its user reads its
memory or traces it. A driver is not: other drivers of its user open files in memory by its /proc/PID/fd (parcel.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from pathlib import Path

_PR_SET_DUMPABLE = 4  # prctl(2)
_SHORTER = 1  # bytes: than any dump is


def keep_out_of_dumps() -> None:
    """From now on dumps of this process, and of those it starts, have nothing of its memory."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    limit = _SHORTER if most == resource.RLIM_INFINITY else min(_SHORTER, most)
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
    with contextlib.suppress(OSError):  # of Linux
        Path("/proc/self/coredump_filter").write_text("0")


def shut() -> None:
    """From now on no other process of this user looks into this one."""
    keep_out_of_dumps()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)

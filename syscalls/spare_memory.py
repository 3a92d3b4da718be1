"""Memory that the C library keeps of what a process has freed."""

from __future__ import annotations

import ctypes
import os
from functools import cache

_ARENA_MAX = -8  # M_ARENA_MAX of glibc's <malloc.h>


def give_back() -> None:
    """Have the C library return to the system what it keeps for the next allocation. What one large piece of work took
    lies between the small ones that came after it, and is kept for good otherwise. Milliseconds, in which other threads
    that allocate may wait; for the end of such work, in a thread of its own."""
    if (trim := _of_glibc("malloc_trim")) is not None:
        trim(0)


def one_pool() -> None:
    """Have all threads that begin from here on allocate from one pool. By default glibc has one for each thread that runs
    at the same time as others, and `give_back` leaves the end of each but the first as it is: whatever piece of work a
    thread has ever done, the process keeps what that took, once for each thread. For a process whose threads mostly
    wait."""
    if (set_option := _of_glibc("mallopt")) is not None:
        set_option(_ARENA_MAX, 1)


@cache  # a library is an object in a cycle
def _of_glibc(name: str) -> ctypes._NamedFuncPointer | None:
    """A function of the C library; None: it is another one."""
    library = ctypes.CDLL(None) if os.name == "posix" else None
    return getattr(library, name, None) if hasattr(library, "malloc_trim") else None

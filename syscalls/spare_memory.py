"""Memory that the C library keeps of what a process has freed."""

from __future__ import annotations

import ctypes
import os


def give_back() -> None:
    """Have the C library return to the system what it keeps for the next allocation. What one large piece of work took
    lies between the small ones that came after it, and is kept for good otherwise. Milliseconds, in which other threads
    that allocate may wait; for the end of such work, in a thread of its own."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None  # glibc's
    if trim is not None:
        trim(0)

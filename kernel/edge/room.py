"""How much memory the kernel may still have, where the operating system bounds its address space (`ulimit -v`).

Python raises MemoryError wherever the next object does not fit. In the middle of the core nothing could be believed
after that, and libraries below end the process. So a part of the room is kept free: when it is touched, calls that make
the kernel grow are refused, and all others go on, those among them that end processes. Programs that come may have half
of that part, or nobody could come to end anything. What grows in another way (a fork of many long logs) may end the
kernel even so; the journal has what was answered.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

RESERVE = 32 << 20  # bytes that are kept free
TIMES = 32  # a long request takes as many times its bytes, as objects and as frames of the journal
LONG = 64 << 10  # bytes of requests between two looks
_STATM = Path("/proc/self/statm")


class Room:
    """The room that there is. It is looked at for each long request, and while it is short for each request; else when so
    many bytes of requests have come that it may have changed."""

    def __init__(self) -> None:
        self._came = 0
        self._short = False

    def refusal(self, size: int, keep: int = RESERVE) -> str:
        """Why a request of `size` bytes that makes the kernel grow cannot be taken; empty: it can. `keep`: bytes that are
        to be left."""
        self._came += size
        if not self._short and self._came < LONG:
            return ""
        self._came = 0
        self._short = bool(_lacking(RESERVE))
        return _lacking(keep + TIMES * size)


def _lacking(free: int) -> str:
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY:
        return ""
    try:
        used = int(_STATM.read_bytes().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # a system that does not tell, or no descriptor to ask by
        return ""
    if most - used >= free:
        return ""
    return (
        f"the kernel may have {most:,} bytes of address space (`ulimit -v`) and has {used:,}; end some processes, send "
        "less at once, or boot it with a higher limit"
    )

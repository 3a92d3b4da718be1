"""The boot of the machine, and what it means for a journal that was written in an earlier one.

What is written survives the kernel's death, but without an fsync not the machine's. So a journal of an earlier boot of
the machine may lack its last records, unless they were synced before they were answered.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import psutil

from llmasos.kernel.journal.state import State


def boot_name() -> str:
    """What names this boot of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        return f"{psutil.boot_time():.0f}"


def stamp(state: State, *, damaged: bool) -> None:
    """Say of the state that a journal adds up to what is not in it: which kernel begins now, where it runs, and whether
    records may be missing at the end (`damaged`: the file was, there)."""
    state.boot, state.here = secrets.randbits(30) + 1, boot_name()
    state.lost = damaged or state.machine not in ("", state.here)

"""While a kernel boots: what it says to who has started it, by a pipe, and to those who look, by its lock.

A line of the pipe says how far it has come; an empty one, that its devices are up; its end, that the kernel has ended. A
kernel that brings many processes back may take minutes and says so every second or so; so whoever waits for it counts
from the last line, and takes none for dead that is at work. The note in the lock is there until the kernel listens.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from llmasos.syscalls import runtime

_MOST = 200  # bytes of the lock's file that are looked at


def await_ready(heard: BinaryIO, seconds: float, say: Callable[[str], object] = lambda line: None) -> bool | None:
    """Wait for a kernel at the other end of the pipe, and pass its lines on. True: its devices are up; False: it has
    ended; None: it has said nothing for so many seconds."""
    news = select.poll()  # select() takes no descriptor above 1,023
    news.register(heard, select.POLLIN)
    rest = b""
    while news.poll(seconds * 1000):
        if not (data := os.read(heard.fileno(), 4096)):
            return False
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if not line:
                return True
            say(line.decode(errors="replace"))
    return None


def note(lock: int, text: str) -> None:
    """Say in the lock, which the caller holds, how far the boot has come; empty: it has come to its end. Raises
    OSError."""
    first = os.pread(lock, _MOST, 0).partition(b"\n")[0] + b"\n"
    os.pwrite(lock, text.encode(), len(first))
    os.ftruncate(lock, len(first) + len(text.encode()))


def noted(directory: Path) -> str:
    """How far the kernel that boots in a runtime directory says that it has come; empty: it says nothing, or is up."""
    try:
        with (directory / runtime.LOCK).open("rb") as lock:
            text = lock.read(_MOST).partition(b"\n")[2].decode(errors="replace")
    except OSError:
        return ""
    return text if text and runtime.holder(directory) is not None else ""

"""The runtime directory: where the sockets and the lock of one kernel are, and who holds it.

As with /run/user on Linux, its place comes from the environment and nobody else may look inside: it is 0700
and owned by the user. A kernel is alive exactly while it holds the lock (flock: the operating system lets go
of it with the process, however that ends), so the files of a dead kernel are never mistaken for a living one.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from pathlib import Path

LOCK = "kernel.lock"
PROGRAMS = "kernel.sock"
DRIVERS = "drivers.sock"
LOG = "kernel.log"
JOURNAL = "kernel.journal"


_PLACE = Path(__file__).absolute().parents[2]  # where the package `llmasos` is found


def module(name: str) -> list[str]:
    """The command that runs a module of this package in another process. The directory that it is started in is not
    searched for modules: people have files there that are called like ours."""
    return [sys.executable, "-P", "-m", name]


def environment() -> dict[str, str]:
    """Ours, for such a process: it comes from the same place as this one, and that comes before PYTHONPATH."""
    found = os.environ.get("PYTHONPATH", "")
    path = f"{_PLACE}{os.pathsep}{found}" if found else os.fspath(_PLACE)
    return {**os.environ, "PYTHONPATH": path}


def default() -> Path:
    """$LLMASOS_RUNTIME, else $XDG_RUNTIME_DIR/llmasos, else /tmp/llmasos-UID."""
    if place := os.environ.get("LLMASOS_RUNTIME"):
        return Path(place)
    if place := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(place) / "llmasos"
    return Path(f"/tmp/llmasos-{os.getuid()}")


def locate(runtime: str | os.PathLike[str] | None) -> Path:
    """The directory meant by a runtime directory, an `ipc://.../kernel.sock` endpoint, or None (the
    default)."""
    if runtime is None:
        return default()
    place = os.fspath(runtime)
    if place.startswith("ipc://"):
        return Path(place.removeprefix("ipc://")).parent
    return Path(place)


def endpoint(runtime: Path, socket_name: str = PROGRAMS) -> str:
    return f"ipc://{runtime.absolute() / socket_name}"


def holder(runtime: Path) -> int | None:
    """The OS pid of the kernel that holds the runtime directory, or None. 0: held, but it has not said its
    pid yet."""
    try:
        lock = os.open(runtime / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        # A shared lock held for an instant: two askers do not disturb each other, and a kernel that boots
        # tries again.
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        words = os.read(lock, 100).split()
        return int(words[0]) if words and words[0].isdigit() else 0
    finally:
        os.close(lock)
    return None


def halted(runtime: Path) -> bool:
    """Has the kernel with a journal that was there ended in good order? One that died leaves its journal, or a symbolic
    link to where that is."""
    # In this order: while a kernel boots, which holds the lock, it may have put a damaged journal aside.
    return not os.path.lexists(runtime / JOURNAL) and holder(runtime) is None


def listening(runtime: Path) -> bool:
    """Does somebody accept programs there?"""
    path = os.fspath(runtime.absolute() / PROGRAMS)
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(path)
    except OSError:  # also: a path too long to connect to
        return False
    return True

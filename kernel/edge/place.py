"""The files that a running kernel needs: its lock, its sockets, the sign of its journal. Somebody may remove them.

Cleaners of /tmp do, and the service manager that takes /run/user/UID away at the last logout. The kernel would run on,
but no program would find it, and what it writes would go to files without a name. So their directories are watched
(fcntl's F_NOTIFY, of Linux: no thread and no polling), and what is missing is made again. Elsewhere the kernel looks
every now and then.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from llmasos.kernel.edge import lock
from llmasos.kernel.edge.listening import hidden
from llmasos.syscalls import runtime

LOOK_SECONDS = 30.0  # where changes are not told
_SETTLE_SECONDS = 0.2  # who removes files removes several


@dataclass(slots=True)
class Place:
    """A runtime directory with its lock. `sign` is the link in it that leads to the journal, and where that leads."""

    directory: Path
    lock: int
    sign: tuple[Path, Path] | None = None
    sockets: tuple[str, ...] = (runtime.PROGRAMS, runtime.DRIVERS)

    def missing(self) -> bool:
        """Whether a file of the kernel's is not there, or another has its name."""
        sockets = all(self.has(name) for name in self.sockets)
        signed = self.sign is None or os.path.lexists(self.sign[0])
        return not (sockets and signed and self._has_lock())

    def has(self, name: str) -> bool:
        """Whether a socket is there; a guarded door hides its own now and then."""
        return (self.directory / name).exists() or hidden(self.directory / name).exists()

    def _has_lock(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self.lock), (self.directory / runtime.LOCK).stat())
        except OSError:
            return False

    def make_again(self) -> None:
        """Make the directory, the lock and the sign again. Raises SyscallError: they cannot be, or another kernel has
        them by now; OSError."""
        lock.prepare(self.directory)
        if not self._has_lock():
            held = lock.hold(self.directory)
            os.dup2(held, self.lock, inheritable=False)  # one lock for both: it belongs to the open file
            os.close(held)
        if self.sign is not None and not os.path.lexists(self.sign[0]):
            self.sign[0].symlink_to(self.sign[1])


async def watch(directories: Callable[[], Iterable[Path]], look: Callable[[], None]) -> None:
    """Call `look` at once, and whenever something has been removed or renamed in one of the directories or in one above
    it. Until cancelled."""
    if sys.platform != "linux":
        while True:
            look()
            await trio.sleep(LOOK_SECONDS)
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # what comes before or behind the receiver must not end the process
    with trio.open_signal_receiver(signal.SIGIO) as told:
        watched: list[int] = []
        try:
            while True:
                for fd in watched:
                    os.close(fd)
                watched = _watch({place for one in directories() for place in (one, one.parent)})
                look()
                async for _ in told:
                    break
                await trio.sleep(_SETTLE_SECONDS)
        finally:
            for fd in watched:
                os.close(fd)


def _watch(directories: set[Path]) -> list[int]:
    found = []
    for directory in directories:
        with suppress(OSError):  # it is not there: the one above it is watched
            found.append(fd := os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            fcntl.fcntl(fd, fcntl.F_NOTIFY, fcntl.DN_DELETE | fcntl.DN_RENAME | fcntl.DN_MULTISHOT)
    return found

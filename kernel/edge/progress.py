"""How far a boot has come that takes longer than about a second, since there are very many processes to bring back.

It is said every second: in the kernel's log, to the command that waits (syscalls/readiness.py), in the lock for others,
and to the service manager, which would else take the kernel for one that hangs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress

from llmasos.kernel.edge.service import Manager
from llmasos.kernel.events import Log
from llmasos.syscalls import readiness

SAY_SECONDS = 1.0
_PATIENCE_SECONDS = 30  # for which the service manager is asked to wait on, after each line
_MEGABYTE = 1_000_000


class Progress:
    """`log` shows a line, `told` is the pipe to who waits (-1: nobody does), `lock` the lock of the runtime directory."""

    def __init__(self, log: Callable[[Log], None], told: int, lock: int, manager: Manager) -> None:
        self._log, self._told, self._lock, self._manager = log, told, lock, manager
        self._begun = self._said = time.monotonic()
        if told >= 0:
            os.set_blocking(told, False)  # nobody may be reading

    def read(self, done: int, of: int) -> None:
        """So many bytes of the journal have been read."""
        if of >= _MEGABYTE and self._due():
            self._say(f"journal: {done / _MEGABYTE:,.1f} of {of / _MEGABYTE:,.1f} MB are read")

    def restored(self, done: int, of: int) -> None:
        """So many processes are in the table again."""
        if self._due():
            self._say(f"journal: restored {done:,} of {of:,} processes")

    def ready(self) -> None:
        """The devices are up."""
        with suppress(OSError):  # who asked has gone
            os.write(self._told, b"\n")
        with suppress(OSError):  # the descriptor is free also where its close fails
            os.close(self._told)

    def listens(self) -> None:
        """Programs can connect."""
        with suppress(OSError):
            readiness.note(self._lock, "")

    def _due(self) -> bool:
        return time.monotonic() - self._said >= SAY_SECONDS

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        self._log(Log(self._said - self._begun, "info", text))
        self._manager.tell(f"EXTEND_TIMEOUT_USEC={_PATIENCE_SECONDS * 1_000_000}", f"STATUS={text}")
        with suppress(OSError):
            readiness.note(self._lock, text)
        if self._told >= 0:
            with suppress(OSError):
                os.write(self._told, text.encode() + b"\n")

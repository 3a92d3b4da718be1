"""What the shell prints when the kernel dies and when the next one comes: a line each.

The connection waits by itself (syscalls/reconnect.py), and so do the commands that run; here it is only reported: above
the prompt, between the words of an answer, in a script on stderr.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.records import BootInfo, Kind, State
from llmasos.userland.programs import ps
from llmasos.userland.programs.figures import duration
from llmasos.userland.programs.screen import wrapped

if TYPE_CHECKING:
    from llmasos.userland.programs.screen import Screen
    from llmasos.userland.sdk.system import System


class Outage:
    """`down`: no kernel runs now. `aside` prints a line; a command that prints something else meanwhile sets its own.
    `prompting`: a line is being edited."""

    def __init__(self, system: System, screen: Screen, *, interactive: bool) -> None:
        self.down = False
        self.prompting = False
        self.aside: Callable[[str], None] = self.line
        self._system, self._screen, self._interactive = system, screen, interactive
        self._since = 0.0
        system.kernel.notify = self._notify

    def line(self, text: str) -> None:
        """Print a line of its own."""
        if not self._interactive:
            self._screen.error(text)
        elif self.prompting:
            # The editor's stdout, which leaves the edited line below it.
            print("\n".join(wrapped(text, self._screen.width)), file=sys.stdout, flush=True)
        else:
            self._screen.line(text, "dim")

    def _notify(self, boot: BootInfo | None) -> None:
        """Runs in the connection's own thread, which must make no calls."""
        if boot is None:
            self.down, self._since = True, time.monotonic()
            self.aside(
                f"[the kernel has died; waiting up to {self._system.kernel.reconnect:g} s for the next one "
                "(`llmasos boot`)]"
            )
        else:
            self.down = False
            threading.Thread(target=self._back, name="llmasos-outage", daemon=True).start()

    def _back(self) -> None:
        took = duration(time.monotonic() - self._since)
        try:
            agents = ps.processes(self._system.kernel, lambda row: row.kind is Kind.LLM and row.state is not State.ZOMBIE)
        except SyscallError:
            return  # it has died again, and another line reports that
        count = f"{len(agents)} process{'' if len(agents) == 1 else 'es'}"
        self.aside(f"[the kernel is back after {took}: {count}]")

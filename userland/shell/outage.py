"""What the shell prints when the kernel dies and when the next one comes: a line each.

The connection waits by itself (syscalls/reconnect.py), and so do the commands that run; here it is only reported: above
the prompt, between the words of an answer, in a script on stderr.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import BootInfo, Kind, State
from llmasos.syscalls.table import BootInfoCall
from llmasos.userland.programs import ps
from llmasos.userland.programs.figures import duration
from llmasos.userland.programs.screen import wrapped

if TYPE_CHECKING:
    from llmasos.userland.programs.screen import Screen
    from llmasos.userland.sdk.system import System

LOOK_SECONDS = 0.1


class Outage:
    """`down`: no kernel runs now; `gone`: none will be waited for any more. `changed` is called when either changes.
    `aside` prints a line; a command that prints something else meanwhile sets its own.
    `prompting`: a line is being edited. `cut`: the lines that ended because the kernel had gone."""

    def __init__(self, system: System, screen: Screen, *, interactive: bool) -> None:
        self.down = self.gone = False
        self.prompting = False
        self.cut = 0
        self.changed: Callable[[], object] = lambda: None
        self.aside: Callable[[str], None] = self.line
        self._system, self._screen, self._interactive = system, screen, interactive
        self._since = 0.0
        system.kernel.notify = self._notify

    def watch(self) -> None:
        """Notice the kernel's end, also while no call is under way."""
        threading.Thread(target=self._watch, name="llmasos-watch", daemon=True).start()

    def lost(self) -> None:
        """None will be waited for any more: this connection is of no use."""
        self.gone = True
        self.changed()

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
            self.changed()
            self.aside(
                f"[the kernel has died; waiting up to {self._system.kernel.reconnect:g} s for the next one "
                "(`llmasos boot`)]"
            )
        else:
            self.down = False
            self.changed()
            threading.Thread(target=self._back, name="llmasos-outage", daemon=True).start()

    def _back(self) -> None:
        took = duration(time.monotonic() - self._since)
        try:
            agents = ps.processes(self._system.kernel, lambda row: row.kind is Kind.LLM and row.state is not State.ZOMBIE)
        except SyscallError:
            return  # it has died again, and another line reports that
        count = f"{len(agents)} process{'' if len(agents) == 1 else 'es'}"
        self.aside(f"[the kernel is back after {took}: {count}]")
        self.changed()

    def _watch(self) -> None:
        """Sleeps until the kernel's OS process ends. The call after that is answered by the next kernel, or fails once
        nobody waits for one any more."""
        kernel = self._system.kernel
        pid = kernel.boot.os_pid
        while _ended(pid):
            try:
                pid = kernel(BootInfoCall()).os_pid
            except SyscallError as error:
                if error.errno is not Errno.EPIPE:  # the connection has not noticed yet
                    time.sleep(LOOK_SECONDS)
                    continue
                told = self.gone  # by a command that noticed first
                self.lost()
                if self._interactive and self.prompting and not told:
                    self.aside(f"[the kernel has gone: {error.reason.removeprefix('boot_info: ')}]")
                return


def _ended(pid: int) -> bool:
    """Wait for the end of a process, without looking. False if the operating system does not tell of it."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except OSError:  # a kernel in another container
        return False
    try:
        ready = select.poll()
        ready.register(descriptor, select.POLLIN)
        ready.poll()
    finally:
        os.close(descriptor)
    return True

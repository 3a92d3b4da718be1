"""The line below the prompt: what the system does. Nobody asks the kernel while nothing happens.

A thread of its own asks, so that a kernel that does not answer never holds up a key. It looks when a prompt begins, when
the person types, when the kernel goes or comes back, and once a second only while an agent decodes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Kind, State, WaitFor
from llmasos.syscalls.table import Models, StatsCall
from llmasos.userland.programs import ps, system
from llmasos.userland.programs.figures import number
from llmasos.userland.programs.table import cells, cut

if TYPE_CHECKING:
    from llmasos.userland.shell.session import Session

REFRESH_SECONDS = 1.0
BETWEEN = "  |  "


class Situation:
    """`text` is the line; `shown` is called when it has changed."""

    def __init__(self, shell: Session) -> None:
        self.text = ""
        self.shown: Callable[[], object] = lambda: None
        self._shell = shell
        self._due = threading.Event()
        self._looked = float("-inf")
        self._ended = False
        self._thread = threading.Thread(target=self._keep, name="llmasos-situation", daemon=True)

    def __enter__(self) -> Situation:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._due.set()

    def look(self) -> None:
        """Something may have changed."""
        self._due.set()

    def glance(self) -> None:
        """The person types: look, if the last look is old."""
        if time.monotonic() - self._looked > REFRESH_SECONDS:
            self._looked = time.monotonic()
            self._due.set()

    def _keep(self) -> None:
        busy = False
        while True:
            self._due.wait(REFRESH_SECONDS if busy and self._shell.outage.prompting else None)
            if self._ended:
                return
            self._due.clear()
            self._looked = time.monotonic()
            before, (self.text, busy) = self.text, self._now()
            if self.text != before:
                self.shown()

    def _now(self) -> tuple[str, bool]:
        """`3 agents: 2 decoding, 1 stopped | tiny 12/2048 pages | 812 tokens decoded`, and whether it is to change by
        itself."""
        shell = self._shell
        if shell.outage.gone:
            return "the kernel has gone; a command looks anew, `exit` leaves", False
        if shell.outage.down:
            return "no kernel: waiting for the next one", False
        try:
            agents = ps.processes(shell.glance, lambda row: row.kind is Kind.LLM and row.state is not State.ZOMBIE)
            models = [model for model in shell.glance(Models()) if model.frames]
            counters = shell.glance(StatsCall())
        except SyscallError as error:
            silent = error.errno is Errno.ETIME
            return "the kernel does not answer" if silent else str(error), True  # it may answer soon
        working = sum(row.decoding and row.state is not State.STOPPED for row in agents)
        stopped = sum(row.state is State.STOPPED for row in agents)
        parts = [f"{len(agents)} agent{'' if len(agents) == 1 else 's'}: {working} decoding, {stopped} stopped"]
        parts += [
            f"{name} {model.frames - model.frames_free - model.frames_cached}/{model.frames} pages"
            for model, name in zip(models, system.apart(models), strict=True)
        ]
        parts.append(f"{number(counters.tokens_decoded)} tokens decoded")
        # A kernel that has just come back loads models, and says more once they are there.
        return BETWEEN.join(parts), working > 0 or any(row.wait in (WaitFor.WEIGHTS, WaitFor.DEVICE) for row in agents)


def fitted(text: str, width: int) -> str:
    """The line in `width` cells: its first parts, whole, and `…` for those that are left out."""
    if cells(text) <= width:
        return text
    parts = text.split(BETWEEN)[:-1]
    while parts:
        line = BETWEEN.join(parts) + " …"
        if cells(line) <= width:
            return line
        parts.pop()
    return cut(text, width)

"""A hint while no answer comes: what the process waits for, and what the kernel will do about it.

The kernel kills and restarts a driver that hangs (hang_seconds); until then, the hint tells the person at the terminal.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.records import ProcessInfo, State
from llmasos.syscalls.table import BootInfoCall
from llmasos.userland.programs import ps
from llmasos.userland.programs.flow import Flow
from llmasos.userland.shell.session import Session

QUIET_SECONDS = 5.0
LOOK_SECONDS = 0.25
ASK_SECONDS = 2.0  # a kernel that does not answer costs the hint, not the answer


class Patience:
    """`with Patience(shell, pid, flow) as patience: patience.push(piece)`: pieces go to the flow; on a terminal every
    silence of QUIET_SECONDS gets one dim line."""

    def __init__(self, shell: Session, pid: int, flow: Flow) -> None:
        self._shell, self._pid, self._flow = shell, pid, flow
        self._printing = threading.Lock()  # guards the flow and the fields below
        self._heard: float | None = time.monotonic()  # None: this silence has had its hint
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._look, name="llmasos-patience", daemon=True)

    def __enter__(self) -> Patience:
        if self._shell.screen.terminal:
            self._watch.start()
            self._shell.outage.aside = self._aside
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._shell.outage.aside = self._shell.outage.line
        with self._printing:
            self._heard = None

    def head(self, text: str, style: str) -> None:
        """Print the text before the answer."""
        with self._printing:
            self._flow.head(text, style)

    def push(self, piece: str, style: str = "") -> None:
        """Print a piece of the answer."""
        with self._printing:
            self._heard = time.monotonic()
            self._flow.push(piece, style)

    def flush(self) -> None:
        """Print what the flow has held back of the answer."""
        with self._printing:
            self._flow.flush()

    def _aside(self, text: str) -> None:
        with self._printing:
            self._flow.aside(text)

    def _look(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            heard = self._heard
            if heard is None or time.monotonic() - heard < QUIET_SECONDS:
                continue
            try:
                hint = self._hint()
            except SyscallError:
                continue
            with self._printing:
                if self._heard == heard:
                    self._heard = None
                    self._flow.aside(f"[{hint}]")

    def _hint(self) -> str:
        info = self._shell.info(self._pid, timeout=ASK_SECONDS)
        if info.state is State.STOPPED:
            return f"process {self._pid} is stopped; `cont {self._pid}` lets it go on"
        boot = self._shell.kernel(BootInfoCall(), timeout=ASK_SECONDS)
        state = next((device.state for device in boot.devices if device.name == info.device), "gone")
        return waiting(info, state)


def waiting(info: ProcessInfo, device_state: str) -> str:
    """Why a decoding process is silent."""
    since = f"for {QUIET_SECONDS:.0f} s"
    if device_state != "up":
        return f"device {info.device} is {device_state}; the answer goes on when it is up again"
    if info.state is State.RUNNING:
        return (
            f"device {info.device} has not answered {since}; if it hangs, the kernel restarts it after hang_seconds "
            f"(60 unless configured) and the answer goes on"
        )
    why = f": {info.reason}" if info.reason else ""
    return f"process {info.pid} has said nothing {since} ({ps.state(info)}{why})"

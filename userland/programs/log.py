"""dmesg: the kernel log, each line with its time since boot, as Linux prints its ring buffer."""

from __future__ import annotations

import time

from llmasos.modelfiles.called import called_in
from llmasos.syscalls import limits
from llmasos.syscalls.records import LogLine
from llmasos.syscalls.table import BootInfoCall, Dmesg
from llmasos.userland.programs.listing import one_line
from llmasos.userland.programs.ps import Kernel
from llmasos.userland.programs.screen import Screen

POLL_SECONDS = 0.2
_STYLES = {"warning": "yellow", "error": "bold red"}


def show(screen: Screen, lines: list[LogLine], *, as_json: bool = False) -> None:
    """Print lines of the log, or each as a line of JSON."""
    for line in lines:
        if as_json:
            one_line(screen, line)
            continue
        screen.write(f"[{line.at:12.6f}] ", "dim")
        screen.line(called_in(line.text), _STYLES.get(line.level, ""), indent=" " * 15)


def read(kernel: Kernel, after: int = -1) -> list[LogLine]:
    """The lines of the kernel log after sequence number `after`."""
    lines: list[LogLine] = []
    while True:
        page = kernel(Dmesg(after=after))
        lines += page
        if len(page) < limits.MAX_LIST:
            return lines
        after = page[-1].seq


def follow(screen: Screen, kernel: Kernel, *, as_json: bool = False) -> None:
    """Print the log and then each new line, also of a next kernel. Ends by KeyboardInterrupt or an error."""
    after, kernel_pid = -1, 0
    while True:
        if (now := kernel(BootInfoCall()).os_pid) != kernel_pid:
            after, kernel_pid = -1, now  # the log of another kernel has a beginning of its own
        lines = read(kernel, after)
        show(screen, lines, as_json=as_json)
        after = lines[-1].seq if lines else after
        time.sleep(POLL_SECONDS)

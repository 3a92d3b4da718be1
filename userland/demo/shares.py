"""Act: a change of priority, seen in measured token rates.

The device runs one process in a step, so that there is something to share. Two processes decode without end, and their
own counters show the share of each. The rates are compared within the same seconds, so the machine's speed does not
matter.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Getinfo
from llmasos.userland.programs.figures import bar, rate
from llmasos.userland.programs.ps import Kernel
from llmasos.userland.programs.screen import Screen

WINDOW_SECONDS = 120.0  # a window without its tokens by then gets none any more
BAR = 40


@dataclass(frozen=True)
class Window:
    """The tokens that processes decoded in a stretch of time: pid -> tokens, over `seconds`."""

    tokens: dict[int, int]
    seconds: float

    def share(self, pid: int) -> float:
        """The process's share of all tokens of the window, 0..1."""
        return self.tokens[pid] / max(1, sum(self.tokens.values()))


def measure(kernel: Kernel, pids: list[int], tokens: int) -> Window:
    """Watch until the processes have decoded `tokens` together. Raises ETIME."""
    first = {pid: kernel(Getinfo(pid=pid)).usage.decoded for pid in pids}
    began = time.monotonic()
    while True:
        time.sleep(0.01)
        grown = {pid: kernel(Getinfo(pid=pid)).usage.decoded - first[pid] for pid in pids}
        seconds = time.monotonic() - began
        if sum(grown.values()) >= tokens:
            return Window(grown, seconds)
        if seconds > WINDOW_SECONDS:
            raise SyscallError(Errno.ETIME, f"{grown} tokens in {seconds:.0f} s; {tokens} were awaited")


def draw(screen: Screen, window: Window, names: dict[int, str]) -> None:
    """A bar for each process's share."""
    for pid, tokens in window.tokens.items():
        share = window.share(pid)
        drawn = bar(share, BAR, smooth=screen.terminal)
        screen.line(f"{names[pid]:>14} |{drawn}| {share:4.0%}  {rate(tokens, window.seconds)} tok/s")

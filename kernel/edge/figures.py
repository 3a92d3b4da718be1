"""What the operating system says of the OS processes of programs and drivers, each second while a program is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import psutil
import trio

from llmasos.kernel.edge.peers import Peers
from llmasos.kernel.events import Event, OsFigures
from llmasos.syscalls.records import Budget

FIGURES_SECONDS = 1.0
FIGURES_BATCH = 8  # processes looked at before other tasks have their turn


def hidden() -> list[tuple[str, str]]:
    """The level and text of a line for the kernel's log, where the operating system shows this process none of other
    users' processes (proc(5), hidepid): 1 is always there, and root's."""
    if os.path.exists("/proc/1") or not os.path.exists("/proc/self"):
        return []
    text = (
        "/proc hides the processes of other users from this kernel (hidepid): memory and processor time of their "
        "programs are not shown, and before Linux 6.5 these get no signals (KILL and TERM disconnect them); mount /proc "
        "with gid= of a group that the kernel's user is in"
    )
    return [("warning", text)]


async def sample(
    peers: Peers,
    drivers: Callable[[], Iterable[int]],
    budgets: Callable[[], list[Budget]],
    report: Callable[[Event], None],
) -> None:
    """Report them, with the `budgets` of the edge. Until cancelled."""
    processes: dict[int, psutil.Process] = {}
    while True:
        await peers.some()
        await trio.sleep(FIGURES_SECONDS)
        if not len(peers):  # nobody is there who could ask for them
            continue
        wanted = {os.getpid(), *drivers(), *(peer.os_pid for peer in peers)} - {0}
        figures: dict[int, tuple[int, float]] = {}
        for count, pid in enumerate(wanted):
            try:
                if (process := processes.get(pid)) is None:
                    process = processes[pid] = psutil.Process(pid)
                with process.oneshot():
                    times = process.cpu_times()
                    figures[pid] = process.memory_info().rss, times.user + times.system
            except (psutil.Error, OSError):  # it has just ended, or there is no descriptor to ask by
                processes.pop(pid, None)
            if count % FIGURES_BATCH == FIGURES_BATCH - 1:
                await trio.lowlevel.checkpoint()
        for pid in processes.keys() - wanted:
            del processes[pid]
        report(OsFigures(figures, budgets()))

"""Runs a worker so that nothing of it is left: `python -m benchmarks.peers.guard LIFE CPUS COMMAND...`.

When the file descriptor LIFE (a pipe the benchmark holds the other end of) reaches its end, or the worker does, every
descendant is killed: also one that is stopped, has a session of its own or has lost its parent, for the guard is their
subreaper, as init is in a container. Then the worker's temporary files, in a directory of their own, are removed. So a
benchmark may be killed at any moment.

The worker runs on CPUS (comma-separated) only and is the first to go if memory runs out. The guard exits with the
worker's status, 128 + its signal's number if one killed it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_ASKED_TO_LEAVE = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_FIRST_TO_GO = "500"


def main(arguments: list[str]) -> int:
    life, cpus, *command = arguments
    for number in _ASKED_TO_LEAVE:
        signal.signal(number, _leave)
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1) != 0:
        raise OSError("this kernel cannot make a process the reaper of its descendants (Linux 3.4 can)")
    os.sched_setaffinity(0, {int(cpu) for cpu in cpus.split(",")})
    with contextlib.suppress(OSError):  # only a preference
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
    scratch = tempfile.mkdtemp(prefix="llmasos-peer-")
    status = 1
    try:
        worker = subprocess.Popen(command, env={**os.environ, "TMPDIR": scratch})
        os.close(0)  # the benchmark sees the end of its pipes when the worker's are closed
        os.close(1)
        ended = os.pidfd_open(worker.pid)
        select.select([int(life), ended], [], [])
        status = _status(worker)
    finally:
        for number in _ASKED_TO_LEAVE:
            signal.signal(number, signal.SIG_IGN)
        kill_descendants()
        shutil.rmtree(scratch, ignore_errors=True)
    return status


def kill_descendants() -> None:
    """Kill and collect all descendants, including those they start meanwhile. To be called by their subreaper."""
    while children := psutil.Process().children(recursive=True):
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _status(worker: subprocess.Popen[bytes]) -> int:
    try:
        status = worker.wait(timeout=0)
    except subprocess.TimeoutExpired:  # it is the benchmark that has ended
        return 128 + signal.SIGKILL
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

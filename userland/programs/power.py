"""halt: end a kernel in good order and wait until it has gone; `keep` leaves its processes to the next one."""

from __future__ import annotations

import os
import select
import time
from contextlib import ExitStack
from pathlib import Path

from llmasos.syscalls import blocking, runtime
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Shutdown

HALT_SECONDS = 30.0
POLL_SECONDS = 0.02


def halt(where: Path, *, keep: bool = False) -> None:
    """Shut the kernel of a runtime directory down, and return when its OS process has gone too. Raises ECONNREFUSED if
    none runs, ENOTSUP if it cannot keep its processes, ETIME if it does not end."""
    deadline = time.monotonic() + HALT_SECONDS
    with ExitStack() as held:
        with blocking.connect(where, name="halt", reconnect=0.0) as kernel:
            pid = kernel.boot.os_pid
            if (ended := _end_of(pid)) is not None:
                held.callback(os.close, ended)
            try:
                kernel(Shutdown(keep))
            except SyscallError as error:
                if error.errno is not Errno.EPIPE:  # it went before its answer had left
                    raise
        while runtime.holder(where) is not None:
            if time.monotonic() > deadline:
                raise _lasts(where, pid)
            time.sleep(POLL_SECONDS)
        if ended is not None:
            poll = select.poll()
            poll.register(ended, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise _lasts(where, pid)


def _end_of(pid: int) -> int | None:
    """A descriptor that is readable once this OS process has ended (pidfd_open(2)); None where there is none: the
    kernel has let go of its directory then, and that must do."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _lasts(where: Path, pid: int) -> SyscallError:
    return SyscallError(Errno.ETIME, f"the kernel of {where} (process {pid}) has not ended after {HALT_SECONDS:.0f} s")

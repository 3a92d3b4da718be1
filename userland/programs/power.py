"""halt: end a kernel in good order and wait until it has gone; `keep` leaves its processes to the next one."""

from __future__ import annotations

import time
from pathlib import Path

from llmasos.syscalls import blocking, runtime
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Shutdown

HALT_SECONDS = 30.0


def halt(where: Path, *, keep: bool = False) -> None:
    """Shut the kernel of a runtime directory down. Raises ECONNREFUSED if none runs, ENOTSUP if it cannot keep its
    processes, ETIME if it does not end."""
    with blocking.connect(where, name="halt", reconnect=0.0) as kernel:
        try:
            kernel(Shutdown(keep))
        except SyscallError as error:
            if error.errno is not Errno.EPIPE:  # it went before its answer had left
                raise
    deadline = time.monotonic() + HALT_SECONDS
    while (holder := runtime.holder(where)) is not None:
        if time.monotonic() > deadline:
            raise SyscallError(
                Errno.ETIME,
                f"the kernel of {where} (process {holder}) has not ended after {HALT_SECONDS:.0f} s",
            )
        time.sleep(0.02)

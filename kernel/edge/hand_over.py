"""A newer version of this package takes the place of a running kernel: that one halts and keeps its journal, and the new
one boots from it. Programs wait for it as they wait after a kernel's death.

What could go wrong is looked at before: if this version could not read the journal, or the running kernel cannot keep it,
that kernel stays.
"""

from __future__ import annotations

import time
from pathlib import Path

from llmasos.kernel.edge import journal_file
from llmasos.kernel.edge.keys import Keys
from llmasos.syscalls import blocking, runtime
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import BootInfo
from llmasos.syscalls.table import BootInfoCall, Shutdown

CONNECT_SECONDS = 10.0
HALT_SECONDS = 30.0


def relieve(directory: Path, keys: Keys | None = None) -> BootInfo | None:
    """End the kernel of a runtime directory so that this one can go on with its processes; returns what it was, or None
    if none runs there. Raises SyscallError with the reason why it stays: EBUSY, ECONNREFUSED, ETIME."""
    if runtime.holder(directory) is None:
        return None
    with blocking.connect(directory, name="hand over", timeout=CONNECT_SECONDS, reconnect=0.0) as kernel:
        boot = kernel(BootInfoCall(), timeout=CONNECT_SECONDS)
        _check_readable(boot, keys)
        try:
            kernel(Shutdown(keep=True), timeout=CONNECT_SECONDS)
        except SyscallError as error:
            if error.errno is not Errno.EPIPE:  # it went before its answer had left
                raise Errno.EBUSY(f"the kernel {boot.version} cannot hand over and stays: {error.reason}") from None
    deadline = time.monotonic() + HALT_SECONDS
    while runtime.holder(directory) == boot.os_pid:
        if time.monotonic() > deadline:
            raise Errno.ETIME(f"the kernel {boot.version} (process {boot.os_pid}) has not ended in {HALT_SECONDS:g} s")
        time.sleep(0.02)
    return boot


def _check_readable(boot: BootInfo, keys: Keys | None) -> None:
    why = ""
    if not boot.journal_path:
        why = "it keeps no journal"
    else:
        try:  # it grows meanwhile: of the last frame there may be a part
            found = journal_file.read(Path(boot.journal_path), keys=keys)
            why = found.trouble if not found.torn else ""
        except (SyscallError, OSError) as error:
            why = error.reason if isinstance(error, SyscallError) else str(error)
    if why:
        raise Errno.EBUSY(
            f"the kernel {boot.version} stays, since this version could not go on with its processes: {why}"
        )

"""Faults of the swap file, in a driver's own process: with this directory on PYTHONPATH every Python begins here.

LLMASOS_FAULTS names a file that says which call on a file without a name is to fail, and how: `pread 2 5 eio` is the
second to the fifth read. While there is no such file nothing is touched. When the fault has happened, `FILE.happened` is
there. A driver that is to be killed removes the file first, so that the next one lives.

With LLMASOS_SWAP_PAYS a driver reports that moving pages took next to nothing, however busy the machine is: the kernel
swaps only while it measures that this is faster than computing anew.
"""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

PLAN = os.environ.get("LLMASOS_FAULTS", "")


class Faults:
    def __init__(self) -> None:
        self.pread, self.pwritev = os.pread, os.pwritev
        self._turn = threading.Lock()
        self._count = 0

    def due(self, call: str, fd: int) -> str:
        """The fault that this call is to have, or nothing."""
        with self._turn:
            try:
                with open(PLAN) as file:
                    name, first, last, fault = file.read().split()
            except FileNotFoundError:
                self._count = 0
                return ""
            if name != call or not os.readlink(f"/proc/self/fd/{fd}").endswith("(deleted)"):
                return ""
            self._count += 1
            if not int(first) <= self._count <= int(last):
                return ""
            with open(f"{PLAN}.happened", "w"):
                pass
            if fault == "kill":
                os.unlink(PLAN)
                os.kill(os.getpid(), signal.SIGKILL)
            return fault

    def read(self, fd: int, length: int, offset: int) -> bytes:
        match self.due("pread", fd):
            case "eio":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            case "short":
                return self.pread(fd, length // 2, offset)
            case "emptied":
                os.ftruncate(fd, 0)
        return self.pread(fd, length, offset)

    def write(self, fd: int, pieces: list[Any], offset: int) -> int:
        match self.due("pwritev", fd):
            case "eio":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            case "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            case "short":
                return self.pwritev(fd, [bytes(pieces[0])], offset)
            case "flipped":
                done = self.pwritev(fd, pieces, offset)
                at = offset + done // 2
                byte = self.pread(fd, 1, at)
                self.pwritev(fd, [bytes([byte[0] ^ 0x10])], at)
                return done
        return self.pwritev(fd, pieces, offset)


def install(name: str, function: Callable[..., Any]) -> None:
    setattr(os, name, function)


if os.environ.get("LLMASOS_SWAP_PAYS") and "llmasos.drivers.host" in sys.orig_argv:
    from llmasos.drivers.engine.engine import Engine
    from llmasos.drivers.protocol import Step, StepDone

    step = Engine.step

    def quickly_moved(self: Engine, request: Step) -> StepDone:
        done = step(self, request)
        done.phases["swap"] = min(done.phases["swap"], 1e-6)
        return done

    setattr(Engine, "step", quickly_moved)  # noqa: B010 - a name is not assigned to, for mypy

if PLAN:
    faults = Faults()
    install("pread", faults.read)
    install("pwritev", faults.write)

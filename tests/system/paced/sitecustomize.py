"""A native decoder that takes its time, in a driver's own process: with this directory on PYTHONPATH every Python begins
here.

LLMASOS_PACE is how many seconds each of its steps waits before it is done, so that a test can do something in the midst
of an answer on however fast a machine.
"""

import os
import sys
import time
from typing import Any

PACE = float(os.environ.get("LLMASOS_PACE", "0"))

if PACE and "llmasos.drivers.host" in sys.orig_argv:
    from llmasos.drivers.cpu.native.image import NativeImage

    step = NativeImage._step

    def paced(self: NativeImage, *arguments: Any) -> list[int]:
        time.sleep(PACE)
        return step(self, *arguments)

    setattr(NativeImage, "_step", paced)  # noqa: B010 - a name is not assigned to, for mypy

"""How the process of a simulated device dies, hangs and lets time pass; a simulation in virtual time replaces it."""

from __future__ import annotations

import faulthandler
import os
import resource
import threading
import time
from typing import NoReturn


class Fate:
    """How a driver process dies, hangs and lets time pass."""

    def die(self) -> NoReturn:
        """As by a fault of its own. SIGKILL comes from outside, so that it would count against nobody."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        faulthandler.disable()  # it is no fault that anybody looks for
        os.abort()

    def hang(self) -> NoReturn:
        while True:
            threading.Event().wait()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

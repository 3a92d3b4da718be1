"""How the process of a simulated device dies, hangs and lets time pass; a simulation in virtual time replaces it."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import NoReturn


class Fate:
    """How a driver process dies, hangs and lets time pass."""

    def die(self) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("SIGKILL returned")

    def hang(self) -> NoReturn:
        while True:
            threading.Event().wait()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

"""Python's collector of cyclic garbage, told to keep its pauses short.

Objects are freed when the last reference to them goes. The collector is there for cycles, and to find them it walks all
objects that there are, while nothing else runs: for 100,000 processes a second and more. So what a collection that took
long has found alive is frozen (gc.freeze, as Instagram's servers do): no later one looks at it again, and it is freed as
everything else when its last reference goes. Each collection walks what has come since, and that is kept little.

The price: a cycle that was frozen stays for ever. So nothing of the kernel that lives long may be in a cycle when it ends
(tests/kernel/test_garbage.py); a small kernel never freezes anything but what it has imported.
"""

from __future__ import annotations

import atexit
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

LONG_SECONDS = 0.002  # of a collection after which all that is alive is frozen
OLDEST = 2  # the generation with which all others are collected
THRESHOLDS = 700, 5, 2  # lower than Python's, so that no collection has many to walk


@contextmanager
def short_pauses() -> Iterator[None]:
    """Within this the collector makes short pauses. For a whole process."""
    begun = 0.0

    def look(phase: str, about: dict[str, int]) -> None:
        nonlocal begun
        if phase == "start":
            begun = time.perf_counter()
        elif about["generation"] == OLDEST and time.perf_counter() - begun > LONG_SECONDS:
            gc.freeze()

    before = gc.get_threshold()
    gc.freeze()  # what has been imported
    gc.set_threshold(*THRESHOLDS)
    gc.callbacks.append(look)
    try:
        yield
    finally:
        gc.callbacks.remove(look)
        gc.set_threshold(*before)
        gc.unfreeze()
        atexit.register(gc.freeze)  # Python's end walks all objects twice more, which takes as long as a sixth of a boot

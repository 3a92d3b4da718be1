"""Reports while a model is fetched from the hub: a line of the log now and then, and signs of progress.

A sign of progress shows the kernel that the driver does not hang, and ends the download when nobody waits for the model
any more (reader.py). The part that has arrived stays, and the next load continues it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it brings HTTP and TLS along, for the models that are fetched
    from llmasos.modelfiles.hub import Progress, Said

SIGN_SECONDS = 0.5
LINE_SECONDS = 10.0
_log = logging.getLogger(__name__)


def told(path: str, report: Callable[[float], None], clock: Callable[[], float] = time.monotonic) -> Said:
    """A function to call for each piece that arrives; it raises the errors of `report`. `clock` is in seconds."""
    sign, line = float("-inf"), clock() + LINE_SECONDS

    def said(progress: Progress) -> None:
        nonlocal sign, line
        now = clock()
        if now - sign >= SIGN_SECONDS:
            sign = now
            report(0.0)
        if now >= line:
            line = now + LINE_SECONDS
            waits = f" ({progress.waits})" if progress.waits else ""
            _log.info("fetching %s: %d of %d MiB%s", path, progress.done >> 20, progress.total >> 20, waits)

    return said

"""This installation is measured once, by the digests of its files, beside the first programs: a boot does not wait for
it."""

from __future__ import annotations

from collections.abc import Callable

import trio

from llmasos.kernel.edge.journal_file import polite
from llmasos.kernel.events import Event, Measured, Noted
from llmasos.syscalls import installation

SETTLE_SECONDS = 2.0  # after the boot, so that the disk and the processor are the first programs'


async def measure(report: Callable[[Event], None]) -> None:
    """Report the digest of the package's files, or why it is not known."""
    await trio.sleep(SETTLE_SECONDS)
    try:
        found = await trio.to_thread.run_sync(lambda: installation.digests(rest=polite()), abandon_on_cancel=True)
    except OSError as error:
        report(Noted("warning", f"package: {error.filename} cannot be read: {error.strerror}; it is not measured"))
    else:
        report(Measured(installation.whole(found), len(found), str(installation.PACKAGE)))

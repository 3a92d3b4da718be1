"""Progress of a model that a program under an event loop waits for: arriving.py, awaited."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import anyio

from llmasos.syscalls import loops
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.table import Models
from llmasos.userland.sdk import options
from llmasos.userland.sdk.arguments import Model, model_name
from llmasos.userland.sdk.arriving import GLANCE_SECONDS, LOOK_SECONDS, QUIET_SECONDS, Teller, loading
from llmasos.userland.sdk.connection_async import AsyncConnection


@asynccontextmanager
async def arriving(system: AsyncConnection, model: Model) -> AsyncGenerator[None]:
    """Report on the model that a caller names while the `async with` lasts."""
    name = model_name(model)
    wanted = {name, await system.run(options.located(name))}
    tell, over = Teller(), False

    async def watch() -> None:
        await anyio.sleep(QUIET_SECONDS)
        while True:
            with suppress(SyscallError):
                found = loading(await system.kernel(Models(), timeout=GLANCE_SECONDS), wanted)
                if not over:
                    tell(found)
            await anyio.sleep(LOOK_SECONDS)

    # Not in a task group: it would wrap whatever the body of the `async with` raises.
    stop = loops.running().background(watch, f"arrival of {name}")
    try:
        yield
    finally:
        over = True
        stop()
        tell(None)

"""Progress of a model that a trio program waits for: arriving.py, awaited."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

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
    tell, scope = Teller(), trio.CancelScope()

    async def watch() -> None:
        with scope:
            await trio.sleep(QUIET_SECONDS)
            while True:
                try:
                    found = loading(await system.kernel(Models(), timeout=GLANCE_SECONDS), wanted)
                except SyscallError:
                    pass
                else:
                    if not scope.cancel_called:
                        tell(found)
                await trio.sleep(LOOK_SECONDS)

    # Not in a nursery: its groups would wrap whatever the body of the `async with` raises.
    trio.lowlevel.spawn_system_task(watch, name=f"arrival of {name}")
    try:
        yield
    finally:
        scope.cancel()
        tell(None)

"""Many agents answer at once: threads in the one face, tasks in the other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import anyio

from llmasos import Process, System, aio

LISTS = ("red, green", "pear, fig", "apple, plum", "lime, lemon")


def blocking(place: str) -> list[str]:
    with System.connect(place) as system, ThreadPoolExecutor() as pool:

        def copied(agent: Process, text: str) -> str:
            with agent:
                return agent.ask(f"Copy this list: {text}", 20)

        return list(pool.map(copied, [system.spawn() for _ in LISTS], LISTS))


async def awaited(place: str) -> list[str]:
    said: dict[str, str] = {}
    async with aio.System.connect(place) as system, anyio.create_task_group() as group:

        async def copied(agent: aio.Process, text: str) -> None:
            async with agent:
                said[text] = await agent.ask(f"Copy this list: {text}", 20)

        for text in LISTS:
            group.start_soon(copied, await system.spawn(), text)
    return [said[text] for text in LISTS]

"""What one copy is told, the other does not hear."""

from __future__ import annotations

from llmasos import System, aio


def blocking(place: str) -> list[int]:
    with System.connect(place) as system, system.spawn() as agent:
        agent.ask("My name is Mira.", 20)
        first, second = agent.fork(2, name="twin")
        first.feed("something else")
        return [len(first.tokens()) - len(second.tokens()), len(second.tokens()) - len(agent.tokens())]


async def awaited(place: str) -> list[int]:
    async with aio.System.connect(place) as system, await system.spawn() as agent:
        await agent.ask("My name is Mira.", 20)
        first, second = await agent.fork(2, name="twin")
        await first.feed("something else")
        lengths = [len(await one.tokens()) for one in (first, second, agent)]
        return [lengths[0] - lengths[1], lengths[1] - lengths[2]]

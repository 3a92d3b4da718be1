"""The log itself: feed, generate, truncate."""

from __future__ import annotations

from llmasos import Sampler, System, aio

SAMPLER = Sampler(temperature=0.8, seed=7)


def blocking(place: str) -> list[str]:
    with System.connect(place) as system, system.spawn(prompt="Once upon a time") as writer:
        length = len(writer.tokens())
        first = writer.generate(12, sampler=SAMPLER)
        writer.truncate(length)
        again = "".join(writer.stream(12))
        return [str(first == again), first]


async def awaited(place: str) -> list[str]:
    async with aio.System.connect(place) as system, await system.spawn(prompt="Once upon a time") as writer:
        length = len(await writer.tokens())
        first = await writer.generate(12, sampler=SAMPLER)
        await writer.truncate(length)
        again = "".join([piece async for piece in writer.stream(12)])
        return [str(first == again), first]

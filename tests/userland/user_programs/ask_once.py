"""One question, one answer, within a time."""

from __future__ import annotations

from llmasos import System, aio


def blocking(place: str) -> list[str]:
    with System.connect(place, name="ask_once", timeout=60) as system, system.spawn() as agent:
        return [agent.ask("Copy this list: red, green", max_tokens=20, timeout=60)]


async def awaited(place: str) -> list[str]:
    async with aio.System.connect(place, name="ask_once", timeout=60) as system, await system.spawn() as agent:
        return [await agent.ask("Copy this list: red, green", max_tokens=20, timeout=60)]

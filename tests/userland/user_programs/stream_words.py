"""An answer as it comes, and one that is left early."""

from __future__ import annotations

from llmasos import System, aio


def blocking(place: str) -> list[str]:
    with System.connect(place) as system, system.spawn(name="streamer") as agent:
        whole = "".join(agent.say("Copy this list: red, green"))
        kind: str = ""
        for piece in agent.pieces("Tell me a story about a fox.", 200):
            kind = piece.kind
            break
        return [whole, kind]


async def awaited(place: str) -> list[str]:
    async with aio.System.connect(place) as system, await system.spawn(name="streamer") as agent:
        whole = "".join([piece async for piece in agent.say("Copy this list: red, green")])
        kind: str = ""
        async for piece in agent.pieces("Tell me a story about a fox.", 200):
            kind = piece.kind
            break
        return [whole, kind]

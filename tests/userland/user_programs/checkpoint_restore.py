"""A process goes to a file and comes back; the twin says what the first says."""

from __future__ import annotations

import tempfile
from pathlib import Path

from llmasos import System, aio


def blocking(place: str) -> list[bool]:
    with tempfile.TemporaryDirectory() as folder, System.connect(place) as system:
        agent = system.spawn(prompt="Once upon a time")
        saved = Path(folder) / "agent.image"
        info = agent.checkpoint(saved, passphrase="open sesame")
        twin = system.restore(saved, name="twin", passphrase="open sesame")
        return [info.bytes > 0, twin.generate(8) == agent.generate(8)]


async def awaited(place: str) -> list[bool]:
    with tempfile.TemporaryDirectory() as folder:
        async with aio.System.connect(place) as system:
            agent = await system.spawn(prompt="Once upon a time")
            saved = Path(folder) / "agent.image"
            info = await agent.checkpoint(saved, passphrase="open sesame")
            twin = await system.restore(saved, name="twin", passphrase="open sesame")
            return [info.bytes > 0, await twin.generate(8) == await agent.generate(8)]

"""A pipeline, `reverse | copy | reverse`: three agents at work at once, each reading what the one before it wrote.

Unix pipes between language models: the channels are bounded, so a stopped stage holds up those before it, and nothing is
lost when it goes on. Two reversals restore a list, so the output proves that every stage did its part. It is written with
the asynchronous face: a trio task for each stage, and one for the operator.
"""

from __future__ import annotations

import random
import sys

import trio

import llmasos
from llmasos import aio

FRUITS = ("apple", "banana", "cherry", "fig", "lemon", "lime", "mango", "orange", "peach", "pear", "plum")
COUNT = 8


async def stage(
    agent: aio.Process, order: str, source: trio.MemoryReceiveChannel[str], sink: trio.MemorySendChannel[str]
) -> None:
    """Do the same with every text that comes, and pass the answer on."""
    async with source, sink:
        async for text in source:
            await agent.truncate(0)  # a filter keeps no memory of what went before
            await sink.send(await agent.ask(f"{order}: {text}"))


async def operator(agent: aio.Process, pipe: trio.MemorySendChannel[str]) -> None:
    """Stop an agent, wait until the one before it cannot get rid of its work, and let it go on, ahead of the others."""
    await agent.stop()
    while not pipe.statistics().tasks_waiting_send:  # noqa: ASYNC110 (trio has no event for a full channel)
        await trio.sleep(0.02)
    info = await agent.info()
    print(f"-- {info.name} (process {info.pid}) is {info.state.value}: the pipe before it is full")
    await agent.nice(-10)
    await agent.cont()
    print(f"-- {info.name} goes on, at nice {(await agent.info()).nice}")


async def main() -> int:
    draw = random.Random(5)
    lists = [", ".join(draw.sample(FRUITS, 3)) for _ in range(COUNT)]
    came: list[str] = []
    async with aio.System.connect(boot=True, name="pipeline") as system, trio.open_nursery() as nursery:
        agents = [await system.spawn(name=name) for name in ("first reverser", "copier", "last reverser")]
        pipes = [trio.open_memory_channel[str](1) for _ in range(4)]
        orders = ("Reverse this list", "Copy this list", "Reverse this list")
        nursery.start_soon(operator, agents[1], pipes[1][0])
        for index, (agent, order) in enumerate(zip(agents, orders, strict=True)):
            nursery.start_soon(stage, agent, order, pipes[index][1], pipes[index + 1][0])

        async def feed() -> None:
            async with pipes[0][0] as head:
                for text in lists:
                    await head.send(text)

        nursery.start_soon(feed)
        async for text in pipes[-1][1]:
            came.append(text)
            print(f"{lists[len(came) - 1]:24} | reverse | copy | reverse | {text}")
        for agent in agents:
            info = await agent.info()
            print(f"{info.name}: {info.usage.decoded} tokens decoded")
    right = sum(before == after for before, after in zip(lists, came, strict=True))
    print(f"{right} of {len(lists)} lists came out as they went in")
    return 0 if right == len(lists) else 1


if __name__ == "__main__":
    try:
        sys.exit(trio.run(main))
    except* llmasos.SyscallError as errors:
        sys.exit(f"pipeline: {errors.exceptions[0]}")

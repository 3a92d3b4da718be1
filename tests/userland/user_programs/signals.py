"""Stop, nice, go on, end, collect the status."""

from __future__ import annotations

from llmasos import SchedClass, Signal, State, System, aio


def blocking(place: str) -> list[int | str]:
    with System.connect(place) as system:
        agent = system.spawn(nice=3)
        agent.stop()
        state: State = agent.info().state
        agent.nice(5, SchedClass.BATCH)
        agent.cont()
        nice = agent.info().nice
        agent.signal(Signal.TERM)
        return [state.value, nice, agent.wait(timeout=60).status]


async def awaited(place: str) -> list[int | str]:
    async with aio.System.connect(place) as system:
        agent = await system.spawn(nice=3)
        await agent.stop()
        state: State = (await agent.info()).state
        await agent.nice(5, SchedClass.BATCH)
        await agent.cont()
        nice = (await agent.info()).nice
        await agent.signal(Signal.TERM)
        return [state.value, nice, (await agent.wait(timeout=60)).status]

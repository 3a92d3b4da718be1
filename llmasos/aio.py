"""The asynchronous face of LLMasOS, under trio and asyncio (uvloop too): the names of `llmasos`, with the same meanings,
awaited.

    import asyncio
    from llmasos import aio


    async def main() -> None:
        async with aio.System.connect(boot=True) as system:
            agent = await system.spawn(system="You are a poet.")
            async for piece in agent.say("A line about rain, please."):
                print(piece, end="")


    asyncio.run(main())

Every method that asks the kernel is awaited; `say`, `pieces`, `stream` and `follow` are asynchronous generators. To talk
to many processes at once, talk to each in a task of its own. Cancelling a task takes its call back in the kernel.
"""

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Advice, Finish, Limits, Sampler, SchedClass, Signal, State
from llmasos.userland.sdk.client_async import Client, Image, Instance
from llmasos.userland.sdk.llm_async import LLM
from llmasos.userland.sdk.system_async import Process, System

__all__ = [
    "LLM",
    "Advice",
    "Client",
    "Errno",
    "Finish",
    "Image",
    "Instance",
    "Limits",
    "Process",
    "Sampler",
    "SchedClass",
    "Signal",
    "State",
    "SyscallError",
    "System",
]

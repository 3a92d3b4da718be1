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
from llmasos.syscalls.records import (
    Advice,
    BootInfo,
    Budget,
    CheckpointInfo,
    EstimateInfo,
    ExitInfo,
    Finish,
    Going,
    GrantInfo,
    GroupInfo,
    GroupSettings,
    Kind,
    KvAction,
    Limits,
    ModelInfo,
    PolicyOut,
    PressureInfo,
    ProcessInfo,
    Right,
    Sampler,
    SamplingDefaults,
    SchedClass,
    SchedInfo,
    Signal,
    State,
    Stats,
    Usage,
    WaitFor,
)
from llmasos.userland.sdk.actions import Language
from llmasos.userland.sdk.arguments import Dtype, Ids, Model, Strings
from llmasos.userland.sdk.calls import ToolCall
from llmasos.userland.sdk.client_async import Client, Image, Instance
from llmasos.userland.sdk.dialogue import Message
from llmasos.userland.sdk.llm_async import LLM
from llmasos.userland.sdk.notebook import Table
from llmasos.userland.sdk.options import Prompt
from llmasos.userland.sdk.sandboxed_async import Sandboxed
from llmasos.userland.sdk.script import Piece
from llmasos.userland.sdk.system_async import Process, System
from llmasos.userland.sdk.tool_calls import BadCall
from llmasos.userland.sdk.turns import Answer

__all__ = [
    "LLM",
    "Advice",
    "Answer",
    "BadCall",
    "BootInfo",
    "Budget",
    "CheckpointInfo",
    "Client",
    "Dtype",
    "Errno",
    "EstimateInfo",
    "ExitInfo",
    "Finish",
    "Going",
    "GrantInfo",
    "GroupInfo",
    "GroupSettings",
    "Ids",
    "Image",
    "Instance",
    "Kind",
    "KvAction",
    "Language",
    "Limits",
    "Message",
    "Model",
    "ModelInfo",
    "Piece",
    "PolicyOut",
    "PressureInfo",
    "Process",
    "ProcessInfo",
    "Prompt",
    "Right",
    "Sampler",
    "SamplingDefaults",
    "Sandboxed",
    "SchedClass",
    "SchedInfo",
    "Signal",
    "State",
    "Stats",
    "Strings",
    "SyscallError",
    "System",
    "Table",
    "ToolCall",
    "Usage",
    "WaitFor",
]

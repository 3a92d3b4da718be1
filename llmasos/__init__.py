"""LLMasOS: an operating system for language models. What a Python author imports.

import llmasos

with llmasos.System.connect(boot=True) as system:
    print(system.spawn().ask("Who are you?"))

Names are imported when they are first used (PEP 562), so that a command line, or a program without trio, does not wait
for what it does not need.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syscalls.errno import Errno, SyscallError
    from syscalls.records import Advice, Finish, Limits, Sampler, SchedClass, Signal, State
    from userland.sdk import aio
    from userland.sdk.client import Client, Image, Instance
    from userland.sdk.llm import LLM
    from userland.sdk.system import Process, System

_WHERE = {
    "Errno": "syscalls.errno",
    "SyscallError": "syscalls.errno",
    "Advice": "syscalls.records",
    "Finish": "syscalls.records",
    "Limits": "syscalls.records",
    "Sampler": "syscalls.records",
    "SchedClass": "syscalls.records",
    "Signal": "syscalls.records",
    "State": "syscalls.records",
    "Client": "userland.sdk.client",
    "Image": "userland.sdk.client",
    "Instance": "userland.sdk.client",
    "LLM": "userland.sdk.llm",
    "Process": "userland.sdk.system",
    "System": "userland.sdk.system",
}

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
    "aio",
]


def __getattr__(name: str) -> Any:
    if name == "aio":
        return importlib.import_module("userland.sdk.aio")
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_WHERE[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

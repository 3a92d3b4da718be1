"""LLMasOS: an operating system for language models. What a Python author imports.

import llmasos

with llmasos.System.connect(boot=True) as system:
    print(system.spawn().ask("Who are you?"))
"""

from syscalls.errno import Errno, SyscallError
from syscalls.records import Advice, Finish, Limits, Sampler, SchedClass, Signal, State
from userland.sdk import aio
from userland.sdk.client import Client, Image, Instance
from userland.sdk.llm import LLM
from userland.sdk.system import Process, System

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

"""LLMasOS: an operating system for language models. The names that a Python program imports.

    import llmasos

    with llmasos.System.connect(boot=True) as system:
        print(system.spawn().ask("Who are you?"))

Names are imported when they are first used (PEP 562): a command line, or a program without trio, does not wait for
modules that it does not use.
"""

import importlib
import os.path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmasos import aio
    from llmasos.syscalls.errno import Errno, SyscallError
    from llmasos.syscalls.records import Advice, Finish, Limits, Sampler, SchedClass, Signal, State
    from llmasos.userland.sdk.client import Client, Image, Instance
    from llmasos.userland.sdk.llm import LLM
    from llmasos.userland.sdk.system import Process, System

if os.path.isfile(os.path.join(os.path.dirname(__file__), "syscalls")):
    raise ImportError(
        "llmasos/syscalls is a file and should be a link to ../syscalls: check out with symbolic links (git config "
        "core.symlinks true), or install the wheel"
    )

_WHERE = {
    "Errno": "llmasos.syscalls.errno",
    "SyscallError": "llmasos.syscalls.errno",
    "Advice": "llmasos.syscalls.records",
    "Finish": "llmasos.syscalls.records",
    "Limits": "llmasos.syscalls.records",
    "Sampler": "llmasos.syscalls.records",
    "SchedClass": "llmasos.syscalls.records",
    "Signal": "llmasos.syscalls.records",
    "State": "llmasos.syscalls.records",
    "Client": "llmasos.userland.sdk.client",
    "Image": "llmasos.userland.sdk.client",
    "Instance": "llmasos.userland.sdk.client",
    "LLM": "llmasos.userland.sdk.llm",
    "Process": "llmasos.userland.sdk.system",
    "System": "llmasos.userland.sdk.system",
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
        return importlib.import_module("llmasos.aio")
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_WHERE[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

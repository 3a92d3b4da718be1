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
    from llmasos.userland.sdk.client import Client, Image, Instance
    from llmasos.userland.sdk.dialogue import Message
    from llmasos.userland.sdk.llm import LLM
    from llmasos.userland.sdk.notebook import Table
    from llmasos.userland.sdk.options import Prompt
    from llmasos.userland.sdk.sandboxed import Sandboxed
    from llmasos.userland.sdk.script import Piece
    from llmasos.userland.sdk.system import Process, System
    from llmasos.userland.sdk.tool_calls import BadCall
    from llmasos.userland.sdk.turns import Answer

__version__: str

if os.path.isfile(os.path.join(os.path.dirname(__file__), "syscalls")):
    raise ImportError(
        "llmasos/syscalls is a file and should be a link to ../syscalls: check out with symbolic links (git config "
        "core.symlinks true), or install the wheel"
    )

_MODULES = {
    "llmasos.syscalls.errno": ["Errno", "SyscallError"],
    "llmasos.syscalls.records": [
        "Advice",
        "BootInfo",
        "Budget",
        "CheckpointInfo",
        "EstimateInfo",
        "ExitInfo",
        "Finish",
        "Going",
        "GrantInfo",
        "GroupInfo",
        "GroupSettings",
        "Kind",
        "KvAction",
        "Limits",
        "ModelInfo",
        "PolicyOut",
        "PressureInfo",
        "ProcessInfo",
        "Right",
        "Sampler",
        "SamplingDefaults",
        "SchedClass",
        "SchedInfo",
        "Signal",
        "State",
        "Stats",
        "Usage",
        "WaitFor",
    ],
    "llmasos.userland.sdk.actions": ["Language"],
    "llmasos.userland.sdk.arguments": ["Dtype", "Ids", "Model", "Strings"],
    "llmasos.userland.sdk.calls": ["ToolCall"],
    "llmasos.userland.sdk.dialogue": ["Message"],
    "llmasos.userland.sdk.notebook": ["Table"],
    "llmasos.userland.sdk.options": ["Prompt"],
    "llmasos.userland.sdk.sandboxed": ["Sandboxed"],
    "llmasos.userland.sdk.script": ["Piece"],
    "llmasos.userland.sdk.tool_calls": ["BadCall"],
    "llmasos.userland.sdk.turns": ["Answer"],
    "llmasos.userland.sdk.client": ["Client", "Image", "Instance"],
    "llmasos.userland.sdk.llm": ["LLM"],
    "llmasos.userland.sdk.system": ["Process", "System"],
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}

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
    "aio",
]


def __getattr__(name: str) -> Any:
    if name == "aio":
        return importlib.import_module("llmasos.aio")
    if name == "__version__":
        found = importlib.import_module("llmasos.syscalls.version").version() or "unknown (not installed)"
    elif name in _WHERE:
        found = getattr(importlib.import_module(_WHERE[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), "__version__", *__all__})

"""The arguments that people pass, made uniform for the rest of the SDK: one string for several, ids of any kind, paths,
dtypes.

Checked before the first call goes out, so that a refusal changes nothing. An error names the argument, what was wanted
and what was found. numpy and torch are not imported for this: whatever looks like a sequence of integers is one.
"""

from __future__ import annotations

import enum
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, SupportsIndex, TypeVar, cast

from llmasos.syscalls.errno import Errno, SyscallError

# The names that transformers, vLLM and llama.cpp have for this system's dtypes; "auto" leaves the choice to the device.
_DTYPES = {
    "auto": "", "float32": "fp32", "float": "fp32", "f32": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16",
    "f16": "fp16", "q8": "int8", "q4": "int4",
}  # fmt: skip

TWO_SYSTEMS = "a conversation begins with one system message, and two were given; write them as one"

E = TypeVar("E", bound=enum.Enum)
Strings = str | Sequence[str]  # one string, or several
Ids = Iterable[SupportsIndex]  # token ids: integers, a numpy array or a torch tensor
Model = str | os.PathLike[str]  # a name that the system knows, a directory, a GGUF file, or another store's name
# Enums may be given as text too: a type checker knows the words.
AdviceName = Literal["normal", "willneed", "dontneed", "pin"]
KvActionName = Literal["spill", "wait", "fail", "kill"]
SchedClassName = Literal["realtime", "fair", "batch", "idle"]
SignalName = Literal["INT", "KILL", "TERM", "CHLD", "CONT", "STOP", "XCPU"]
Dtype = str | object | None  # fp32, bf16, int8, int4, or another library's name for it; empty or None: the default


def member(kind: type[E], value: E | str) -> E:
    """A member of an enum, by itself, by its value or by its name."""
    return kind[value] if isinstance(value, str) and value in kind.__members__ else kind(value)


def strings(value: Strings, what: str) -> list[str]:
    """`value` as a list; a string becomes a list of one, not of its characters. Raises EINVAL, naming an item that is no
    string."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Iterable):
        raise _wanted(f"{what} is a string, or a sequence of strings", value)
    found = list(value)
    for item in found:
        if not isinstance(item, str):
            raise _wanted(f"{what} is a string, or a sequence of strings", item)
    return found


def stop_strings(value: Strings | None) -> list[str]:
    """The stop strings in `stop`. Raises EINVAL for one that cannot be."""
    stops = strings(value if value is not None else (), "stop")
    if not all(stops):
        raise SyscallError(Errno.EINVAL, "a stop string is empty; it would stop everything")
    return stops


def text(value: object) -> str:
    """A text to say or feed. Raises EINVAL unless it is a string."""
    if not isinstance(value, str):
        raise _wanted("a text is a string", value)
    return value


def definitions(tools: object) -> list[dict[str, Any]]:
    """Definitions of tools as templates take them. Raises EINVAL unless it is a list of them."""
    if isinstance(tools, Sequence) and all(isinstance(tool, Mapping) for tool in tools):
        return [dict(tool) for tool in tools]
    raise SyscallError(Errno.EINVAL, "tools are a list of definitions such as {'type': 'function', 'function': {...}}")


def count(value: object, what: str) -> int:
    """A count as a plain integer. Raises EINVAL unless it is an integer."""
    try:
        if not isinstance(value, bool):
            return operator.index(cast(SupportsIndex, value))
    except TypeError:
        pass
    raise _wanted(f"{what} is an integer", value)


def is_ids(value: object) -> bool:
    """Whether `value` looks like a sequence of numbers: a list, tuple, range, array or tensor, but no text and no
    messages."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return False
    if hasattr(value, "ndim") or isinstance(value, range):
        return True
    items = list(value)
    return not any(isinstance(item, str | Mapping) for item in items)


def ids(value: object, what: str = "tokens") -> list[int]:
    """Token ids as plain integers. Raises EINVAL, naming the first that is none."""
    listed = cast(Any, value).tolist() if hasattr(value, "tolist") else value
    if isinstance(listed, str | bytes | Mapping) or not isinstance(listed, Iterable):
        raise _wanted(f"{what} is a sequence of integers", value)
    found: list[int] = []
    for item in listed:
        if isinstance(item, bool):
            raise _wanted(f"{what} is a sequence of integers", item)
        try:
            found.append(operator.index(item))
        except TypeError:
            if isinstance(item, list | tuple):
                raise SyscallError(
                    Errno.EINVAL, f"{what} is one sequence of integers, found several; pass them one by one"
                ) from None
            raise _wanted(f"{what} is a sequence of integers", item) from None
    return found


def messages(value: object, what: str = "a prompt is text, token ids") -> list[dict[str, Any]]:
    """Chat messages: one, or a sequence of them. Raises EINVAL, naming what is no message."""
    listed = [value] if isinstance(value, Mapping) else value
    wanted = f"{what}, a message such as {{'role': 'user', 'content': ...}}, or a list of messages"
    if isinstance(listed, str | bytes) or not isinstance(listed, Iterable):
        raise _wanted(wanted, value)
    found: list[dict[str, Any]] = []
    for item in listed:
        if not isinstance(item, Mapping):
            raise _wanted(wanted, item)
        found.append(_message(item))
    if [one["role"] for one in found[:2]] == ["system", "system"]:
        raise SyscallError(Errno.EINVAL, TWO_SYSTEMS)
    return found


def _message(item: Mapping[Any, Any]) -> dict[str, Any]:
    """A message as a dictionary of its own. Raises EINVAL."""
    if odd := next((key for key in item if not isinstance(key, str)), None):
        raise _wanted("the keys of a message are strings", odd)
    if not isinstance(item.get("role"), str):
        raise SyscallError(Errno.EINVAL, f"a message has a role, a string; found {sorted(item)}")
    content, what = item.get("content"), f"the content of a message of {item['role']!r:.80}"
    if content is None:
        if not any(value for key, value in item.items() if key != "role"):  # what calls tools, say, needs no words
            raise SyscallError(Errno.EINVAL, f"{what} is missing: add 'content', text or a list of parts")
    elif isinstance(content, Sequence) and not isinstance(content, str | bytes):
        for part in content:
            if not isinstance(part, str | Mapping):
                raise _wanted(f"{what} is text, or a list of parts such as {{'type': 'text', 'text': ...}}", part)
    elif not isinstance(content, str | Mapping):
        raise _wanted(f"{what} is text, or a list of parts", content)
    calls = item.get("tool_calls")
    if calls is not None and not (isinstance(calls, list | tuple) and all(isinstance(call, Mapping) for call in calls)):
        raise _wanted("the tool_calls of a message are a list of dictionaries", calls)
    return dict(item)


def model_name(value: Model) -> str:
    """The name of a model for a system call."""
    try:
        name = os.fspath(value)
    except TypeError:
        raise _wanted("a model is a name, a directory or a file", value) from None
    if not isinstance(name, str):
        raise _wanted("a model is a name, a directory or a file", value)
    return name


def dtype_name(value: Dtype) -> str:
    """A dtype by this system's name: takes `torch.bfloat16`, "float32" and "auto" too. An unknown name passes through,
    for the driver to refuse with a list of those that it has. None is the device's own."""
    if value is None:
        return ""
    name = value if isinstance(value, str) else str(value)
    name = name.removeprefix("torch.")
    return _DTYPES.get(name.lower(), name)


def _wanted(what: str, found: object) -> SyscallError:
    shown = repr(found)
    return SyscallError(
        Errno.EINVAL,
        f"{what}, found {shown if len(shown) <= 60 else shown[:57] + '...'} ({type(found).__name__})",
    )

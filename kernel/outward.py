"""Answers as their caller reads them: pids of other users than the operator are numbers of their own (syscalls/pids.py).

The operator's pids are plain numbers, and others' tell him their uid, in texts as `1001:7`. A new field that has a pid,
or a text that may name one, belongs in FIELDS.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from msgspec.structs import replace

from llmasos.kernel.objects.owner import Owner
from llmasos.syscalls import pids
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import (
    BootInfo,
    EstimateInfo,
    ExitInfo,
    GrantInfo,
    GroupInfo,
    LogLine,
    ModelInfo,
    ProcessInfo,
    Record,
    TraceEvent,
    TraceResult,
)
from llmasos.syscalls.table import Call, Fork, Restore, Spawn

BORN: frozenset[type[Call[Any]]] = frozenset({Spawn, Fork, Restore})  # whose results are pids
FIELDS: dict[type[Record], tuple[str, ...]] = {
    ProcessInfo: ("pid", "ppid", "reason"),
    GrantInfo: ("pid", "holder"),
    ExitInfo: ("pid", "reason"),
    BootInfo: ("pid",),
    TraceResult: ("events",),
    TraceEvent: ("pid", "detail"),
    LogLine: ("text",),
    ModelInfo: ("mapped_by", "error"),
    EstimateInfo: ("refused",),
    GroupInfo: ("processes",),
}

_PATH = re.compile(r"(?<![\w/.:])/[^\s'\",;:()]+")


def outward(owner: Owner, call: Call[Any], value: object, shared: Container[int]) -> object:
    """The result of a call as a program of that owner reads it. `shared` are the pids that are the same for all."""
    if value is None:  # a call that failed has none
        return value
    reader = _Reader(owner.space, shared)
    return _pids(reader, value) if type(call) in BORN else _record(reader, value)


def text(owner: Owner, said: str) -> str:
    """The same of a reason."""
    return pids.told(said, owner.space)


def pathless(reason: str, called: Mapping[str, str] = MappingProxyType({})) -> str:
    """A driver's words as others than the operator are told them: without paths of this machine but those that they have
    named. `called`: what paths are called, by the path."""
    for path, name in called.items():
        reason = reason.replace(path, name)
    named = tuple(name for name in called.values() if name)

    def shown(found: re.Match[str]) -> str:
        return found[0] if named and found[0].startswith(named) else "(a path)"

    return _PATH.sub(shown, reason)


def called(path: str, shown: Container[str] | None) -> str:
    """What a file is called in words: one that was shown (`shown`: the paths of such) by the name that its user gave it,
    since the place of the kernel's copy, which goes with the call, tells nobody anything."""
    return path.rpartition("/")[2] if shown is not None and path in shown else path


def of_driver(errno: Errno, reason: str, called: Mapping[str, str] = MappingProxyType({})) -> SyscallError:
    """What a driver has answered, as an error: others than the operator are told it without paths."""
    plain = pathless(reason, called)
    return SyscallError(errno, reason, plain if plain != reason else "")


class _Reader(NamedTuple):
    space: int  # whose numbers he reads
    shared: Container[int]


def _record(reader: _Reader, value: Any) -> Any:
    if isinstance(value, list):
        return [_record(reader, one) for one in value]
    fields = FIELDS.get(type(value))
    if fields is None:
        return value
    return replace(value, **{name: _field(reader, getattr(value, name)) for name in fields})


def _field(reader: _Reader, value: Any) -> Any:
    if isinstance(value, str):
        return pids.told(value, reader.space)
    return (
        _record(reader, value)
        if isinstance(value, list) and value and isinstance(value[0], Record)
        else _pids(reader, value)
    )


def _pids(reader: _Reader, value: Any) -> Any:
    if isinstance(value, list):
        return [_pids(reader, one) for one in value]
    if pids.uid_of(value) == reader.space:
        return pids.number_of(value)
    return value if value in reader.shared else pids.foreign(value)

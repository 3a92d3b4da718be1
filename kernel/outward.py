"""Answers as their caller reads them: pids of other users than the operator are numbers of their own (syscalls/pids.py).

The operator's pids are plain numbers, and others' tell him their uid, in texts as `1001:7`. A new field that has a pid,
or a text that may name one, belongs into the table here.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from llmasos.kernel.objects.owner import Owner
from llmasos.syscalls import pids
from llmasos.syscalls.records import (
    BootInfo,
    EstimateInfo,
    ExitInfo,
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
    ExitInfo: ("pid", "reason"),
    BootInfo: ("pid",),
    TraceResult: ("events",),
    TraceEvent: ("pid", "detail"),
    LogLine: ("text",),
    ModelInfo: ("mapped_by", "error"),
    EstimateInfo: ("refused",),
    GroupInfo: ("processes",),
}


def outward(owner: Owner, call: Call[Any], value: Any) -> Any:
    """The result of a call as a program of that owner reads it."""
    space = owner.space
    if value is None:  # a call that failed has none
        return value
    return _pids(space, value) if type(call) in BORN else _record(space, value)


def text(owner: Owner, said: str) -> str:
    """The same of a reason."""
    return pids.told(said, owner.space)


def _record(space: int, value: Any) -> Any:
    if isinstance(value, list):
        return [_record(space, one) for one in value]
    fields = FIELDS.get(type(value))
    if fields is None:
        return value
    return replace(value, **{name: _field(space, getattr(value, name)) for name in fields})


def _field(space: int, value: Any) -> Any:
    if isinstance(value, str):
        return pids.told(value, space)
    return (
        _record(space, value)
        if isinstance(value, list) and value and isinstance(value[0], Record)
        else _pids(space, value)
    )


def _pids(space: int, value: Any) -> Any:
    if isinstance(value, list):
        return [_pids(space, one) for one in value]
    return pids.number_of(value) if pids.uid_of(value) == space else value

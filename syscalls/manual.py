"""How the declarations of the system calls are written for people: docs/syscalls.md and `man` say the same by these."""

from __future__ import annotations

import enum
import math
import types
import typing
from typing import Annotated, Any

import msgspec

from llmasos.syscalls import records
from llmasos.syscalls.records import Right
from llmasos.syscalls.table import Entry, Needs


def rights(entry: Entry) -> str:
    """The rights that a call needs: `SPAWN`, `MEMORY CONTROL`, `none`."""
    return " ".join(flag.name or "" for flag in Right if flag in entry.right and flag is not Right.ALL) or "none"


def objects(entry: Entry) -> str:
    """The rights on the objects that a call names: `CONTROL READ on pid`; empty: none but to see them."""
    told = []
    for touches in entry.touches:
        if needs := _needs(touches.needs):
            told.append(f"{needs} on {touches.field}")
        for more in touches.more:
            value = "given" if more.value is None else getattr(more.value, "name", more.value)
            told.append(f"{_needs(more.needs)} on {touches.field} where {more.field} is {value}")
    return ", ".join(told)


def _needs(needs: Needs) -> str:
    return " ".join(need.name or "" for need in Needs if need & needs and need not in (Needs.ALL, Needs.SEE))


def signature(field: msgspec.structs.FieldInfo) -> str:
    """`count: int = 1`."""
    value = default(field).strip("`")
    shown = f"{field.name}: {type_name(field.type)}"
    return f"{shown} = {value}" if value else shown


def default(field: msgspec.structs.FieldInfo) -> str:
    """The default of a field, in code quotes; empty if it has none."""
    if field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    elif field.default is not msgspec.NODEFAULT:
        value = field.default
    else:
        return ""
    if isinstance(value, enum.Enum):
        return f"`{type(value).__name__}.{value.name}`"
    return f"`{value!r}`"


def type_name(annotation: Any) -> str:
    """`list[int]`, `Sampler | None`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0])
    if origin in (types.UnionType, typing.Union):
        return " | ".join(type_name(argument) for argument in arguments)
    if origin is not None:
        return f"{origin.__name__}[{', '.join(type_name(argument) for argument in arguments)}]"
    return "None" if annotation in (None, type(None)) else str(annotation.__name__)


def bounds(annotation: Any) -> str:
    """The bounds that msgspec checks, of the value and of its elements."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    found = []
    if origin is Annotated:
        found = [_meta(meta) for meta in arguments[1:] if isinstance(meta, msgspec.Meta)]
        arguments = arguments[:1]
    inner = list(filter(None, (bounds(argument) for argument in arguments)))
    if origin in (list, dict):
        inner = [f"each {text}" for text in inner]
    return "; ".join(filter(None, [*found, *inner]))


def _meta(meta: msgspec.Meta) -> str:
    texts = []
    for value, sign in ((meta.ge, "≥"), (meta.gt, ">"), (meta.le, "≤"), (meta.lt, "<")):
        if value is not None:
            texts.append(f"{sign} {_number(value)}")
    if meta.min_length:
        texts.append(f"at least {meta.min_length} long")
    if meta.max_length is not None:
        texts.append(f"at most {_number(meta.max_length)} long")
    if meta.pattern == records.PRINTABLE:
        texts.append("no control characters")
    return ", ".join(texts)


def _number(value: float) -> str:
    if value >= 1 << 20 and math.log2(value + 1).is_integer():
        return f"2^{int(math.log2(value + 1))} - 1"
    return f"{value:,}"

"""Tables of TOML files as typed records. What is wrong is named by table and key, with what was found and what is
allowed: msgspec alone says "Expected `int` >= 1 - at `$.device[0].max_runs`"."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from llmasos.syscalls.constraint import sentence
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.size import Size, size

T = TypeVar("T", bound=msgspec.Struct)


class Wrong(Exception):
    """A value that is not allowed: where it stands, and why."""

    def __init__(self, where: str, why: str) -> None:
        self.text = f"{where}: {why}" if where else why
        super().__init__(self.text)


def record(found: Any, kind: type[T], table: str = "") -> T:
    """A table of a TOML file as a record; `table` is its name, `[kernel]`. Raises Wrong."""
    if not isinstance(found, dict):
        raise Wrong(table, f"wanted a table, found {found!r}")
    hints = typing.get_type_hints(kind, include_extras=True)
    for key in found:
        if key not in hints:
            raise Wrong(table, unknown(key, hints))
    for one in msgspec.structs.fields(kind):
        if one.required and one.name not in found:
            raise Wrong(table, f"the key {one.name!r} is missing")
    return kind(**{key: _value(value, hints[key], table, key) for key, value in found.items()})


def unknown(key: str, known: Iterable[str]) -> str:
    """`there is no key 'quantun' (is 'quantum' meant?); there are: ...`"""
    known = list(known)
    near = difflib.get_close_matches(key, known, 1)
    return f"there is no key {key!r}{f' (is {near[0]!r} meant?)' if near else ''}; there are: {', '.join(known)}"


def _named(table: str, key: str) -> str:
    """What a table in a table is called: `[users.default]`."""
    return f"{table[:-1]}.{key}]" if table.startswith("[") and not table.startswith("[[") else f"[{key}]"


def _value(found: Any, kind: Any, table: str, key: str) -> Any:
    """A value of a key; tables in it are taken apart."""
    inner = typing.get_args(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return record(found, kind, _named(table, key))
    if typing.get_origin(kind) is list and isinstance(inner[0], type) and issubclass(inner[0], msgspec.Struct):
        if not isinstance(found, list):
            raise Wrong(
                table, f"wanted tables [[{key}]], found {f'one [{key}]' if isinstance(found, dict) else repr(found)}"
            )
        return [record(one, inner[0], f"[[{key}]] {number}") for number, one in enumerate(found, 1)]
    if typing.get_origin(kind) is list and isinstance(found, list):
        return [_value(one, inner[0], table, key) for one in found]
    where = f"{table} {key}".strip()
    if typing.get_origin(kind) is dict and isinstance(found, dict):
        if isinstance(inner[1], type) and issubclass(inner[1], msgspec.Struct):
            return {name: record(one, inner[1], _named(table, f'{key}."{name}"')) for name, one in found.items()}
        return {
            name: _value(one, inner[1], f"{table} {key}" if table else f"[{key}]", name) for name, one in found.items()
        }
    try:
        value = msgspec.convert(found, kind)
        if kind == Size:
            size(value, "")
        return value
    except msgspec.ValidationError as error:
        raise Wrong(where, sentence(str(error).partition(" - at ")[0], _set(kind), found)) from None
    except SyscallError as error:
        raise Wrong(where, error.reason.removeprefix(": ")) from None


def _set(kind: Any) -> Any:
    """A type without the mark of what is not set."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return next(one for one in typing.get_args(kind) if one is not msgspec.UnsetType)
    return kind

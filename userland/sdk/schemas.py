"""JSON schemas of tools' parameters: the direct content of one, with references into its own document resolved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

from llmasos.syscalls.errno import Errno, SyscallError

Schema = Mapping[str, Any]
MOST_STEPS = 32  # from one reference to another
MOST_DEPTH = 64
MOST_VALUES = 20_000
MOST_COUNT = 1 << 20  # items, characters
MOST_PATTERN = 10_000
_SCHEMAS, _LISTS = {"items", "additionalProperties"}, {"anyOf", "oneOf", "allOf"}
_MAPS = {"properties", "$defs", "definitions"}


def resolved(schema: Schema, root: Schema) -> Schema:
    """A schema in place of its reference (`$ref` into the same document, alone or in one `allOf`). Raises EINVAL for a
    reference that leads nowhere."""
    for _ in range(MOST_STEPS):
        inner = schema.get("allOf")
        if isinstance(inner, list) and len(inner) == 1 and isinstance(inner[0], Mapping):
            schema = {**{k: v for k, v in schema.items() if k != "allOf"}, **inner[0]}
            continue
        path = schema.get("$ref")
        if not isinstance(path, str):
            return schema
        schema = {**_at(path, root), **{k: v for k, v in schema.items() if k != "$ref"}}
    raise SyscallError(Errno.EINVAL, f"a schema refers to itself: {schema.get('$ref')}")


def _at(path: str, root: Schema) -> Schema:
    found: Any = root
    for part in path.removeprefix("#").split("/")[1:]:
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    if not path.startswith("#") or not isinstance(found, Mapping):
        raise SyscallError(Errno.EINVAL, f"a schema refers to {path!r}, which is not in it")
    return found


def properties_of(parameters: Any) -> dict[str, Schema]:
    """The schemas of arguments by name, direct references resolved; empty if that is no schema."""
    if not isinstance(parameters, Mapping):
        return {}
    try:
        root = resolved(parameters, parameters)
        given = root.get("properties")
        return {
            name: _open(one, parameters)
            for name, one in (given.items() if isinstance(given, Mapping) else ())
            if isinstance(one, Mapping)
        }
    except SyscallError:
        return {}


def _open(schema: Schema, root: Schema) -> Schema:
    """A schema with the references of it and of its alternatives resolved."""
    schema = resolved(schema, root)
    found = dict(schema)
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            found[key] = [resolved(one, root) for one in schema[key] if isinstance(one, Mapping)]
    return found


def with_definitions(schema: Schema, root: Schema) -> Schema:
    """A part of a schema, with the definitions to which it may refer."""
    return {**schema, **{key: root[key] for key in ("$defs", "definitions") if key in root}}


def parameters_of(tool: Mapping[str, Any]) -> tuple[str, Schema]:
    """Name and parameters of a tool as templates take it; one without parameters takes none. A name that the schema does
    not have is no argument, unless it has `additionalProperties`. Raises EINVAL for what is no definition of a tool."""
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(name, str) or not name:
        raise SyscallError(Errno.EINVAL, f"a tool has no name: {tool!r:.80}")
    given = inner.get("parameters") or {}
    check(given, f"the parameters of tool {name!r:.80}")
    return name, {"type": "object", "properties": {}, "additionalProperties": False, **given}


def by_name(tools: Sequence[Mapping[str, Any]]) -> dict[str, Schema]:
    return dict(parameters_of(tool) for tool in tools)


def check(schema: Any, where: str) -> None:
    """Raise EINVAL for what is no JSON schema, in the parts that grammars look at, and for one of absurd size."""
    count = 0

    def bad(why: str) -> SyscallError:
        return SyscallError(Errno.EINVAL, f"{where} are no schema: {why}")

    def value(found: Any, depth: int) -> None:
        nonlocal count
        count += 1
        if depth > MOST_DEPTH or count > MOST_VALUES:
            raise bad(f"more than {MOST_VALUES} values, or nested more than {MOST_DEPTH} deep")
        if isinstance(found, Mapping):
            for key, inner in found.items():
                if not isinstance(key, str):
                    raise bad(f"{key!r:.40} is no name")
                text(key)
                value(inner, depth + 1)
        elif isinstance(found, list | tuple):
            for inner in found:
                value(inner, depth + 1)
        elif isinstance(found, str):
            text(found)
        elif not (found is None or isinstance(found, bool | int) or (isinstance(found, float) and isfinite(found))):
            raise bad(f"{found!r:.40} is no value of JSON")

    def text(found: str) -> None:
        if not found.isascii() and any("\ud800" <= character <= "\udfff" for character in found):
            raise bad(f"{found!r:.40} has half a pair of surrogates")

    def one(found: Any, name: str) -> None:
        if isinstance(found, bool) and name:
            return
        if not isinstance(found, Mapping):
            raise bad(f"{name or 'the whole'} is {found!r:.40}")
        for key, inner in found.items():
            if key in _SCHEMAS:
                one(inner, key)
            elif key in _LISTS:
                if not isinstance(inner, list | tuple) or not inner:
                    raise bad(f"{key} is {inner!r:.40}")
                for each in inner:
                    one(each, key)
            elif key in _MAPS:
                if not isinstance(inner, Mapping):
                    raise bad(f"{key} is {inner!r:.40}")
                for part, each in inner.items():
                    one(each, part)
            elif key in _KINDS and not _KINDS[key](inner):
                raise bad(f"{key} is {inner!r:.40}")
            elif key == "$ref":
                _at(inner, schema)

    value(schema, 0)
    one(schema, "")


def _is_count(found: Any) -> bool:
    return isinstance(found, int) and not isinstance(found, bool) and 0 <= found <= MOST_COUNT


def _are_texts(found: Any) -> bool:
    return isinstance(found, list | tuple) and all(isinstance(one, str) for one in found)


_TYPES = {"string", "number", "integer", "boolean", "array", "object", "null"}
_KINDS: dict[str, Callable[[Any], bool]] = {
    "type": lambda found: {found} <= _TYPES if isinstance(found, str) else _are_texts(found) and {*found} <= _TYPES,
    "required": _are_texts,
    "enum": lambda found: isinstance(found, list | tuple) and len(found) > 0,
    "pattern": lambda found: isinstance(found, str) and len(found) <= MOST_PATTERN,
    "$ref": lambda found: isinstance(found, str),
    **dict.fromkeys(("minItems", "maxItems", "minLength", "maxLength"), _is_count),
}

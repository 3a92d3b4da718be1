"""JSON schemas of tools' parameters: what one says at first hand, with what it refers to in its own document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from syscalls.errno import Errno, SyscallError

Schema = Mapping[str, Any]
MOST_STEPS = 32  # from one reference to another


def resolved(schema: Schema, root: Schema) -> Schema:
    """A schema in the place of its reference (`$ref` of the same document, alone or in one `allOf`). Raises EINVAL for a
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
    """The schemas of arguments by name, references followed at first hand; of what is no schema, none."""
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
    """A schema with those in place to which it, or one of its alternatives, refers."""
    schema = resolved(schema, root)
    found = dict(schema)
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            found[key] = [resolved(one, root) for one in schema[key] if isinstance(one, Mapping)]
    return found


def with_definitions(schema: Schema, root: Schema) -> Schema:
    """A part of a schema with the definitions that it may refer to."""
    return {**schema, **{key: root[key] for key in ("$defs", "definitions") if key in root}}


def parameters_of(tool: Mapping[str, Any]) -> tuple[str, Schema]:
    """Name and parameters of a tool as templates take it; one without parameters takes none. What a schema does not name
    is no argument, unless it says `additionalProperties`. Raises EINVAL for what is no definition of a tool."""
    inner = tool.get("function", tool)
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(name, str) or not name:
        raise SyscallError(Errno.EINVAL, f"a tool has no name: {tool!r:.80}")
    given = inner.get("parameters") or {}
    if not isinstance(given, Mapping):
        raise SyscallError(Errno.EINVAL, f"the parameters of tool {name!r} are no schema: {given!r:.80}")
    return name, {"type": "object", "properties": {}, "additionalProperties": False, **given}


def by_name(tools: Sequence[Mapping[str, Any]]) -> dict[str, Schema]:
    return dict(parameters_of(tool) for tool in tools)

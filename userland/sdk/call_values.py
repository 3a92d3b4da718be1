"""Values of arguments as a grammar writes them where they are not JSON: text whose schema says what it is, and literals
of Python and Gemma.

What a schema says beyond types, members, items and alternatives goes to `%json`, whose strings and objects the readers of
literals take too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.sdk.call_shapes import Arguments
from llmasos.userland.sdk.call_tags import kind_of, kinds_of, typed
from llmasos.userland.sdk.lark import SPACE, Lark, containing, escaped, pattern_of, quoted, schema_text
from llmasos.userland.sdk.schemas import MOST_STEPS, resolved, with_definitions

Schema = Mapping[str, Any]

_DIGITS = "(0|[1-9][0-9]{0,30})"
_INTEGER = f"-?{_DIGITS}"
_NUMBER = (
    rf"-?({_DIGITS}(\.[0-9]{{1,30}})?([eE]([+]?[0-9]{{1,2}}|-[0-9]{{1,3}}))?"
    r"|[1-9](\.[0-9]{1,30})?[eE][+]?([0-9]{1,2}|[12][0-9]{2}|30[0-7]))"
)
_ESCAPE = (
    r"\\([^xuU0-9]|x[0-9a-fA-F]{2}|u([0-9abcefABCEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2})"
    r"|U000[1-9a-fA-F][0-9a-fA-F]{4}|U0010[0-9a-fA-F]{4})"
)
_PYTHON_STRING = rf"'([^'\\]|{_ESCAPE})*'|\"([^\"\\]|{_ESCAPE})*\""
JSON_KINDS = ("array", "boolean", "null", "number", "object", "string")
_JSON_STRING = r'"([^"\\\x00-\x1F]|\\(["\\\/bfnrt]|u([0-9abcefABCEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2})))*"'
_WORD = "[A-Za-z_][A-Za-z0-9_]{0,40}"
_SAYS_NOTHING = {
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "$comment",
    "$defs",
    "definitions",
}
_OF_KIND = {
    "string": {"enum", "const"},
    "integer": set[str](),
    "number": set[str](),
    "boolean": set[str](),
    "null": set[str](),
    "array": {"items", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
}


class Texts:
    """Values without quotes, up to a mark."""

    def __init__(self, lark: Lark, style: Arguments, root: Schema) -> None:
        self._lark = lark
        self._style = style
        self._root = root

    def until(self, schema: Any, mark: str, never: Sequence[str], where: str) -> str:
        """A value and the mark behind it, such that `typed` reads it as a value that the schema allows."""
        schema = resolved(schema if isinstance(schema, Mapping) else {}, self._root)
        if fixed := fixed_of(schema):
            return self._fixed(fixed, schema, mark, where)
        kinds = kinds_of(schema)
        branches = _branches(schema, self._root)
        strings = [b for b in branches if "string" in kinds_of(b)]
        others = [b for b in branches if kinds_of(b) - {"string"}]
        if not kinds:
            if set(schema) - _SAYS_NOTHING:
                raise SyscallError(Errno.ENOTSUP, f"{where} has a schema without a type; say its type")
            return self._lark.text_until(mark, never)
        if not strings:
            return self._json(schema, mark, [*never, escaped(mark)])
        return self._mixed(strings, others, mark, never, where)

    def told_kinds(self, schema: Schema, opened: str, mark: str, never: Sequence[str], where: str, *, xtml: bool) -> str:
        """An argument whose tag says whether its value is text: the tag, the value, the mark behind it."""
        kinds = kinds_of(schema) or ({kind_of(v) for v in fixed_of(schema)} or set(JSON_KINDS))
        found: list[str] = []
        if "string" in kinds:
            tag = self._lark.literal(opened.replace("«kind»", "string" if xtml else "true"))
            for branch in [b for b in _branches(schema, self._root) if "string" in (kinds_of(b) or kinds)]:
                text = self._lark.text_until(mark, never, _text_pattern(branch, where))
                found.append(f"{tag} {text}")
        if others := kinds - {"string"}:
            names = sorted({"number" if kind == "integer" else kind for kind in others}) if xtml else ["false"]
            told = " | ".join(self._lark.literal(opened.replace("«kind»", name)) for name in names)
            found.append(f"({told}) {self._json(without_strings(schema, others), mark, [*never, escaped(mark)])}")
        return f"({' | '.join(found)})"

    def _mixed(
        self, strings: Sequence[Schema], others: Sequence[Schema], mark: str, never: Sequence[str], where: str
    ) -> str:
        """Text that may be a string, or another value as which the text would be read."""
        bound = {kind for b in others for kind in kinds_of(b) - {"string"} if _says_more(b, kind)}
        wanted = [_text_pattern(b, where) for b in strings]
        starts = [
            *(["[-0-9]"] if bound & {"integer", "number"} else []),
            *([r"[\[{]"] if bound & {"array", "object"} else []),
        ]
        unlike = [rf"\s*{start}" for start in starts]
        scalars = [_SCALARS[kind] for b in others for kind in kinds_of(b) - bound if kind in _SCALARS]
        text = "" if "" in wanted else "|".join([*wanted, *scalars])
        found = [self._lark.text_until(mark, never, text, lines=self._style.lines, unlike=unlike)]
        exact = [b for b in others if kinds_of(b) & bound]
        found += [self._json(without_strings(b, kinds_of(b) - {"string"}), mark, [*never, escaped(mark)]) for b in exact]
        return found[0] if len(found) == 1 else f"({' | '.join(found)})"

    def _json(self, schema: Schema, mark: str, never: Sequence[str]) -> str:
        """A value as JSON whose strings must not contain what closes the argument, the call or the calls."""
        if kinds_of(schema) <= set(_SCALARS):
            value = schema_text(with_definitions(schema, self._root))
        else:
            style = Arguments("json", never=tuple(never))
            value = Literals(self._lark, style, self._root, "an argument").value(schema)
        return f"{SPACE} {value} {SPACE} {self._lark.literal(mark)}"

    def _fixed(self, values: Sequence[Any], schema: Schema, mark: str, where: str) -> str:
        lines = self._style.lines
        said: list[str] = []
        told = {"type": sorted(kinds_of(schema))}  # once, not for each value
        for value in values:
            texts = [value] if isinstance(value, str) else []
            for text in [*texts, json.dumps(value, ensure_ascii=False)]:
                read = typed(text, told)
                if type(read) is type(value) and read == value and mark not in text:
                    said.append(f'("\\n" {quoted(text)} "\\n")' if lines else quoted(text) if text else '""')
                    if lines and text and text.strip("\n") == text:
                        said.append(quoted(text))
                    break
        if not said:
            raise SyscallError(Errno.ENOTSUP, f"none of the values of {where} can be written in this model's calls")
        return f"({' | '.join(said)}) {self._lark.literal(mark)}"


_SCALARS = {"null": "null|None", "boolean": "true|false|True|False", "integer": _INTEGER, "number": _NUMBER}


class Literals:
    """Values as literals: Python's, JSON's without what a style never has, or Gemma's with its own marks of strings."""

    def __init__(self, lark: Lark, style: Arguments, root: Schema, where: str) -> None:
        self._lark = lark
        self._gemma = style.notation == "gemma"
        self._python = style.notation == "python"
        self._never = style.never
        self._quote = style.quote
        self._root = root
        self._where = where
        self._known: dict[str, str] = {}
        self._any = ""

    def value(self, schema: Any) -> str:
        """A value that a schema allows."""
        if schema is True or schema == {}:
            return self.anything()
        if not isinstance(schema, Mapping):
            raise SyscallError(Errno.EINVAL, f"{self._where} has a schema that is no object: {schema!r:.60}")
        key = json.dumps(schema, sort_keys=True, default=str)
        if key not in self._known:
            self._known[key] = name = self._lark.reserve()
            self._lark.define(name, self._body(resolved(schema, self._root)))
        return self._known[key]

    def _body(self, schema: Schema) -> str:
        if fixed := fixed_of(schema):
            if all(value is None or isinstance(value, str | int | float) for value in fixed):
                return " | ".join(self._scalar(value) for value in fixed)
            return self._json(schema)
        told = set(schema) - _SAYS_NOTHING
        if told == {"anyOf"} or (told == {"oneOf"} and _disjoint(schema["oneOf"], self._root)):
            return " | ".join(self.value(one) for one in schema.get("anyOf") or schema["oneOf"])
        kinds = kinds_of(schema)
        if not kinds:
            return self._json(schema) if told else self.anything()
        if told - {"type", "nullable"} - set[str]().union(*(_OF_KIND.get(kind, set()) for kind in kinds)):
            return self._json(schema)
        return " | ".join(self._kind(kind, schema) for kind in sorted(kinds))

    def _json(self, schema: Schema) -> str:
        return schema_text(with_definitions(schema, self._root))

    def _kind(self, kind: str, schema: Schema) -> str:
        match kind:
            case "array":
                items = self.value(schema.get("items", {}))
                low, high = schema.get("minItems", 0), schema.get("maxItems")
                return self._list(items, low, high)
            case "object":
                return self._object(schema)
            case _:
                return self._plain(kind)

    def _plain(self, kind: str) -> str:
        add = self._lark.add
        if kind == "string":
            if self._gemma:
                return f"{self._lark.literal(self._quote)} {self._lark.text_until(self._quote)}"
            if self._python:
                return add(f"/(?s:{_PYTHON_STRING})/", terminal=True)
            without = f" & ~{containing(self._never)}" if self._never else ""
            return add(f"/{_JSON_STRING}/{without}", terminal=True)
        if kind in ("integer", "number"):
            return add(f"/{_INTEGER if kind == 'integer' else _NUMBER}/", terminal=True)
        if kind == "boolean":
            return '"True" | "False" | "true" | "false"' if self._python else '"true" | "false"'
        return '"None" | "null"' if self._python else '"null"'

    def _scalar(self, value: Any) -> str:
        if isinstance(value, str):
            if self._gemma:
                return self._lark.literal(f"{self._quote}{value}{self._quote}")
            return f"{quoted(repr(value))} | {quoted(json.dumps(value, ensure_ascii=False))}"
        said = json.dumps(value)
        return quoted(said) if self._gemma or repr(value) == said else f"{quoted(repr(value))} | {quoted(said)}"

    def _list(self, items: str, low: int, high: int | None) -> str:
        if high == 0:
            return f'"[" {SPACE} "]"'
        more = f"{{{max(0, low - 1)},{'' if high is None else high - 1}}}"
        inner = f'{items} ({SPACE} "," {SPACE} {items}){more}'
        inner = f"{inner} {SPACE}" if low else f"({inner} {SPACE})?"
        return f'"[" {SPACE} {inner} "]"'

    def _object(self, schema: Schema) -> str:
        members = {name: self.value(one) for name, one in (schema.get("properties") or {}).items()}
        open_ended = schema.get("additionalProperties", True)
        if not members and open_ended is not False:
            one = f'{self._key_of_any()} {SPACE} ":" {SPACE} {self.value(open_ended)}'
            return f'"{{" {SPACE} ({one} ({SPACE} "," {SPACE} {one})* {SPACE})? "}}"'
        said = {name: f'{self._member(name)} {SPACE} ":" {SPACE} {value}' for name, value in members.items()}
        return f'"{{" {SPACE} {in_order(self._lark, said, schema.get("required") or ())} {SPACE} "}}"'

    def _member(self, name: str) -> str:
        if self._gemma:
            return quoted(name)
        said = quoted(json.dumps(name, ensure_ascii=False))
        return f"({quoted(repr(name))} | {said})" if self._python else said

    def _key_of_any(self) -> str:
        return self._lark.add(f"/{_WORD}/", terminal=True) if self._gemma else self._plain("string")

    def anything(self) -> str:
        """Any value."""
        if not self._any:
            self._any = name = self._lark.reserve()
            member = f'{self._key_of_any()} {SPACE} ":" {SPACE} {name}'
            map_of_any = f'"{{" {SPACE} ({member} ({SPACE} "," {SPACE} {member})* {SPACE})? "}}"'
            kinds = [self._plain(kind) for kind in ("string", "number", "boolean", "null")]
            self._lark.define(name, " | ".join([*kinds, self._list(name, 0, None), map_of_any]))
        return self._any


def in_order(lark: Lark, said: Mapping[str, str], required: Sequence[str], between: str = ",") -> str:
    """Members in the order of their schema, optional ones present or not, with `between` between them."""
    names = list(said)
    comma = f'{SPACE} "{between}" {SPACE} ' if between else f"{SPACE} "
    tail = ""
    firsts: list[str] = []
    must = False
    for name in reversed(names):
        firsts = [f"{said[name]} {tail}", *firsts]
        if name in required:
            firsts, must = firsts[:1], True
            tail = lark.add(f"{comma}{said[name]} {tail}")
        else:
            tail = lark.add(f"({comma}{said[name]})? {tail}")
    if not firsts:
        return ""
    return f"({' | '.join(firsts)})" + ("" if must else "?")


def fixed_of(schema: Schema) -> list[Any]:
    """The values that a schema lists."""
    if "const" in schema:
        return [schema["const"]]
    return list(schema["enum"]) if isinstance(schema.get("enum"), list) else []


def without_strings(schema: Schema, kinds: set[str]) -> Schema:
    """A schema of another's values without its strings."""
    fixed = fixed_of(schema)
    if fixed:
        return {"enum": [value for value in fixed if not isinstance(value, str)]}
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            left = [one for one in schema[key] if isinstance(one, Mapping) and kinds_of(one) != {"string"}]
            return {**schema, key: left}
    if "string" not in kinds_of(schema) and kinds_of(schema):
        return schema
    return {**schema, "type": sorted(kinds)}


def _branches(schema: Schema, root: Schema, depth: int = 0) -> list[Schema]:
    if depth > MOST_STEPS:
        raise SyscallError(Errno.EINVAL, "a schema refers to itself in its own alternatives")
    found: list[Schema] = []
    for one in (*(schema.get("anyOf") or ()), *(schema.get("oneOf") or ())):
        if isinstance(one, Mapping):
            found += _branches(resolved(one, root), root, depth + 1)
    return found or [schema]


def _says_more(schema: Schema, kind: str) -> bool:
    """Whether a schema says more of this kind of value than its type."""
    told = set(schema) - _SAYS_NOTHING - {"type", "nullable"}
    of_text = {"minLength", "maxLength", "pattern", "format"}
    return bool(told - of_text)


def _text_pattern(schema: Schema, where: str) -> str:
    fixed = [value for value in fixed_of(schema) if isinstance(value, str)]
    return "|".join(map(escaped, fixed)) if fixed else pattern_of(schema, where)


def _disjoint(schemas: Sequence[Any], root: Schema) -> bool:
    kinds = [kinds_of(resolved(s, root)) for s in schemas if isinstance(s, Mapping)]
    count = sum(len(kind) for kind in kinds)
    return all(kinds) and len(set[str]().union(*kinds)) == count and not set().union(*kinds) >= {"integer", "number"}

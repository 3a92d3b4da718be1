"""A grammar of exactly the calls that a model's form has for given tools, to constrain a decoder to them.

Engines with constrained decoding read such a grammar: vLLM, SGLang and llama.cpp by llguidance, whose dialect of Lark
this is. It is not GBNF, because only this dialect embeds a JSON schema (`%json`), tells special tokens from text that
spells them, and takes text "up to a mark" as one lexeme. The grammar allows no more than the parser reads
(`tool_calls.CallReader`): every text of it is calls of the tools with arguments that their schemas allow, within the
parser's bounds of size, depth and numbers. It is narrower where a parser is lenient: arguments come in the order of the
schema, none that the schema does not name, calls in the shape that the model's template writes (else in those of its
family).

No engine of this system enforces a grammar yet; it is for one that does, and for servers in front of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.sdk.call_formats import CallFormat
from llmasos.userland.sdk.call_shapes import GAP, Arguments, Shape
from llmasos.userland.sdk.call_values import Literals, Texts, in_order
from llmasos.userland.sdk.lark import SPACE, Lark, escaped, schema_text
from llmasos.userland.sdk.schemas import Schema, by_name, resolved

AUTO, REQUIRED = "auto", "required"

_NAMES = {"json": r"[^\s\"\\<>\[\](){}:=]+", "python": r"[A-Za-z_][\w.\-]*", "gemma": r"[A-Za-z_][\w.\-]*"}
_KEYS = {"python": r"[A-Za-z_][\w.\-]*", "gemma": r"[^\s:,{}\[\]'\"]+", "json": r"(?s:.*)"}
_PLAIN = r"[^\s\"\\<>\[\](){}:=/]+"
_SAID = {"type", "properties", "required", "additionalProperties", "title", "description", "$defs", "definitions",
         "$schema", "strict"}  # fmt: skip


def call_grammar(
    forms: Sequence[CallFormat],
    tools: Sequence[Mapping[str, Any]],
    *,
    choice: str = REQUIRED,
    parallel: bool = True,
    special: Mapping[str, int] | None = None,
    opened: bool = False,
) -> str:
    """The grammar of an answer, behind its thoughts, for a model that calls in `forms[0]`.

    `choice`: "required" is one call or, with `parallel`, several; "auto" is any text without calls, calls, or both; the
    name of a tool is one call of it. `special`: special tokens and their ids, as the engine's vocabulary has them;
    `opened`: the prompt has opened calls already. Raises EINVAL for tools that are no definitions or that the form cannot
    name, ENOTSUP for a form without shapes, and for schemas that the form cannot express.
    """
    known = by_name(tools)
    if not known:
        raise SyscallError(Errno.EINVAL, "there are no tools to call; spawn with tools=[...]")
    if not forms or not forms[0].shapes:
        raise SyscallError(Errno.ENOTSUP, "how this model writes calls is not known: its template shows none")
    if choice not in (AUTO, REQUIRED):
        if choice not in known:
            raise SyscallError(Errno.EINVAL, f"choice {choice!r} is none of auto, required, {', '.join(sorted(known))}")
        known, parallel = {choice: known[choice]}, False
    lark, form = Lark(special or {}), forms[0]

    def calls(skip: str) -> str:
        shapes = [_Calls(lark, shape, known).sections(skip, parallel=parallel) for shape in form.shapes]
        return f"({' | '.join(dict.fromkeys(shapes))})"

    if choice != AUTO:
        return lark.text(calls(form.open) if opened else f"{SPACE} {calls('')}")
    marks = [escaped(one.open) for one in forms if not one.bare]
    bare = [rf"\s*{escaped(one.open[:1])}" for one in forms if one.bare]
    text = lark.text_until("", marks, unlike=bare)
    if form.said:  # text has a header of its own, as calls have
        header = form.said.removeprefix(form.open) if opened else form.said
        return lark.text(f"{lark.literal(header)} {text} | {calls(form.open if opened else '')}")
    if form.bare:
        return lark.text(f"{text} | {SPACE} {calls('')}")
    return lark.text(f"{text} | {lark.text_until(form.open, marks, unlike=bare)} {calls(form.open)}")


class _Calls:
    """The rules of calls in one shape."""

    def __init__(self, lark: Lark, shape: Shape, tools: Mapping[str, Schema]) -> None:
        self._lark = lark
        self._shape = shape
        self._tools = tools
        end = GAP.split(shape.close)[-1]
        self._ends = [escaped(end)] if end else []

    def sections(self, skip: str, *, parallel: bool) -> str:
        """All calls of an answer; `skip` is the part of the first one that stands there already."""
        first = section = self._section(self._shape, parallel=parallel)
        if skip:
            first = self._section(self._begun(skip), parallel=parallel)
        if parallel and self._shape.between is None and not self._shape.single:
            return f"{first} ({SPACE} {section})*"
        return first

    def _begun(self, skip: str) -> Shape:
        shape, opened = self._shape, self._shape.open.removeprefix("␣")
        if opened.startswith(skip):
            return replace(shape, open=opened.removeprefix(skip))
        if not opened and shape.between is None and shape.call.startswith(skip):
            return replace(shape, open="", call=shape.call.removeprefix(skip))
        raise SyscallError(Errno.ENOTSUP, f"this model's calls do not begin with {skip!r}, as its answers do")

    def _section(self, shape: Shape, *, parallel: bool) -> str:
        one = self._lark.add(" | ".join(self._call(shape, *tool) for tool in self._tools.items()))
        calls = one
        if parallel and shape.between is not None:
            calls = f"{one} ({self._fixed(shape.between)} {one})*"
        return self._lark.add(f"{self._fixed(shape.open)} {calls} {self._fixed(shape.close)}")

    def _fixed(self, text: str, name: str = "", arguments: str = "") -> str:
        """A shape's text with its gaps filled."""
        gaps = {"␣": SPACE, "«number»": "number", "«id»": "id", "«args»": arguments}
        parts = [part.replace("«name»", name) for part in GAP.split(text.replace("«name»", name)) if part]
        return " ".join(gaps[part] if part in gaps else self._lark.literal(part) for part in parts) or '""'

    def _call(self, shape: Shape, name: str, schema: Schema) -> str:
        style = shape.arguments
        if not re.fullmatch(_NAMES.get(style.notation, _PLAIN), name):
            raise SyscallError(Errno.EINVAL, f"tool {name!r} has a name that this model's calls cannot be written with")
        schema = resolved(schema, schema)
        arguments = schema_text(schema) if style.notation == "json" else self._members(name, schema, style)
        return self._lark.add(self._fixed(shape.call, name, arguments or '""'), comment=name)

    def _members(self, tool: str, schema: Schema, style: Arguments) -> str:
        if unknown := set(schema) - _SAID:
            raise SyscallError(
                Errno.ENOTSUP,
                f"the parameters of tool {tool!r} say {', '.join(sorted(unknown))}, which calls that are no JSON "
                "cannot be held to",
            )
        properties, required = schema.get("properties") or {}, schema.get("required") or ()
        if missing := [key for key in required if key not in properties]:
            raise SyscallError(Errno.EINVAL, f"tool {tool!r} requires {missing[0]!r}, of which its schema says nothing")
        pattern = _KEYS.get(style.notation, _PLAIN)
        for key in properties:
            if not re.fullmatch(pattern, key):
                raise SyscallError(
                    Errno.EINVAL,
                    f"argument {key!r} of tool {tool!r} has a name that this model's calls cannot have",
                )
        if style.notation in ("python", "gemma"):
            literals = Literals(self._lark, style, schema, f"an argument of tool {tool!r}")
            equals = "=" if style.notation == "python" else ":"
            said = {key: f'"{key}{equals}" {SPACE} {literals.value(one)}' for key, one in properties.items()}
            return in_order(self._lark, said, required)
        said = {key: self._tagged(tool, key, one, schema, style) for key, one in properties.items()}
        return in_order(self._lark, said, required, "")

    def _tagged(self, tool: str, key: str, schema: Any, root: Schema, style: Arguments) -> str:
        """One argument in its tags."""
        opened, close = style.open.replace("«key»", key), style.close.replace("«key»", key)
        never = [part.replace("«key»", escaped(key)) for part in (*style.never, *self._ends)]
        texts, where = Texts(self._lark, style, root), f"argument {key!r} of tool {tool!r}"
        if style.notation == "text":
            return f"{self._fixed(opened)} {texts.until(schema, close, never, where)}"
        schema = resolved(schema if isinstance(schema, Mapping) else {}, root)
        return texts.told_kinds(schema, opened, close, never, where, xtml=style.notation == "xtml")

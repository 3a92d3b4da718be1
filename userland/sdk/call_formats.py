"""The forms in which families of models write the calls of tools, and what reads each: text in, records out.

Every family has a form of its own: JSON in a tag, a tag for each argument, Python's calls, a header with the name. What
serving engines have as one parser a family is here a table: what opens calls, what closes them, and what reads between.
Nothing is ever evaluated; Python's literals and Gemma's are read by a small reader of their own. Reasons for what is
malformed are sentences; the text itself goes to the caller beside them.
"""

# ruff: noqa: RUF001 - DeepSeek's marks are written with full-width bars

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_CHARACTERS = 1 << 20  # of the calls of one answer
MOST_DEPTH = 64  # of lists and objects within each other
MOST_CALLS = 256  # of one answer

Schemas = Mapping[str, Mapping[str, Any]]  # name of a tool -> JSON schemas of its parameters by name
NO_SCHEMAS: Schemas = {}


class Malformed(ValueError):
    """What a model wrote as a call is none; says why."""


@dataclass(slots=True, frozen=True)
class ToolCall:
    """One call of a tool. `id` is what the model named it, empty where its family has no such thing."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    id: str = ""


Reader = Callable[[str, Schemas], list[ToolCall]]


@dataclass(slots=True, frozen=True)
class CallFormat:
    """A form: calls stand between `open` and `close` (empty: the end of the answer). With `bare`, `open` is ordinary
    text that means calls at the very beginning of an answer only, and only if what follows can be read as calls."""

    name: str
    open: str
    close: str
    read: Reader
    bare: bool = False


# --- JSON -----------------------------------------------------------------------------------------------------------


def _loaded(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise Malformed(f"no JSON: {error}") from None
    except RecursionError:
        raise Malformed(f"JSON nested more than {MOST_DEPTH} deep") from None
    _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise Malformed(f"nested more than {MOST_DEPTH} deep")


def _arguments(value: Any) -> dict[str, Any]:
    """Arguments as an object; some models write them as a string that holds one."""
    if isinstance(value, str):
        value = _loaded(value) if value.strip() else {}
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Malformed(f"the arguments are no object but {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _call(value: Any) -> ToolCall:
    """A call out of the objects that families use: name and arguments, by one of their names."""
    if not isinstance(value, dict):
        raise Malformed(f"a call is no object but {_shown(value)}")
    inner = value.get("function")
    if isinstance(inner, dict):
        value = {**inner, "id": value.get("id", "")}
    name = next((value[key] for key in ("name", "tool_name", "function") if key in value), None)
    if not isinstance(name, str) or not name:
        if len(value) == 1:  # {"name of the tool": {arguments}}
            ((name, arguments),) = value.items()
            if isinstance(arguments, dict):
                return ToolCall(name, arguments)
        raise Malformed(f"a call has no name: {_shown(value)}")
    given = next((value[key] for key in ("arguments", "parameters", "args") if key in value), None)
    named = next((value[key] for key in ("id", "tool_call_id", "call_id") if key in value), "")
    return ToolCall(name, _arguments(given), str(named if named is not None else ""))


def read_json(text: str, schemas: Schemas = NO_SCHEMAS) -> list[ToolCall]:
    """One object, a list of them, or several one after the other (a line each, or with `;` or `,` between)."""
    decoder, at = json.JSONDecoder(), 0
    found: list[ToolCall] = []
    while at < len(text):
        if text[at].isspace() or (found and text[at] in ";,"):
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError as error:
            raise Malformed(f"no JSON: {error}") from None
        except RecursionError:
            raise Malformed(f"JSON nested more than {MOST_DEPTH} deep") from None
        _check_depth(value)
        found.extend(_call(item) for item in (value if isinstance(value, list) else [value]))
    if not found:
        raise Malformed("no call between the marks of calls")
    return found


# --- Python's and Gemma's literals ----------------------------------------------------------------------------------

_SPACE = re.compile(r"\s*")
_NAME = re.compile(r"[A-Za-z_][\w.\-]*")
_KEY = re.compile(r"[^\s:,{}\[\]'\"]+")
_NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_WORDS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\n": "", "a": "\a", "v": "\v"}


class Literals:
    """Reads literals from a text: lists, objects, strings, numbers, words. `quotes` are marks of strings beside ' and
    ", in which nothing is escaped."""

    def __init__(self, text: str, quotes: Sequence[str] = ()) -> None:
        self._text = text
        self._at = 0
        self._quotes = quotes

    def done(self) -> bool:
        self._skip()
        return self._at >= len(self._text)

    def take(self, mark: str) -> bool:
        """Step over a mark if it stands here."""
        self._skip()
        if not self._text.startswith(mark, self._at):
            return False
        self._at += len(mark)
        return True

    def need(self, mark: str) -> None:
        if not self.take(mark):
            found = self._text[self._at : self._at + 20]
            raise Malformed(f"wanted {mark!r} at character {self._at}, found {found!r}")

    def name(self) -> str:
        self._skip()
        found = _NAME.match(self._text, self._at)
        if not found:
            raise Malformed(f"wanted a name at character {self._at}")
        self._at = found.end()
        return found[0]

    def value(self, depth: int = 0) -> Any:
        if depth > MOST_DEPTH:
            raise Malformed(f"nested more than {MOST_DEPTH} deep")
        self._skip()
        for quote in (*self._quotes, "'", '"'):
            if self._text.startswith(quote, self._at):
                return self._string(quote)
        if self.take("["):
            return self._list("]", depth)
        if self.take("("):
            return self._list(")", depth)
        if self.take("{"):
            return self.members(":", "}", depth)
        if number := _NUMBER.match(self._text, self._at):
            self._at = number.end()
            if number[0].lstrip("-").isdigit():
                if len(number[0]) > 4000:  # what Python converts at most
                    raise Malformed(f"a number of {len(number[0])} digits")
                return int(number[0])
            return float(number[0])
        word = self.name()
        if word not in _WORDS:
            raise Malformed(f"{_shown(word)} is no literal")
        return _WORDS[word]

    def _list(self, end: str, depth: int) -> list[Any]:
        items: list[Any] = []
        while not self.take(end):
            items.append(self.value(depth + 1))
            if not self.take(","):
                self.need(end)
                break
        return items

    def members(self, between: str, end: str, depth: int = 0) -> dict[str, Any]:
        """Names and values up to `end`; names may be strings."""
        found: dict[str, Any] = {}
        while not self.take(end):
            key = self._member_name(depth)
            self.need(between)
            found[key] = self.value(depth + 1)
            if not self.take(","):
                self.need(end)
                break
        return found

    def _member_name(self, depth: int) -> str:
        self._skip()
        if any(self._text.startswith(quote, self._at) for quote in (*self._quotes, "'", '"')):
            return str(self.value(depth + 1))
        found = (_KEY if self._quotes else _NAME).match(self._text, self._at)
        if not found:
            raise Malformed(f"wanted an argument's name at character {self._at}")
        self._at = found.end()
        return found[0]

    def _string(self, quote: str) -> str:
        if quote in self._quotes:
            start = self._at + len(quote)
            end = self._text.find(quote, start)
            if end < 0:
                raise Malformed("a string has no end")
            self._at = end + len(quote)
            return self._text[start:end]
        if self._text.startswith(quote * 3, self._at):
            quote *= 3
        at = self._at + len(quote)
        out: list[str] = []
        while True:
            if at >= len(self._text):
                raise Malformed("a string has no end")
            if self._text.startswith(quote, at):
                self._at = at + len(quote)
                return "".join(out)
            letter = self._text[at]
            at += 1
            if letter == "\\" and at < len(self._text):
                letter, at = self._escaped(at)
            out.append(letter)

    def _escaped(self, at: int) -> tuple[str, int]:
        kind = self._text[at]
        digits = {"x": 2, "u": 4, "U": 8}.get(kind, 0)
        if digits:
            code = self._text[at + 1 : at + 1 + digits]
            if len(code) == digits and all(c in "0123456789abcdefABCDEF" for c in code):
                number = int(code, 16)
                if number < 0x110000 and not 0xD800 <= number < 0xE000:
                    return chr(number), at + 1 + digits
            raise Malformed(f"\\{kind}{code} is no character")
        return _ESCAPES.get(kind, kind if kind in "\\'\"" else "\\" + kind), at + 1

    def _skip(self) -> None:
        found = _SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at


def read_python(text: str, schemas: Schemas = NO_SCHEMAS) -> list[ToolCall]:
    """`[f(a=1), g()]`, or one call to a line, with or without print() around it."""
    reader = Literals(text)
    found: list[ToolCall] = []
    listed = reader.take("[")
    while not (listed and reader.take("]")):
        if reader.done():
            if listed or not found:
                raise Malformed(
                    "the list of calls has no end" if listed else "no call between the marks of calls"
                )
            return found
        name = reader.name()
        reader.need("(")
        if name == "print" and not listed:
            name = reader.name()
            reader.need("(")
            found.append(ToolCall(name, reader.members("=", ")")))
            reader.need(")")
        else:
            found.append(ToolCall(name, reader.members("=", ")")))
        if not reader.take(",") and listed:
            reader.need("]")
            break
    if not reader.done():
        raise Malformed("text behind the list of calls")
    if not found:
        raise Malformed("no call between the marks of calls")
    return found


def read_gemma(text: str, schemas: Schemas = NO_SCHEMAS) -> list[ToolCall]:
    """`call:look{a:<|"|>x y<|"|>,b:2}`: Gemma 4; with `<escape>` for the quotes: FunctionGemma."""
    reader = Literals(text, ('<|"|>', "<escape>"))
    found: list[ToolCall] = []
    while not reader.done():
        reader.need("call:")
        name = reader.name()
        reader.need("{")
        found.append(ToolCall(name, reader.members(":", "}")))
    if not found:
        raise Malformed("no call between the marks of calls")
    return found


# --- a tag for each argument ----------------------------------------------------------------------------------------


def typed(text: str, schema: Mapping[str, Any] | None) -> Any:
    """An argument that was written without quotes, by its schema; without one, JSON that is no string is what it says."""
    kinds = _kinds(schema or {})
    if kinds == {"string"}:
        return text
    bare = text.strip()
    lowered = bare.lower()
    if "null" in kinds and lowered in ("null", "none"):
        return None
    if "boolean" in kinds and lowered in ("true", "false"):
        return lowered == "true"
    try:
        value = json.loads(bare)
    except (ValueError, RecursionError):
        return text
    try:
        _check_depth(value)
    except Malformed:
        return text
    kind = _kind_of(value)
    fits = kind in kinds or (kind == "integer" and "number" in kinds) or (not kinds and kind != "string")
    if not fits and kind == "number" and "integer" in kinds and value == int(value):
        return int(value)
    return value if fits and kind != "string" else text


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    kind = schema.get("type")
    found = {kind} if isinstance(kind, str) else {k for k in kind or () if isinstance(k, str)}
    for choice in (*(schema.get("anyOf") or ()), *(schema.get("oneOf") or ())):
        if isinstance(choice, Mapping):
            found |= _kinds(choice)
    return found | ({"null"} if schema.get("nullable") else set())


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return kinds[type(value)]


@dataclass(slots=True, frozen=True)
class Tags:
    """Reads calls written with tags: `call` finds a call (name and body), `argument` its arguments (key and value). With
    `lines`, a line break after the opening tag and one before the closing belong to the tags."""

    call: re.Pattern[str]
    argument: re.Pattern[str]
    lines: bool = False

    def __call__(self, text: str, schemas: Schemas = NO_SCHEMAS) -> list[ToolCall]:
        found: list[ToolCall] = []
        end = 0
        for match in self.call.finditer(text):
            if text[end : match.start()].strip():
                raise Malformed(f"text between calls: {_shown(text[end : match.start()].strip())}")
            found.append(self._one(match, schemas))
            end = match.end()
        if text[end:].strip():
            raise Malformed(f"no call: {_shown(text[end:].strip())}")
        if not found:
            raise Malformed("no call between the marks of calls")
        return found

    def _one(self, match: re.Match[str], schemas: Schemas) -> ToolCall:
        name, body = match["name"].strip(), match["body"]
        if not name:
            raise Malformed("a call has no name")
        schema, end = schemas.get(name, {}), 0
        arguments: dict[str, Any] = {}
        for argument in self.argument.finditer(body):
            if body[end : argument.start()].strip():
                raise Malformed(f"text between arguments: {_shown(body[end : argument.start()].strip())}")
            key, value = argument["key"].strip(), argument["value"]
            if self.lines:
                value = value.removeprefix("\n").removesuffix("\n")
            said = argument.groupdict().get("kind")
            if said is None:
                arguments[key] = typed(value, schema.get(key))
            else:  # the form itself tells strings from the rest
                arguments[key] = value if said in ("true", "string") else typed(value, None)
            end = argument.end()
        if body[end:].strip():
            raise Malformed(f"an argument is unfinished: {_shown(body[end:].strip())}")
        return ToolCall(name, arguments)


def _tags(call: str, argument: str, *, lines: bool = False) -> Tags:
    return Tags(re.compile(call, re.DOTALL), re.compile(argument, re.DOTALL), lines)


_INVOKE = r'<(?:\w+:)?invoke name="(?P<name>[^"]*)">(?P<body>.*?)</(?:\w+:)?invoke>'
read_functions = _tags(
    r"<function=(?P<name>[^>]*)>(?P<body>.*?)(?:</function>|\Z)",
    r"<parameter=(?P<key>[^>]*)>(?P<value>.*?)</parameter>",
    lines=True,
)
read_invokes = _tags(
    _INVOKE, r'<(?:\w+:)?parameter name="(?P<key>[^"]*)">(?P<value>.*?)</(?:\w+:)?parameter>'
)
read_dsml = _tags(
    r'<｜DSML｜invoke name="(?P<name>[^"]*)">(?P<body>.*?)</｜DSML｜invoke>',
    r'<｜DSML｜parameter name="(?P<key>[^"]*)" string="(?P<kind>true|false)">(?P<value>.*?)</｜DSML｜parameter>',
)
read_arg_keys = _tags(
    r"\s*(?P<name>[^\s<]+)(?P<body>.*)\Z",
    r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>",
)
read_hunyuan = _tags(
    r"<tool_call(?P<tag>:\w+)?>(?P<name>[^<]*)<tool_sep(?:\:\w+)?>(?P<body>.*?)</tool_call(?:\:\w+)?>",
    r"<arg_key(?:\:\w+)?>(?P<key>.*?)</arg_key(?:\:\w+)?>\s*<arg_value(?:\:\w+)?>(?P<value>.*?)</arg_value(?:\:\w+)?>",
)
read_params = _tags(
    r'<function name="(?P<name>[^"]*)">(?P<body>.*?)</function>',
    r'<param name="(?P<key>[^"]*)">(?P<value>.*?)</param>',
)
read_minimax3 = _tags(
    r'<invoke name="(?P<name>[^"]*)">(?P<body>.*?)</invoke>',
    r"<(?P<key>[^/>][^>]*)>(?P<value>.*?)</(?P=key)>",
)
read_xtml = _tags(
    r'<\|open\|>call tool="(?P<name>[^"]*)"[^<]*<\|sep\|>(?P<body>.*?)<\|close\|>call<\|sep\|>',
    r'<\|open\|>argument key="(?P<key>[^"]*)" type="(?P<kind>\w+)"<\|sep\|>(?P<value>.*?)<\|close\|>argument<\|sep\|>',
)


# --- a header with the name, then JSON ------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Headed:
    """Reads calls whose name stands before their arguments; `call` finds name, arguments and, where there is one, id."""

    call: re.Pattern[str]

    def __call__(self, text: str, schemas: Schemas = NO_SCHEMAS) -> list[ToolCall]:
        found: list[ToolCall] = []
        end = 0
        for match in self.call.finditer(text):
            if text[end : match.start()].strip():
                break
            groups = match.groupdict()
            found.append(
                ToolCall(match["name"].strip(), _arguments(match["arguments"]), groups.get("id") or "")
            )
            end = match.end()
        if text[end:].strip() or not found:
            raise Malformed(f"no call: {_shown(text[end:].strip())}")
        return found


def _headed(call: str) -> Headed:
    return Headed(re.compile(call, re.DOTALL))


read_deepseek = _headed(
    r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?(?P<name>[^\n<]+)"
    r"(?:<｜tool▁sep｜>|\n```json\n)(?P<arguments>.*?)(?:\n```)?(?:<｜tool▁call▁end｜>|\Z)"
)
read_kimi = _headed(
    r"<\|tool_call_begin\|>(?P<id>(?:functions\.)?(?P<name>[^:<\s]+)(?::\d+)?)\s*"
    r"<\|tool_call_argument_begin\|>(?P<arguments>.*?)<\|tool_call_end\|>"
)
read_solar = _headed(
    r"<\|tool_call:begin\|>(?P<id>.*?)<\|tool_call:name\|>(?P<name>.*?)"
    r"<\|tool_call:args\|>(?P<arguments>.*?)<\|tool_call:end\|>"
)
_MISTRAL = _headed(
    r"(?P<name>[^\[\s]+)(?:\[CALL_ID\](?P<id>[^\[]*))?(?:\[ARGS\])?(?P<arguments>\{.*?\})\s*(?:\[TOOL_CALLS\]|\Z)"
)


def read_mistral(text: str, schemas: Schemas = NO_SCHEMAS) -> list[ToolCall]:
    """A list of objects, or `name[ARGS]{...}`, one behind the other with `[TOOL_CALLS]` between."""
    return read_json(text) if text.lstrip().startswith(("[", "{")) else _MISTRAL(text)


def read_tag(text: str, schemas: Schemas = NO_SCHEMAS) -> list[ToolCall]:
    """What stands in a `<tool_call>`: many families use this tag, each fills it in its own way."""
    start = text.lstrip()
    if start.startswith("<function="):
        return read_functions(text, schemas)
    return read_json(text) if not start or start[0] in "{[" else read_arg_keys(text, schemas)


def read_function(text: str, schemas: Schemas = NO_SCHEMAS) -> list[ToolCall]:
    """`<function=look>` with JSON (functionary) or with tags (qwen without its outer tag)."""
    found = re.fullmatch(
        r"\s*<function=(?P<name>[^>]*)>\s*(?P<arguments>\{.*\})\s*(?:</function>)?\s*", text, re.DOTALL
    )
    if found:
        return [ToolCall(found["name"], _arguments(found["arguments"]))]
    return read_functions(text, schemas)


def read_python_tag(text: str, schemas: Schemas = NO_SCHEMAS) -> list[ToolCall]:
    """What follows Llama's `<|python_tag|>`: JSON, or `tool.call(query="...")` of the tools it was taught."""
    if text.lstrip().startswith(("{", "[")):
        return read_json(text)
    return [ToolCall(call.name.removesuffix(".call"), call.arguments) for call in read_python(text)]


def _read_minimax3(text: str, schemas: Schemas = NO_SCHEMAS) -> list[ToolCall]:
    return read_minimax3(text.replace("]<]minimax[>[", ""), schemas)


def _read_params(text: str, schemas: Schemas = NO_SCHEMAS) -> list[ToolCall]:
    return read_params('<function name="' + text + "</function>", schemas)


def _read_function(text: str, schemas: Schemas = NO_SCHEMAS) -> list[ToolCall]:
    return read_function("<function=" + text + "</function>", schemas)


FORMATS: tuple[CallFormat, ...] = (
    CallFormat("hermes, qwen, glm", "<tool_call>", "</tool_call>", read_tag),
    CallFormat("seed", "<seed:tool_call>", "</seed:tool_call>", read_functions),
    CallFormat("hunyuan", "<tool_calls:opensource>", "</tool_calls:opensource>", read_hunyuan),
    CallFormat("minimax 1, apriel", "<tool_calls>", "</tool_calls>", read_json),
    CallFormat("minimax 2", "<minimax:tool_call>", "</minimax:tool_call>", read_invokes),
    CallFormat("minimax 3", "]<]minimax[>[<tool_call>", "]<]minimax[>[</tool_call>", _read_minimax3),
    CallFormat("nemotron", "<TOOLCALL>", "</TOOLCALL>", read_json),
    CallFormat("mistral", "[TOOL_CALLS]", "", read_mistral),
    CallFormat("deepseek", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", read_deepseek),
    CallFormat("deepseek 3.2", "<｜DSML｜function_calls>", "</｜DSML｜function_calls>", read_dsml),
    CallFormat("deepseek 4", "<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>", read_dsml),
    CallFormat("kimi", "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", read_kimi),
    CallFormat("kimi 3", "<|open|>tools<|sep|>", "<|close|>tools<|sep|>", read_xtml),
    CallFormat("lfm", "<|tool_call_start|>", "<|tool_call_end|>", read_python),
    CallFormat("gemma 4", "<|tool_call>", "<tool_call|>", read_gemma),
    CallFormat("functiongemma", "<start_function_call>", "<end_function_call>", read_gemma),
    CallFormat("gemma", "```tool_code", "```", read_python),
    CallFormat("granite, phi", "<|tool_call|>", "<|/tool_call|>", read_json),
    CallFormat("phi", "functools", "", read_json, bare=True),
    CallFormat("command", "<|START_ACTION|>", "<|END_ACTION|>", read_json),
    CallFormat("command r+", "Action: ```json", "```", read_json),
    CallFormat("apertus", "<|tools_prefix|>", "<|tools_suffix|>", read_json),
    CallFormat("solar", "<|tool_calls|>", "<|calls|>", read_solar),
    CallFormat("gigachat 3.1", "<|function_call|>", "", read_json),
    CallFormat("gigachat 3", "function call<|role_sep|>", "", read_json),
    CallFormat("minicpm", '<function name="', "</function>", _read_params),
    CallFormat("functionary", "<function=", "</function>", _read_function),
    CallFormat("llama 3, python", "<|python_tag|>", "", read_python_tag),
    CallFormat("llama 4", "<|python_start|>", "<|python_end|>", read_python),
    CallFormat("llama 3", "{", "", read_json, bare=True),
    CallFormat("llama, python", "[", "", read_python, bare=True),
)

"""The ways in which families write calls, character by character: the material of grammars of calls.

A reader takes many ways of writing one call; a grammar has to say which one a model is to write. So each form has its
shapes here, and the template's text of a call shows which of them a model writes. If no template shows it, all shapes of
the family stand side by side.

A shape is text with gaps: `␣` optional white space, `«name»` the tool's name, `«args»` its arguments, `«number»` and
`«id»` possible names of a call.
"""

# ruff: noqa: RUF001 - DeepSeek's marks are written with full-width bars

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

Notation = Literal["json", "text", "typed", "xtml", "python", "gemma"]
Kind = Literal["json", "python", "gemma", "tags"]
GAP = re.compile("(␣|«[a-z]+»)")


@dataclass(slots=True, frozen=True)
class Arguments:
    """A way to write arguments: one JSON object, literals of Python or Gemma between commas, or each as `open`, value,
    `close`. In `text` a value has no quotes, and its schema says what it is; in `typed` and `xtml` the tag says so. None
    of `never` (patterns) can stand in such a text. `lines`: a line break on either side of it belongs to the tags;
    `quote` is Gemma's."""

    notation: Notation = "json"
    open: str = ""
    close: str = ""
    never: tuple[str, ...] = ()
    lines: bool = False
    quote: str = '<|"|>'


JSON = Arguments()


@dataclass(slots=True, frozen=True)
class Shape:
    """A section of calls: `open`, calls with `between` between them (None: a section has one call, and there may be more
    sections, unless `single`), `close`."""

    open: str
    call: str
    close: str
    between: str | None = None
    arguments: Arguments = JSON
    single: bool = False

    def writes(self, name: str, text: str) -> bool:
        """Whether a text has a section of this shape with a call of a tool."""
        gaps = {"␣": r"\s*", "«name»": re.escape(name), "«args»": ".*?", "«number»": r"\d+", "«id»": r"\w*"}
        parts = GAP.split(self.open + self.call + self.close)
        if self.arguments.notation == "json":
            gaps["«args»"] = r"\{[^{}]*\}"
        if self.arguments.notation not in ("json", "python", "gemma"):
            gaps["«args»"] = r"\s*" + re.escape(self.arguments.open.partition("«")[0]) + ".*?"
        return bool(re.search("".join(gaps.get(part) or re.escape(part) for part in parts), text, re.DOTALL))

    def within(self, start: str, end: str) -> Shape:
        """The same calls between other marks."""
        inner, outer = self.open.partition("␣"), self.close.rpartition("␣")
        return replace(self, open=start + inner[1] + inner[2], close=outer[0] + outer[1] + end)


def objects(start: str, end: str, name: str = "name", arguments: str = "arguments", more: str = "") -> Shape:
    """Calls as JSON objects; `more` are members before the name."""
    call = f'{{␣{more}"{name}"␣:␣"«name»"␣,␣"{arguments}"␣:␣«args»␣}}'
    return Shape(start + "␣", call, "␣" + end)


def listed(shape: Shape) -> Shape:
    """The same objects in a list."""
    return replace(shape, open=shape.open + "[␣", close="␣]" + shape.close, between="␣,␣")


def _tags(call: str, open: str, close: str, *never: str, lines: bool = False) -> tuple[str, Arguments]:
    return call, Arguments("text", open, close, (re.escape(close), *never), lines)


def _shape(start: str, end: str, call: tuple[str, Arguments], between: str | None = None) -> Shape:
    return Shape(start + "␣", call[0], "␣" + end, between, call[1])


_FUNCTIONS = _tags("<function=«name»>␣«args»␣</function>", "<parameter=«key»>", "</parameter>", "</function>", lines=True)
_ARG_KEYS = _tags("«name»␣«args»", "<arg_key>«key»</arg_key>␣<arg_value>", "</arg_value>", "<arg_key>", "</tool_call>")
_PYTHON = ("«name»(␣«args»␣)", Arguments("python"))


def _invokes(space: str) -> tuple[str, Arguments]:
    return _tags(
        f'<{space}invoke name="«name»">␣«args»␣</{space}invoke>',
        f'<{space}parameter name="«key»">',
        f"</{space}parameter>",
        f"</{space}invoke>",
    )


def _dsml(section: str) -> Shape:
    mark = "｜DSML｜"
    arguments = Arguments(
        "typed",
        f'<{mark}parameter name="«key»" string="«kind»">',
        f"</{mark}parameter>",
        (f"</{mark}parameter>", f"</{mark}invoke>"),
    )
    call = f'<{mark}invoke name="«name»">␣«args»␣</{mark}invoke>'
    return Shape(f"<{mark}{section}>␣", call, f"␣</{mark}{section}>", "␣", arguments)


def _deepseek(call: str) -> Shape:
    return Shape(
        "<｜tool▁calls▁begin｜>␣",
        f"<｜tool▁call▁begin｜>{call}<｜tool▁call▁end｜>",
        "␣<｜tool▁calls▁end｜>",
        "␣",
    )


def _gemma(start: str, end: str, quote: str) -> Shape:
    return Shape(start, "call:«name»{␣«args»␣}", end, None, Arguments("gemma", quote=quote))


_MINIMAX3 = "]<]minimax[>["
_NAMED = '"tool_call_id"␣:␣"«number»"␣,␣'
_PYTHON_LIST = Shape("[␣", _PYTHON[0], "␣]", "␣,␣", _PYTHON[1])

SHAPES: dict[str, tuple[Shape, ...]] = {
    "hermes, qwen, glm": (
        objects("<tool_call>", "</tool_call>"),
        _shape("<tool_call>", "</tool_call>", _FUNCTIONS),
        _shape("<tool_call>", "</tool_call>", _ARG_KEYS),
    ),
    "seed": (_shape("<seed:tool_call>", "</seed:tool_call>", _FUNCTIONS),),
    "hunyuan": tuple(
        _shape(
            f"<tool_calls{tag}>", f"</tool_calls{tag}>",
            _tags(
                f"<tool_call{inner}>«name»<tool_sep{inner}>␣«args»␣</tool_call{inner}>",
                f"<arg_key{inner}>«key»</arg_key{inner}>␣<arg_value{inner}>", f"</arg_value{inner}>",
                f"</tool_call{inner}>",
            ), "␣",
        )
        for tag in (":opensource",) for inner in (":opensource", "")
    ),
    "minimax 1, apriel": (
        replace(objects("<tool_calls>", "</tool_calls>"), between="\n"),
        listed(objects("<tool_calls>", "</tool_calls>")),
    ),
    "minimax 2": (_shape("<minimax:tool_call>", "</minimax:tool_call>", _invokes(""), "␣"),),
    "muse": (_shape("<atem:function_calls>", "</atem:function_calls>", _invokes("atem:"), "␣"),),
    "minimax 3": (
        _shape(
            f"{_MINIMAX3}<tool_call>", f"{_MINIMAX3}</tool_call>",
            _tags(
                f'{_MINIMAX3}<invoke name="«name»">␣«args»␣{_MINIMAX3}</invoke>',
                f"{_MINIMAX3}<«key»>", f"{_MINIMAX3}</«key»>", re.escape(_MINIMAX3), "</invoke>", "</«key»>",
            ), "␣",
        ),
    ),
    "nemotron": (listed(objects("<TOOLCALL>", "</TOOLCALL>")),),
    "mistral": (
        Shape("[TOOL_CALLS]", "«name»[ARGS]␣«args»", ""),
        Shape("[TOOL_CALLS]", "«name»[CALL_ID]«id»[ARGS]␣«args»", ""),
        replace(
            listed(objects("[TOOL_CALLS]", "")),
            call='{␣"name"␣:␣"«name»"␣,␣"arguments"␣:␣«args»␣,␣"id"␣:␣"«id»"␣}', single=True,
        ),
        replace(listed(objects("[TOOL_CALLS]", "")), single=True),
    ),
    "deepseek": (
        _deepseek("«name»<｜tool▁sep｜>«args»"),
        _deepseek("function<｜tool▁sep｜>«name»\n```json\n«args»\n```"),
    ),
    "deepseek 3.2": (_dsml("function_calls"),),
    "deepseek 4": (_dsml("tool_calls"),),
    "kimi": (
        Shape(
            "<|tool_calls_section_begin|>␣",
            "<|tool_call_begin|>functions.«name»:«number»<|tool_call_argument_begin|>␣«args»␣<|tool_call_end|>",
            "␣<|tool_calls_section_end|>", "␣",
        ),
    ),
    "kimi 3": (
        Shape(
            "<|open|>tools<|sep|>", '<|open|>call tool="«name»" index="«number»"<|sep|>«args»<|close|>call<|sep|>',
            "<|close|>tools<|sep|>", "",
            Arguments(
                "xtml", '<|open|>argument key="«key»" type="«kind»"<|sep|>', "<|close|>argument<|sep|>",
                (re.escape("<|close|>"), re.escape("<|open|>")),
            ),
        ),
    ),
    "lfm": (_PYTHON_LIST.within("<|tool_call_start|>[", "]<|tool_call_end|>"),),
    "gemma 4": (_gemma("<|tool_call>", "<tool_call|>", '<|"|>'),),
    "functiongemma": (_gemma("<start_function_call>", "<end_function_call>", "<escape>"),),
    "gemma": (Shape("```tool_code\n", _PYTHON[0], "\n```", "\n", _PYTHON[1]),),
    "granite, phi": (listed(objects("<|tool_call|>", "")), listed(objects("<|tool_call|>", "<|/tool_call|>"))),
    "phi": (replace(listed(objects("functools", "")), single=True),),
    "command": (listed(objects("<|START_ACTION|>", "<|END_ACTION|>", "tool_name", "parameters", _NAMED)),),
    "command r+": (listed(objects("Action: ```json", "```", "tool_name", "parameters")),),
    "command r+, lines": (listed(objects("Action:\n```json", "```", "tool_name", "parameters")),),
    "apertus": (Shape("<|tools_prefix|>[␣", '{␣"«name»"␣:␣«args»␣}', "␣]<|tools_suffix|>", "␣,␣"),),
    "solar": (
        Shape(
            "<|tool_calls|>␣",
            "<|tool_call:begin|>«id»<|tool_call:name|>«name»<|tool_call:args|>␣«args»␣<|tool_call:end|>",
            "␣<|calls|>", "␣",
        ),
    ),
    "gigachat 3.1": (replace(objects("<|function_call|>", ""), single=True),),
    "gigachat 3": (replace(objects("function call<|role_sep|>\n", ""), single=True),),
    "minicpm": (
        _shape(
            "", "",
            _tags('<function name="«name»">␣«args»␣</function>', '<param name="«key»">', "</param>", "</function>"),
        ),
    ),
    "functionary": (Shape("", "<function=«name»>␣«args»␣</function>", ""),),
    "functionary 3.2": (Shape(">>>", "«name»\n␣«args»", ""),),
    "llama 3, python": (
        replace(objects("<|python_tag|>", "", "name", "parameters"), between="␣;␣"),
        Shape("<|python_tag|>", "«name».call(␣«args»␣)", "", None, Arguments("python"), single=True),
    ),
    "llama 4": (_PYTHON_LIST.within("<|python_start|>[", "]<|python_end|>"),),
    "llama 3": (
        replace(objects("", "", "name", "parameters"), between="␣;␣"),
        replace(objects("", "", "name", "arguments"), between="␣;␣"),
        replace(objects("", "", "name", "parameters", '"type"␣:␣"function"␣,␣'), between="␣;␣"),
    ),
    "llama, python": (replace(_PYTHON_LIST, single=True),),
}  # fmt: skip

HARMONY = (
    Shape(" ", "to=functions.«name»<|channel|>commentary json<|message|>␣«args»", "<|call|>", single=True),
    Shape("<|channel|>", "commentary to=functions.«name» <|constrain|>json<|message|>␣«args»", "<|call|>", single=True),
    Shape("<|channel|>", "commentary to=functions.«name» json<|message|>␣«args»", "<|call|>", single=True),
)
# Messages to the tool that is called, one for each call (Muse).
RECIPIENTS = (
    Shape(
        "",
        " to=«name»<|message|><atem:function_calls>␣"
        '<atem:invoke name="«name»">␣«args»␣</atem:invoke>␣</atem:function_calls>',
        "",
        "<|eom|><|start|>assistant",
        SHAPES["muse"][0].arguments,
    ),
)


def shapes_for(kind: Kind, start: str, end: str) -> tuple[Shape, ...]:
    """The ways to write calls of a kind between known marks."""
    match kind:
        case "json":
            flat = [objects(start, end, "name", key) for key in ("arguments", "parameters")]
            nested = [
                replace(one, call=f'{{␣{head}"function"␣:␣{one.call}␣}}')
                for one in flat[:1]
                for head in ("", '"type"␣:␣"function"␣,␣')
            ]
            return (*flat, *nested, *map(listed, (*flat, *nested)))
        case "python":
            return (_PYTHON_LIST.within(start + "[", "]" + end),)
        case "gemma":
            return tuple(_gemma(start, end, quote) for quote in ('<|"|>', "<escape>"))
        case "tags":
            return tuple(_shape(start, end, call) for call in (_FUNCTIONS, _ARG_KEYS))

"""The forms in which families of models write calls of tools, and the reader of each: text in, records out.

Every family has a form of its own: JSON in a tag, a tag for each argument, Python's calls, a header with the name.
Serving engines have a parser for each family; here is a table: what opens calls, what closes them, and what reads
between. Nothing is ever evaluated; Python's and Gemma's literals have a small reader of their own. The error for a
malformed call is a sentence; the caller gets the text beside it.
"""

# ruff: noqa: RUF001 - DeepSeek's marks are written with full-width bars
from __future__ import annotations

from dataclasses import dataclass, replace

from llmasos.userland.sdk.call_headed import (
    read_deepseek,
    read_functionary,
    read_kimi,
    read_mistral_headed,
    read_recipients,
    read_solar,
)
from llmasos.userland.sdk.call_json import read_json
from llmasos.userland.sdk.call_literals import read_gemma, read_python
from llmasos.userland.sdk.call_scan import Strings
from llmasos.userland.sdk.call_shapes import HARMONY, RECIPIENTS, SHAPES, Shape
from llmasos.userland.sdk.call_tags import (
    read_arg_keys,
    read_dsml,
    read_functions,
    read_hunyuan,
    read_invokes,
    read_minimax3,
    read_params,
    read_xtml,
)
from llmasos.userland.sdk.calls import NO_SCHEMAS, Reader, Schemas, ToolCall


@dataclass(slots=True, frozen=True)
class CallFormat:
    """A form: calls stand between `open` and `close` (empty: the end of the answer). With `bare`, `open` is ordinary text
    that means calls only at the very beginning of an answer, and only if calls can be read behind it. A mark within a
    string (of `strings`) closes nothing; `said` opens text that is no call, if the form has that; `shapes` are the ways
    of writing calls in it."""

    name: str
    open: str
    close: str
    read: Reader
    bare: bool = False
    strings: Strings = "auto"
    said: str = ""
    shapes: tuple[Shape, ...] = ()


def read_mistral(text: str, schemas: Schemas = NO_SCHEMAS) -> list[ToolCall]:
    """A list of objects, or `name[ARGS]{...}`, one behind the other with `[TOOL_CALLS]` between."""
    return read_json(text) if text.lstrip().startswith(("[", "{")) else read_mistral_headed(text)


def read_tag(text: str, schemas: Schemas = NO_SCHEMAS) -> list[ToolCall]:
    """The content of a `<tool_call>`: many families use this tag, and each fills it in its own way."""
    start = text.lstrip()
    if start.startswith("<function="):
        return read_functions(text, schemas)
    return read_json(text) if not start or start[0] in "{[" else read_arg_keys(text, schemas)


def read_function(text: str, schemas: Schemas = NO_SCHEMAS) -> list[ToolCall]:
    """`<function=look>` with JSON (functionary) or with tags (qwen without its outer tag)."""
    behind = text.partition(">")[2].lstrip()
    return read_functionary(text) if behind.startswith("{") else read_functions(text, schemas)


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


_FAMILIES: tuple[CallFormat, ...] = (
    CallFormat("hermes, qwen, glm", "<tool_call>", "</tool_call>", read_tag),
    CallFormat("seed", "<seed:tool_call>", "</seed:tool_call>", read_functions),
    CallFormat("hunyuan", "<tool_calls:opensource>", "</tool_calls:opensource>", read_hunyuan),
    CallFormat("minimax 1, apriel", "<tool_calls>", "</tool_calls>", read_json),
    CallFormat("minimax 2", "<minimax:tool_call>", "</minimax:tool_call>", read_invokes),
    CallFormat("muse", "<atem:function_calls>", "</atem:function_calls>", read_invokes),
    CallFormat("minimax 3", "]<]minimax[>[<tool_call>", "]<]minimax[>[</tool_call>", _read_minimax3),
    CallFormat("nemotron", "<TOOLCALL>", "</TOOLCALL>", read_json),
    CallFormat("mistral", "[TOOL_CALLS]", "", read_mistral),
    CallFormat("deepseek", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", read_deepseek, strings="json"),
    CallFormat("deepseek 3.2", "<｜DSML｜function_calls>", "</｜DSML｜function_calls>", read_dsml),
    CallFormat("deepseek 4", "<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>", read_dsml),
    CallFormat("kimi", "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", read_kimi, strings="json"),
    CallFormat("kimi 3", "<|open|>tools<|sep|>", "<|close|>tools<|sep|>", read_xtml),
    CallFormat("lfm", "<|tool_call_start|>", "<|tool_call_end|>", read_python, strings="python"),
    CallFormat("gemma 4", "<|tool_call>", "<tool_call|>", read_gemma, strings="gemma"),
    CallFormat("functiongemma", "<start_function_call>", "<end_function_call>", read_gemma, strings="gemma"),
    CallFormat("gemma", "```tool_code", "```", read_python, strings="python"),
    CallFormat("granite, phi", "<|tool_call|>", "<|/tool_call|>", read_json),
    CallFormat("phi", "functools", "", read_json, bare=True),
    CallFormat("command", "<|START_ACTION|>", "<|END_ACTION|>", read_json),
    CallFormat("command r+", "Action: ```json", "```", read_json),
    CallFormat("command r+, lines", "Action:\n```json", "```", read_json),
    CallFormat("apertus", "<|tools_prefix|>", "<|tools_suffix|>", read_json),
    CallFormat("solar", "<|tool_calls|>", "<|calls|>", read_solar, strings="json"),
    CallFormat("gigachat 3.1", "<|function_call|>", "", read_json),
    CallFormat("gigachat 3", "function call<|role_sep|>", "", read_json),
    CallFormat("minicpm", '<function name="', "</function>", _read_params),
    CallFormat("functionary", "<function=", "</function>", _read_function),
    CallFormat("functionary 3.2", ">>>", "", read_recipients, said=">>>all\n"),
    CallFormat("llama 3, python", "<|python_tag|>", "", read_python_tag),
    CallFormat("llama 4", "<|python_start|>", "<|python_end|>", read_python, strings="python"),
    CallFormat("llama 3", "{", "", read_json, bare=True),
    CallFormat("llama, python", "[", "", read_python, bare=True),
)
# Harmony's headers tell its calls apart (thoughts.HarmonyReader); this is only how they are written.
HARMONY_FORM = CallFormat("harmony", "", "<|call|>", read_json, said="<|channel|>final<|message|>", shapes=HARMONY)
RECIPIENTS_FORM = CallFormat(
    "recipients", "", "</atem:function_calls>", read_invokes, said=" to=user<|message|>", shapes=RECIPIENTS
)
FORMATS = tuple(replace(form, shapes=SHAPES[form.name]) for form in _FAMILIES)

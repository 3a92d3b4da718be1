"""Grammars of calls, judged by llguidance and jsonschema: they accept what families publish, and whatever they let a
decoder say is read as calls of the tools with arguments that their schemas allow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Core

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.sdk.call_choice import grammar_for
from llmasos.userland.sdk.call_formats import FORMATS, HARMONY_FORM, CallFormat
from llmasos.userland.sdk.call_grammar import call_grammar
from llmasos.userland.sdk.chat import ChatFormat
from llmasos.userland.sdk.dialogue import Setup
from llmasos.userland.sdk.response_template import fields_of
from llmasos.userland.sdk.tokenizer import Settings, Tokenizer
from llmasos.userland.sdk.tool_calls import BadCall, CallReader, ToolCall, formats_of, schemas_of
from tests.userland import chat_shapes, words_zoo
from tests.userland.grammar_oracle import Oracle
from tests.userland.tool_calls import PUBLISHED
from tests.userland.tool_calls import TOOLS as LOOK

jsonschema = pytest.importorskip("jsonschema")

BY_NAME = {form.name: form for form in FORMATS}
ORACLE = Oracle()


def tool(name: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    more = {} if parameters is None else {"parameters": parameters}
    return {"type": "function", "function": {"name": name, "description": "A tool.", **more}}


WIDE = {
    "type": "object",
    "properties": {
        "at": {"type": "string"},
        "count": {"type": "integer"},
        "mode": {"enum": ["fast", "slow", "7"]},
        "maybe": {"type": ["string", "null", "integer"]},
        "bound": {"anyOf": [{"type": "number", "minimum": 3}, {"type": "string", "maxLength": 5}]},
        "words": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        "inner": {
            "type": "object",
            "properties": {"on": {"type": "boolean"}, "point": {"$ref": "#/$defs/Point"}},
            "required": ["point"],
        },
        "code": {"type": "string", "pattern": "^[a-c]{2,4}$"},
        "kind": {"$ref": "#/$defs/Kind"},
        "any": {},
    },
    "required": ["at", "bound"],
    "$defs": {
        "Point": {"type": "object", "properties": {"x": {"type": "number"}}, "additionalProperties": False},
        "Kind": {"enum": ["1", "2"]},
    },
}
TOOLS = [tool("look", WIDE), tool("list_all")]


def events_of(forms: list[CallFormat], tools: list[dict[str, Any]], text: str, **more: Any) -> list[Any]:
    reader = CallReader(forms, schemas_of(tools), **more)
    return [e for e in (*reader.push(text), *reader.flush()) if not isinstance(e, str) or e.strip()]


def faults(call: object, tools: list[dict[str, Any]]) -> list[str]:
    """What is wrong with what should be a call of one of the tools."""
    if not isinstance(call, ToolCall):
        return [f"no call: {call!r}"]
    inner = next((t["function"] for t in tools if t["function"]["name"] == call.name), None)
    if inner is None:
        return [f"no tool: {call.name}"]
    schema = {
        "type": "object",
        "properties": {},
        "additionalProperties": False,
        **inner.get("parameters", {}),
    }
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(call.arguments)]


def ends_of(form: CallFormat) -> list[str]:
    """What ends texts in a form: marks that a random decoder needs help to come upon."""
    found = {s.arguments.close for s in form.shapes} | {s.arguments.quote for s in form.shapes}
    return [mark for mark in found if mark and "«" not in mark]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_whatever_a_grammar_lets_a_decoder_say_is_calls_that_the_schemas_allow(form: CallFormat) -> None:
    grammar, calls = call_grammar([form], TOOLS), 0
    for seed in range(12):
        said = ORACLE.said(grammar, seed, ends_of(form), 1500)
        if said is None:
            continue
        for event in events_of([form], TOOLS, said):
            calls += 1
            assert not faults(event, TOOLS), said
    assert calls


@pytest.mark.parametrize(("form", "text", "call"), PUBLISHED)
def test_a_call_as_its_family_publishes_it_is_in_the_grammar(form: str, text: str, call: ToolCall) -> None:
    tools = LOOK if call.name == "look" else [tool(call.name, {"properties": {"query": {"type": "string"}}})]
    marked = ORACLE.refusal(call_grammar([BY_NAME[form]], tools), text)
    if "print(" not in text:  # read, but not asked for
        assert not marked


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_marks_that_are_special_tokens_are_written_by_their_ids_only(form: CallFormat) -> None:
    marks = {mark for mark in (form.open, form.close) if mark and not mark.isalpha() and len(mark) > 1}
    oracle = Oracle(sorted(marks))
    grammar = call_grammar([form], TOOLS, special=oracle.ids)
    said = next(found for seed in range(40) if (found := oracle.said(grammar, seed, ends_of(form), 1500)))
    assert all(not faults(event, TOOLS) for event in events_of([form], TOOLS, said))
    if said.startswith(form.open) and form.open in marks:
        assert not oracle.refusal(grammar, said)
        assert ORACLE.refusal(call_grammar([form], TOOLS), said) == ""


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_with_auto_text_without_calls_is_as_good_as_calls(form: CallFormat) -> None:
    grammar = call_grammar([form], TOOLS, choice="auto", special=None)
    said = form.said + "Just so." if form.said else "Just so."
    assert not ORACLE.refusal(grammar, said)
    seen = set()
    for seed in range(16):
        found = ORACLE.said(grammar, seed, [form.open, form.open, *ends_of(form)], 1200)
        for event in events_of([form], TOOLS, found or ""):
            seen.add(type(event))
            assert isinstance(event, str) or not faults(event, TOOLS), found
    assert BadCall not in seen


def test_a_choice_of_one_tool_is_one_call_of_it_and_without_parallel_there_is_one_call() -> None:
    form = BY_NAME["hermes, qwen, glm"]
    look = '<tool_call>{"name": "look", "arguments": {"at": "x", "bound": 4}}</tool_call>'
    other = '<tool_call>{"name": "list_all", "arguments": {}}</tool_call>'
    required = call_grammar([form], TOOLS)
    assert [ORACLE.refusal(required, text) == "" for text in (look, other, look + "\n" + other, "")] == [
        True,
        True,
        True,
        False,
    ]
    alone = call_grammar([form], TOOLS, parallel=False)
    assert [ORACLE.refusal(alone, text) == "" for text in (look, other, look + other)] == [True, True, False]
    named = call_grammar([form], TOOLS, choice="list_all")
    assert [ORACLE.refusal(named, text) == "" for text in (look, other, other + other)] == [
        False,
        True,
        False,
    ]


def test_arguments_that_the_schemas_do_not_allow_are_in_no_grammar() -> None:
    form = BY_NAME["hermes, qwen, glm"]
    grammar = call_grammar([form], TOOLS)

    def refused(**arguments: Any) -> bool:
        said = json.dumps({"name": "look", "arguments": arguments})
        return ORACLE.refusal(grammar, f"<tool_call>{said}</tool_call>") != ""

    def tagged(key: str, text: str) -> bool:
        inner = f"<parameter=at>x</parameter><parameter={key}>{text}</parameter>"
        tools = [tool("look", {**WIDE, "required": ["at"]})]
        said = f"<tool_call><function=look>{inner}</function></tool_call>"
        return ORACLE.refusal(call_grammar([form], tools), said) != ""

    assert not refused(at="x", bound=4)
    assert refused(at="x")
    assert refused(at="x", bound=2)
    assert refused(at="x", bound=4, code="abcd!")
    assert refused(at="x", bound=4, unknown=1)
    assert [tagged("mode", text) for text in ("fast", "7", "fas")] == [False, False, True]
    assert [tagged("code", text) for text in ("ab", "\nab\n", "abd")] == [False, False, True]
    assert [tagged("bound", text) for text in ("4", "2", "word", "longer")] == [False, True, False, True]
    assert [tagged("count", text) for text in ("4", "four")] == [False, True]


def test_what_its_makers_say_of_a_models_answers_gives_a_grammar_too() -> None:
    said = {"fields": {"tool_calls": {"open": "<do>", "close": "</do>", "content": "json"}}}

    def written(call: ToolCall) -> list[str]:
        inner = {"name": call.name, "parameters": call.arguments}
        return [f"<do>[{json.dumps({'type': 'function', 'function': inner})}]</do>".replace("parameters", "arguments")]

    forms = formats_of(written, "", (), fields_of(said).calls)
    grammar = call_grammar(forms, TOOLS)
    text = '<do>[{"type": "function", "function": {"name": "list_all", "arguments": {}}}]</do>'
    assert not ORACLE.refusal(grammar, text)
    assert events_of(list(forms), TOOLS, text) == [ToolCall("list_all")]
    assert ORACLE.refusal(grammar, '<do>{"name": "list_all", "arguments": {}}</do>')
    for kind, more in (("json", {"unquoted_keys": True}), ("python-call-list", {}), ("xml-inline", {})):
        field = {"open": "<do>", "close": "</do>", "content": kind, "content_args": more}
        (form,) = fields_of({"fields": {"tool_calls": field}}).calls
        for seed in range(6):
            found = ORACLE.said(call_grammar([form], TOOLS), seed, ends_of(form), 1500)
            assert all(not faults(event, TOOLS) for event in events_of([form], TOOLS, found or "")), found


def test_a_form_that_nobody_has_published_gives_a_grammar_too() -> None:
    forms = formats_of(lambda call: [f"<<do>>{call.name} with {json.dumps(call.arguments)}<<done>>"], "")
    grammar = call_grammar(forms, TOOLS)
    assert not ORACLE.refusal(grammar, "<<do>>list_all with {}<<done>>")
    assert ORACLE.refusal(grammar, "<<do>>something with {}<<done>>")


def test_a_models_chat_gives_the_grammar_of_its_own_tools_in_its_own_tokens() -> None:
    core = Core.from_str(words_zoo.core_json("byte-level"))
    core.add_tokens([AddedToken("<tool_call>", special=True), AddedToken("<|im_end|>", special=True)])
    source = chat_shapes.SHAPES["chatml"].source
    chat = ChatFormat(Tokenizer(core, Settings(templates={"default": source})), "m")
    mark = chat.tokenizer.id_of("<tool_call>")
    grammar = grammar_for(chat, Setup(tools=TOOLS), choice="list_all")
    assert f"<[{mark}]>" in grammar
    assert '"</tool_call>"' in grammar
    assert "list_all" in grammar
    assert "look" not in grammar
    with pytest.raises(SyscallError, match=r"^EINVAL: .*tools"):
        grammar_for(chat, Setup())


def test_harmonys_calls_have_their_recipient_in_the_header() -> None:
    grammar = call_grammar([HARMONY_FORM], TOOLS)
    body = '{"at": "x", "bound": 4}<|call|>'
    assert not ORACLE.refusal(grammar, "<|channel|>commentary to=functions.look <|constrain|>json<|message|>" + body)
    assert not ORACLE.refusal(grammar, " to=functions.look<|channel|>commentary json<|message|>" + body)
    assert ORACLE.refusal(grammar, " to=functions.else<|channel|>commentary json<|message|>" + body)


@pytest.mark.parametrize(
    ("forms", "tools", "more", "errno", "words"),
    [
        (["hermes, qwen, glm"], [], {}, Errno.EINVAL, "no tools"),
        (["hermes, qwen, glm"], TOOLS, {"choice": "none"}, Errno.EINVAL, "list_all, look"),
        ([], TOOLS, {}, Errno.ENOTSUP, "not known"),
        (["lfm"], [tool("two words")], {}, Errno.EINVAL, "two words"),
        (["seed"], [tool("f", {"properties": {"a>": {}}})], {}, Errno.EINVAL, "a>"),
        (["seed"], [tool("f", {"properties": {"a": {"$ref": "#/x"}}})], {}, Errno.EINVAL, "#/x"),
        (["seed"], [tool("f", {"properties": {}, "minProperties": 1})], {}, Errno.ENOTSUP, "minProperties"),
        (["seed"], [tool("f", {"properties": {"a": {"type": "string", "pattern": "a\\b"}}})], {}, Errno.ENOTSUP, "ancho"),
        (["seed"], [tool("f", {"required": ["a"]})], {}, Errno.EINVAL, "requires 'a'"),
        (["hermes, qwen, glm"], [{"type": "function"}], {}, Errno.EINVAL, "no name"),
    ],
)  # fmt: skip
def test_what_no_grammar_can_be_made_of_is_said(
    forms: list[str], tools: list[dict[str, Any]], more: dict[str, Any], errno: Errno, words: str
) -> None:
    with pytest.raises(SyscallError, match=words) as caught:
        call_grammar([BY_NAME[name] for name in forms], tools, **more)
    assert caught.value.errno is errno


def _deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def _alternatives(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"anyOf": [schema, {"type": "integer"}]}
    return schema


@pytest.mark.parametrize("form", ["seed", "hermes, qwen, glm", "lfm"])
@pytest.mark.parametrize(
    "schema",
    [
        3, {"type": 5}, {"type": "strnig"}, {"enum": 5}, {"enum": []}, {"enum": [object()]}, {"enum": [float("nan")]},
        {"const": "\ud800"}, {"anyOf": 5}, {"anyOf": []}, {"anyOf": [5]}, {"$ref": 5}, {"$ref": "#/nowhere"},
        {"type": "string", "pattern": 5}, {"type": "string", "minLength": "x"}, {"type": "string", "maxLength": -1},
        {"type": "array", "items": 5}, {"type": "array", "minItems": 10**9}, {"type": "object", "properties": 5},
        {"type": "object", "required": 5}, {"type": "object", "properties": {5: {}}}, _deep(5000), _alternatives(5000),
        {"enum": ["x"] * 30_000},
    ],
    ids=range(24),
)  # fmt: skip
def test_what_is_no_schema_or_beyond_any_use_is_refused(form: str, schema: Any) -> None:
    with pytest.raises(SyscallError, match=r"no schema|refers to") as caught:
        call_grammar([BY_NAME[form]], [tool("f", {"type": "object", "properties": {"a": schema}})])
    assert caught.value.errno is Errno.EINVAL


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_a_schema_that_is_its_own_alternative_ends(form: CallFormat) -> None:
    """Forms that embed the schema leave it to the engine."""
    with suppress(SyscallError):
        call_grammar([form], [tool("f", {"properties": {"a": {"anyOf": [{"$ref": "#/properties/a"}]}}})])


@pytest.mark.parametrize("no_tool", [3, "x", None, {"function": 3}])
def test_what_is_no_tool_is_refused(no_tool: Any) -> None:
    with pytest.raises(SyscallError, match=r"^EINVAL: .*name"):
        call_grammar(FORMATS, [no_tool])


def test_the_values_of_an_enum_are_looked_at_once() -> None:
    """Not each with all others (calls by tags, where a schema says what text is)."""
    values = [f"x{number}" for number in range(300)]
    looked = Counted(values)
    call_grammar([BY_NAME["seed"]], [tool("f", {"type": "object", "properties": {"a": {"enum": looked}}})])
    assert looked.times < 20


class Counted(list[str]):
    """A list that counts how often it is gone through."""

    times = 0

    def __iter__(self) -> Iterator[str]:
        self.times += 1
        return super().__iter__()

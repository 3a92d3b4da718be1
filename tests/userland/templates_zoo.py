"""Chat templates in the shapes that models are published with, written for the tests, and conversations for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

# What each is made like: chatml; llama-2 (roles must alternate, a space before the answer); role-tokens is Phi-3
# (a role is joined into a token, an eos at the very end); gemma (no system role); qwen-3 (thoughts in the last answer
# only, tools); r1 (thoughts are begun in the prompt and dropped); harmony (channels, a date); parts (content as a list);
# documents (Command R's, and much of jinja2).
TEMPLATES = {
    file.stem: file.read_text(encoding="utf-8") for file in sorted(Path(__file__).parent.joinpath("templates").glob("*"))
}

SCHEMA = {
    "type": "function",
    "function": {
        "name": "look",
        "description": 'Look, <b>now</b> & "then" <|im_end|>',
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
    },
}


@st.composite
def conversations(draw: st.DrawFn, text: st.SearchStrategy[str]) -> list[dict[str, Any]]:
    """Five turns at most, with instructions, thoughts, calls and their results."""
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(text)})
    for _ in range(draw(st.integers(1, 5))):
        messages.append({"role": "user", "content": draw(text)})
        answer: dict[str, Any] = {"role": "assistant", "content": draw(text)}
        if draw(st.booleans()):
            answer[draw(st.sampled_from(["reasoning_content", "thinking", "reasoning"]))] = draw(text)
        if draw(st.integers(0, 3)) == 0:
            arguments = draw(st.one_of(st.just({"at": draw(text), "n": [1, 2.5, None, True]}), text))
            call = {"type": "function", "id": "1", "function": {"name": "look", "arguments": arguments}}
            messages += [
                {"role": "assistant", "content": draw(st.sampled_from([None, ""])), "tool_calls": [call]},
                {"role": "tool", "name": "look", "tool_call_id": "1", "content": draw(text)},
            ]
        messages.append(answer)
    return messages[: len(messages) - draw(st.integers(0, 1))]


def templates() -> st.SearchStrategy[dict[str, Any]]:
    """The files that hold a model's templates: one or several, in each place where they are looked for."""
    sources = st.sampled_from(list(TEMPLATES.values()))

    @st.composite
    def files(draw: st.DrawFn) -> dict[str, Any]:
        where = draw(st.sampled_from(["file", "configuration", "list", "folder", "both"]))
        one, other = draw(sources), draw(sources)
        if where == "file":
            return {"chat_template.jinja": one}
        if where == "configuration":
            return {"tokenizer_config.json": {"chat_template": one}}
        if where == "list":
            named = [{"name": "default", "template": one}, {"name": "tool_use", "template": other}]
            return {"tokenizer_config.json": {"chat_template": named[draw(st.integers(0, 1)) :]}}
        if where == "both":
            return {"chat_template.jinja": one, "tokenizer_config.json": {"chat_template": other}}
        return {"chat_template.jinja": one, "additional_chat_templates/tool_use.jinja": other}

    return files()

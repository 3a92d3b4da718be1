"""Chat templates in the shapes that models are published with, written for the tests, and conversations for them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{{ nl }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROLE_TOKENS = (  # Phi-3: the role is joined into a token, and an eos stands at the very end
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set system_message = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}{% set rest = messages[1:] %}{% else %}{% set system_message = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + (system_message if loop.first else '') + m['content'].strip() + ' [/INST]' }}{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""
GEMMA = """{{ bos_token }}{%- if messages[0].role == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}
{%- for m in messages -%}
    {%- set role = 'model' if m.role == 'assistant' else m.role -%}
    {{ '<|im_start|>' + role + '\n' + m.content | trim + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>model\n' }}{%- endif -%}"""
QWEN3 = r"""
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
    {{- "# Tools\n<tools>" }}
    {%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\n' }}{%- endif %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '<tool_call>\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
                {{- '}\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' }}{{- content }}{{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"""
R1 = (  # thoughts are begun in the prompt and dropped from the past
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}"
    "{% elif m.role == 'system' %}{{ m.content }}{% elif m.role == 'tool' %}<|user|>{{ m.content | indent(2) }}"
    "{% else %}{% set content = m.content or '' %}<|assistant|>"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{ content }}</s>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
HARMONY = """
{%- macro channel(name, text) -%}<|channel|>{{ name }}<|message|>{{ text }}{%- endmacro -%}
<|im_start|>system<|message|>Today: {{ strftime_now("%Y-%m-%d") }}. Reasoning: {{ reasoning_effort | default('medium') }}<|end|>
{%- for m in messages -%}
    {%- if m.role == 'assistant' -%}
        {%- if m.thinking is defined and loop.last -%}<|im_start|>assistant{{ channel('analysis', m.thinking) }}<|end|>{%- endif -%}
        {%- generation -%}<|im_start|>assistant{{ channel('final', m.content) }}{%- endgeneration -%}
        {%- if loop.last and not add_generation_prompt -%}<|return|>{%- else -%}<|end|>{%- endif -%}
    {%- elif m.role == 'tool' -%}
        <|im_start|>{{ 'functions.' ~ (m.name or 'f') }} to=assistant<|message|>{{ m.content | tojson(ensure_ascii=true) }}<|end|>
    {%- else -%}
        <|im_start|>{{ 'developer' if m.role == 'system' else m.role }}<|message|>{{ m.content }}<|end|>
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant{%- endif -%}"""
PARTS = (  # content of parts, text among them
    "{% for m in messages %}<|im_start|>{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% else %}<image>{% endif %}{% endfor %}"
    "{% endif %}<|eot|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)
RAG = (
    "{% for d in documents or [] %}{{ loop.index }}. {{ d.title | upper }}: {{ d.text | wordcount }} {{ d.text }}\n{% endfor %}"
    "{% for m in messages %}{% if loop.index > 40 %}{% break %}{% endif %}{{ m.role | title }}: {{ m.content | default('', true) "
    "| replace('hello', '[INST]') }}\n\n{% endfor %}{% for t in tools or [] %}{{ t | tojson(indent=2, sort_keys=true) }}"
    "{% endfor %}{{ 'Assistant:' if add_generation_prompt }}"
)
TEMPLATES = {
    "chatml": CHATML, "role tokens": ROLE_TOKENS, "llama 2": LLAMA2, "gemma": GEMMA, "qwen 3": QWEN3, "r1": R1,
    "harmony": HARMONY, "parts": PARTS, "documents": RAG,
}  # fmt: skip

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

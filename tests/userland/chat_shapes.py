"""Chat templates in the shapes that decide how a conversation's log grows, and a log to let it grow in.

Each shape is that of a published family, as short as it can be; `ends` names the tokens that its models end with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llmasos.syscalls.records import LogRecord
from llmasos.userland.sdk.chat import ChatFormat, Turn
from llmasos.userland.sdk.dialogue import Dialogue, Message, Setup, dialogue, packed

_LOOP = "{% for m in messages %}"
_CALLS = (
    "{% if m.tool_calls %}{% for c in m.tool_calls %}{% set c = c.function %}\n<tool_call>\n"
    '{"name": "{{ c.name }}", "arguments": {{ c.arguments | tojson }}}\n</tool_call>{% endfor %}{% endif %}'
)


@dataclass(frozen=True)
class Shape:
    """A template, the tokens that end an answer of its models, and how these write a thought before an answer."""

    source: str
    ends: tuple[str, ...]
    thought: str = ""
    drops: bool = False  # thoughts of earlier answers
    system: bool = True


SHAPES: dict[str, Shape] = {
    "chatml": Shape(
        _LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}" + _CALLS + "<|im_end|>{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ("<|im_end|>", "</s>"),
    ),
    "trimmed": Shape(
        "{{ bos_token }}" + _LOOP + "<|user|>{{ m.role }}<|end|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
        "{% if add_generation_prompt %}<|user|>assistant<|end|>\n\n{% endif %}",
        ("<|eot|>",),
    ),
    "space before and after the answer": Shape(
        _LOOP + "{% if m.role == 'assistant' %}{{ ' ' + m.content | trim + ' ' + eos_token }}"
        "{% else %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}{% endif %}{% endfor %}",
        ("</s>",),
    ),
    "space before the answer": Shape(
        "{{ bos_token }}" + _LOOP + "{% if m.role == 'assistant' %}{{ ' ' + m.content | trim + eos_token }}"
        "{% else %}{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}{% endfor %}",
        ("</s>",),
    ),
    "an eos at the very end": Shape(
        "{{ bos_token }}" + _LOOP + "<|{{ 'user' if m.role == 'system' else m.role }}|>\n{{ m.content }}<|end|>{{ '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        ("<|end|>", "</s>"),
    ),
    "thoughts in the last answer only": Shape(
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
        "{% endif %}{% endfor %}" + _LOOP + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% if loop.index0 > ns.last or preserve_thinking %}{% if m.reasoning_content %}"
        "<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{% endif %}{% endif %}{{ m.content }}" + _CALLS
        + "<|im_end|>{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
        ("<|im_end|>",),
        "<think>\n{}\n</think>\n\n",
        drops=True,
    ),
    "a thought in the prompt": Shape(
        "{{ bos_token }}" + _LOOP + "{% if m.role == 'assistant' %}{% set c = m.content %}{% if '</think>' in c %}"
        "{% set c = c.split('</think>')[-1] %}{% endif %}<|assistant|>{{ c }}</s>{% else %}<|user|>{{ m.content }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}",
        ("</s>",),
        "{}\n</think>\n\n",
        drops=True,
    ),
    "channels": Shape(
        "<|im_start|>system<|message|>{{ strftime_now('%Y-%m-%d') }}<|end|>" + _LOOP
        + "{% if m.role == 'assistant' %}{% if m.thinking is defined and loop.last %}"
        "<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
        "<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
        "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}"
        "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        ("<|return|>",),
        "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>",
        drops=True,
    ),
    "a role's opening ends the answer": Shape(
        "[gMASK]" + _LOOP + "<|{{ 'observation' if m.role == 'tool' else m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ("<|user|>", "<|observation|>", "</s>"),
    ),
    "no system role": Shape(
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}"
        + _LOOP + "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}"
        "{% endif %}<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<|im_end|>"
        "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}",
        ("<|im_end|>", "</s>"),
        system=False,
    ),
}  # fmt: skip


@dataclass
class Ledger:
    """A process's log and records, as the kernel keeps them."""

    log: list[int] = field(default_factory=list)
    records: list[LogRecord] = field(default_factory=list)
    cuts: int = 0  # tokens that turns have cut

    def do(self, turn: Turn) -> None:
        self.cuts += len(self.log) - turn.keep
        if turn.keep < len(self.log):
            self.truncate(turn.keep)
        self.records.append(LogRecord(turn.keep, packed(turn.entry)))
        self.log += turn.ids

    def truncate(self, length: int) -> None:
        self.log = self.log[:length]
        self.records = [record for record in self.records if record.position < length]

    @property
    def known(self) -> Dialogue:
        found = dialogue(self.records, self.log)
        assert found is not None
        return found

    def say(self, chat: ChatFormat, *messages: Message, setup: Setup | None = None) -> list[int]:
        """Say something; the ids of the log then."""
        begun = dialogue(self.records, self.log) is not None
        self.do(chat.next(self.known, self.log, messages) if begun else chat.begin(messages, setup or Setup(now=NOON)))
        return self.log

    def answer(self, ids: Sequence[int]) -> None:
        """What the model says to that."""
        self.log = [*self.log, *ids]


NOON = 1_700_000_000.0


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}

"""Chat: the tokens to feed a process for the next turn, by its model's chat template.

Each turn renders the whole conversation, with the answers' own ids in place of their texts; what the log has of it stays,
and only the rest is fed. So any template works: one that only appends makes the log grow; one that rewrites its past
(reasoning models drop earlier thoughts) has the log cut to the common beginning. Roles, tools and messages come from the
process's records (dialogue.py); a log without records is continued by what the template writes between an answer and the
next question.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.sdk.dialogue import Dialogue, Entry, Message, Said, Setup, Span, digest_of
from llmasos.userland.sdk.heard import Heard, heard
from llmasos.userland.sdk.splice import Splice, Spliced, closed
from llmasos.userland.sdk.template import ChatTemplate, Own, Rendering, special
from llmasos.userland.sdk.text import checked
from llmasos.userland.sdk.tokenizer import Tokenizer
from llmasos.userland.sdk.tool_calls import schemas_of
from llmasos.userland.sdk.traits import ANSWER, TOOL, USER, Traits, common, told, traits_of, user

_KEEPING = {"preserve_thinking": True, "clear_thinking": False}  # templates' own switches for keeping thoughts
_THINKING = ("enable_thinking", "thinking")
_EFFORT = ("reasoning_effort", "thinking_effort", "effort")
_LEAD = 24  # characters of a prompt's end that identify it if the template writes nothing before answers


@dataclass(slots=True, frozen=True)
class Turn:
    """The work of the next turn on a log: cut it to `keep` tokens, and feed `ids` with `entry` as their record."""

    keep: int
    ids: list[int]
    entry: Entry


class ChatFormat:
    """The chat template of one tokenizer. Making it raises ENOTSUP if there is no template, EINVAL if the template cannot
    even render a question.

    `window` is the model's context in tokens (0: unknown); a longer text is refused (see `text.checked`). `ends` are the
    ids that end a text by the model's files.
    """

    def __init__(self, tokenizer: Tokenizer, model: str, window: int = 0, ends: Collection[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self._window = window
        self._ends = frozenset(ends)
        self._template = ChatTemplate(tokenizer, window)
        self._traits: dict[bytes, Traits] = {}
        if not tokenizer.settings.templates:
            raise SyscallError(Errno.ENOTSUP, f"{model} has no chat template; feed and generate plain text instead")
        if self.named_only:
            return
        try:
            self.render(Setup(), [user(USER)], prompt=True)
        except SyscallError:
            self.render(Setup(tools=[TOOL]), [user(USER)], prompt=True)  # a template for tools only

    @property
    def named_only(self) -> bool:
        """Whether there are several templates and no default: a conversation must name one."""
        return not {"default", "tool_use"} & set(self.tokenizer.settings.templates)

    # --- whole conversations, without a process ---

    def first(self, messages: Sequence[Message], setup: Setup | None = None) -> list[int]:
        """The ids of the beginning of a conversation, ready for the model's answer."""
        return self.render(setup or Setup(), messages, prompt=messages[-1]["role"] != "assistant").ids()

    def whole(self, messages: Sequence[Message], answer: str | None) -> list[int]:
        """The ids of a conversation whose last message has been answered as far as `answer` (None: it is no question)."""
        text = self.render(Setup(), messages, prompt=answer is not None)
        if not answer:
            return text.ids()
        return self.tokenizer.encode(text.plain + answer, control=True)

    def opening(self, system: str, setup: Setup | None = None) -> list[int]:
        """The ids of a conversation that has only instructions so far; empty if the template cannot begin with them
        alone."""
        setup, told = setup or Setup(), {"role": "system", "content": checked(system, self._window)}
        try:
            alone = self.render(setup, [told])
            whole = self.render(setup, [told, user(USER)], prompt=True)
        except SyscallError as error:
            if error.errno is not Errno.EINVAL:
                raise
            self.render(setup, [told, user(USER)], prompt=True)  # a template that takes no instructions says so now
            return []
        return alone.ids() if whole.text.startswith(alone.text) else []

    # --- the next turn of a process ---

    def begin(self, messages: Sequence[Message], setup: Setup, *, allow_special: bool = False) -> Turn:
        """The beginning of a conversation, for an empty log. Of instructions alone: the part that can stand before a
        question."""
        said = [Said(dict(message), special=allow_special) for message in messages]
        if said and all(message["role"] in ("system", "developer") for message in messages):
            content = messages[0].get("content") if len(messages) == 1 else None
            content = special(content) if allow_special else content
            ids = self.opening(content, setup) if isinstance(content, str) else []
            return Turn(0, ids, Entry(said, setup, len(ids), digest=digest_of(ids)))
        return self.next(Dialogue(setup), [], messages, with_setup=True, allow_special=allow_special)

    def next(
        self,
        dialogue: Dialogue,
        log: Sequence[int],
        messages: Sequence[Message],
        *,
        with_setup: bool = False,
        allow_special: bool = False,
    ) -> Turn:
        """The turn that adds `messages` to a conversation whose ids are `log`. With `allow_special`, control tokens that
        they spell are control tokens. Raises EINVAL, in the template's words, for messages that it does not take."""
        setup = self._kept(dialogue.setup)
        said = list(dialogue.said)
        if dialogue.asked or len(log) > dialogue.end:
            said.append(self.answered(dialogue, log))
        said += [Said(dict(message), special=allow_special) for message in messages]
        if not said:
            raise SyscallError(Errno.EINVAL, "the conversation is empty; it has at least one message")
        before, prompt = said, said[-1].message["role"] != "assistant"
        spliced, lead = self._spliced(setup, said, log, prompt=prompt)
        ids, keep, said = spliced.ids, common(spliced.ids, log), spliced.said
        if setup.thoughts == "keep" and keep < len(log) and spliced.behind >= 0:
            stays = len(log) - (0 if spliced.end_stayed else self._closed(setup, log[dialogue.end :]))
            if keep < stays:  # the template would rewrite what stays here: the outcome is ours, not the template's
                ids, keep, said = [*log[:stays], *ids[spliced.behind :]], stays, before
        known = dialogue.known_before(keep if keep < len(log) else keep + 1)  # a growing log keeps all its messages
        setup_told = dialogue.setup if with_setup or known == 0 else None
        fed = ids[keep:]
        entry = Entry(said[known:], setup_told, len(fed), prompt, lead, known, digest_of(fed))
        return Turn(keep, fed, entry)

    def continued(self, log_end: Sequence[int], messages: Sequence[Message], setup: Setup | None = None) -> list[int]:
        """The ids that continue a conversation of which only the ids are known; the log ends in `log_end`."""
        setup = setup or Setup()
        answer = [user(USER), {"role": "assistant", "content": Own(ANSWER, ())}]
        rendering = self.render(setup, [*answer, *messages], prompt=True)
        if rendering.places[0] is None:
            raise SyscallError(
                Errno.ENOTSUP,
                f"the chat template of {self.model} writes answers anew; spawn a process to chat with",
            )
        ids, close = rendering.after(0), list(self.traits(setup).close)
        for overlap in range(min(len(close), len(log_end)), 0, -1):
            if list(log_end[-overlap:]) == close[:overlap] == ids[:overlap]:
                return ids[overlap:]
        return ids

    @property
    def close_length(self) -> int:
        """The number of tokens at the log's end that `continued` needs."""
        return len(self.traits(Setup()).close)

    # --- what the model says ---

    def stop_ids(self, setup: Setup | None = None) -> list[int]:
        """The ids that end an answer besides the model's own: the added token with which the template closes it."""
        return list(self.traits(setup or Setup()).stops)

    def hear(self, setup: Setup, ids: Sequence[int], lead: str) -> Heard:
        """An answer taken apart."""
        traits = self.traits(setup)
        return heard(self.tokenizer, ids, traits.marks, traits.formats, schemas_of(setup.tools or ()), lead)

    def traits(self, setup: Setup) -> Traits:
        """What the template does with answers, found by rendering probes. Raises EINVAL if it renders none."""
        aside = {"now": 0.0, "thought_tokens": -1, "system": "", "stop": [], "max_tokens": 0}
        key = msgspec.msgpack.encode(msgspec.structs.replace(setup, **aside))
        found = self._traits.get(key)
        if found is None:
            if len(self._traits) > 32:
                self._traits.clear()
            setup = self._kept(setup)
            source = self._template.source(setup.template, tools=setup.tools is not None)

            def render(messages: Sequence[Message], *, prompt: bool = False, tooled: bool = False) -> Rendering:
                tools = [TOOL] if tooled and setup.tools is None else setup.tools
                return self.render(msgspec.structs.replace(setup, tools=tools), messages, prompt=prompt)

            found = self._traits[key] = traits_of(self.tokenizer, source, render)
        return found

    def variables(self, thinking: bool | str | None, more: dict[str, Any], template: str | None = None) -> dict[str, Any]:
        """The template's variables for `thinking` (on, off, or an effort by name), and further ones."""
        source = self._template.source(template) if template is not None or thinking is not None else ""
        if thinking is None:
            return dict(more)
        names = _EFFORT if isinstance(thinking, str) else _THINKING
        there = [name for name in names if re.search(rf"\b{name}\b", source)]
        if not there:
            raise SyscallError(
                Errno.EINVAL,
                f"the chat template of {self.model} has no switch for thinking={thinking!r} (looked for "
                f"{', '.join(names)}); pass its own variables as template={{...}}",
            )
        return {**dict.fromkeys(there, thinking), **more}

    def check_tools(self, template: str | None) -> None:
        """Raise EINVAL if the template knows neither definitions, calls nor results of tools: the model would never hear
        of them."""
        if re.search(r"\btool(s|_calls?|_responses?)?\b", self._template.source(template, tools=True)) is None:
            raise SyscallError(
                Errno.EINVAL,
                f"the chat template of {self.model} has no place for tools, and the model would not hear of them; "
                "describe them in the system text, or use a model whose template has one",
            )

    def known_variables(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Those variables of another model's template that this template knows; switches get the names that they have
        here."""
        source = self._template.source() if not self.named_only else ""
        found: dict[str, Any] = {}
        for name, value in variables.items():
            names = next((alike for alike in (_THINKING, _EFFORT) if name in alike), (name,))
            found |= {one: value for one in names if re.search(rf"\b{one}\b", source)}
        return found

    # --- rendering ---

    def _kept(self, setup: Setup) -> Setup:
        """The setup, with the template's own switch for `thoughts="keep"` if it has one."""
        if setup.thoughts != "keep":
            return setup
        source = self._template.source(setup.template, tools=setup.tools is not None)
        switches = {name: value for name, value in _KEEPING.items() if re.search(rf"\b{name}\b", source)}
        return msgspec.structs.replace(setup, variables={**switches, **setup.variables})

    @staticmethod
    def time_of(setup: Setup) -> datetime | None:
        """The time that the template may write; None: now."""
        return datetime.fromtimestamp(setup.now) if setup.now else None

    def render(self, setup: Setup, messages: Sequence[Message], *, prompt: bool = False) -> Rendering:
        """Messages as the template writes them. Raises EINVAL in its words."""
        for message in messages:
            for value in message.values():
                if isinstance(value, str):
                    checked(value, self._window)

        def render(told: Sequence[Message]) -> Rendering:
            return self._template.render(
                told,
                prompt=prompt,
                tools=setup.tools,
                variables=setup.variables,
                now=self.time_of(setup),
                template=setup.template,
            )

        try:
            return render(messages)
        except SyscallError as error:
            if error.errno is not Errno.EINVAL or not any(message.get("tool_calls") for message in messages):
                raise
            try:  # some templates join arguments to strings: they need them as JSON
                return render([_with_json(message) for message in messages])
            except SyscallError:
                raise error from None

    def _lead(self, setup: Setup, messages: Sequence[Message], prompt: Rendering) -> str:
        """The end of a prompt: what the template writes before an answer, or the end of the text if it writes nothing."""
        plain = self.render(setup, messages).text
        same = common(prompt.text, plain)
        lead = prompt.text[same:]
        return lead if len(lead.strip()) >= 4 else prompt.text[-_LEAD:]

    # --- putting a conversation together ---

    def answered(self, dialogue: Dialogue, log: Sequence[int]) -> Said:
        """The model's present answer as a message."""
        start, ids = dialogue.end, log[dialogue.end :]
        stripped = ids[: len(ids) - self._closed(dialogue.setup, ids)]
        found = self.hear(dialogue.setup, stripped, dialogue.lead)
        message: Message = {"role": "assistant", "content": found.answer}
        if found.thought:
            message["reasoning_content"] = found.thought
        if found.calls and not found.bad:
            message["tool_calls"] = [told(call, i) for i, call in enumerate(found.calls)]
        elif found.bad:  # a malformed call stays text
            message["content"] = self.tokenizer.decode(stripped[found.thought_end :]).strip()

        def span(part: Span | None) -> Span | None:
            return None if part is None else (part[0] + start, part[1] + start)

        part, traits = found.answer_at, self.traits(dialogue.setup)
        if part is None and found.thought and not found.calls and traits.thoughts == "dropped":
            part = (len(stripped), len(stripped))  # it had not begun to answer
        if part is not None and found.thought and traits.gap:
            part = (min(part[0], found.thought_end), part[1])
        answer = None if found.bad else span(part)
        return Said(message, (start, len(log)), span(found.thought_at), answer, dialogue.lead)

    def ended(self, dialogue: Dialogue, log: Sequence[int]) -> bool:
        """Whether the model's present answer has ended by itself."""
        return self._closed(dialogue.setup, log[dialogue.end :]) > 0

    def _closed(self, setup: Setup, ids: Sequence[int]) -> int:
        """The number of tokens at an answer's end that are not part of it."""
        return closed(self.tokenizer, self.traits(setup), self._ends, ids)

    def _spliced(self, setup: Setup, said: list[Said], log: Sequence[int], *, prompt: bool) -> tuple[Spliced, str]:
        """A conversation's ids, and the end of its prompt."""
        splice = Splice(self.tokenizer, self.traits(setup), self._ends, said, log)
        rendering = self.render(setup, splice.messages, prompt=prompt)
        return splice.into(rendering), self._lead(setup, splice.messages, rendering) if prompt else ""


def _with_json(message: Message) -> Message:
    """A message with the arguments of its calls as JSON."""
    called = message.get("tool_calls")
    if not called or not isinstance(called, list) or not all(_is_call(call) for call in called):
        return message
    calls = [
        {
            **call,
            "function": {
                **call["function"],
                "arguments": msgspec.json.encode(call["function"].get("arguments", {})).decode(),
            },
        }
        for call in called
    ]
    return {**message, "tool_calls": calls}


def _is_call(call: Any) -> bool:
    return isinstance(call, Mapping) and isinstance(call.get("function"), Mapping)

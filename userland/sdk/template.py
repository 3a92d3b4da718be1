"""Conversations as a model's chat template writes them, as token ids.

The ids are those of transformers' `apply_chat_template(..., sanitize_control_tokens=True)`: the template's own text is
control, messages are text. Two gaps of that call are closed here: keys of dictionaries are text too, and roles, which
templates join into control tokens, are of a fixed set. An answer of the model can stand in a message with its own ids,
which then stand in the rendering in place of its text.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.sdk.text import checked
from llmasos.userland.sdk.tokenizer import MARK, UNMARK, Token, Tokenizer

ROLES = frozenset(
    {
        "system", "developer", "user", "assistant", "model", "tool", "function", "ipython", "observation", "environment",
        "context", "document", "documents", "data", "tool_call", "tool_calls", "tool_response", "tool_responses",
        "tool_result", "tool_results", "critic", "latest_reminder",
    }
)  # fmt: skip
OF_THE_TEMPLATE = frozenset({"messages", "tools", "documents", "add_generation_prompt"})  # it gets them anyway
_REASONING = ("reasoning_content", "thinking", "reasoning")
_FIRST_SIGN, _LAST_SIGN = 0xF0002, 0xFFFFD  # private use: around answers that have their own ids


@dataclass(frozen=True, slots=True)
class Own:
    """A model's text in place of a string in a message, with the ids that the model made."""

    text: str
    ids: tuple[int, ...]


class Special(str):
    """A text of a message whose control tokens are control tokens, because its author says so."""

    __slots__ = ()


class Parts(tuple[str, ...]):
    """A text put together from texts, some of them special."""

    __slots__ = ()


def special(value: Any) -> Any:
    """A message's value with all its texts special. Keys are names, and never control."""
    if isinstance(value, str):
        return Special(value)
    if isinstance(value, Mapping):
        return {key: item if key == "role" else special(item) for key, item in value.items()}
    return [special(item) for item in value] if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True, slots=True)
class Rendering:
    """A conversation as text. If it is `marked`, marks stand around text that spells control tokens and is none; `places`
    are the places of the messages' `Own` texts in their order, None for those that the template leaves out."""

    tokenizer: Tokenizer
    text: str
    marked: bool
    owns: tuple[Own, ...] = ()
    places: tuple[tuple[int, int] | None, ...] = ()

    @property
    def plain(self) -> str:
        """The text without marks."""
        return self.text.replace(MARK, "").replace(UNMARK, "") if self.marked else self.text

    def tokens(self) -> list[Token]:
        """The tokens of the text, those of the answers included."""
        return self.tokenizer.encode_marked(self.text) if self.marked else self.tokenizer.tokens(self.text)

    def ids(self) -> list[int]:
        """The ids, with the answers' own in place of their text."""
        shown = sorted((place, own) for place, own in zip(self.places, self.owns, strict=True) if place is not None)
        if not shown:
            return self.tokenizer.encode_text(self.text, marked=self.marked)
        stretches = self.stretches([place for place, _ in shown])
        ids = stretches[0]
        for (_, own), behind in zip(shown, stretches[1:], strict=True):
            ids = [*ids, *own.ids, *behind]
        return ids

    def stretches(self, places: Sequence[tuple[int, int]], prompted: Collection[int] = ()) -> list[list[int]]:
        """The ids of what stands before, between and behind places of the text, which are in order and do not overlap.
        Before the places numbered in `prompted` a prompt has ended: a space that stood there stays a token."""
        tokens, done, found = self.tokens(), 0, list[list[int]]()
        if not places:
            return [[token.id for token in tokens]]
        starts = [token.start for token in tokens]
        for number, (start, end) in enumerate([*places, (len(self.text), 0)]):
            near = tokens[max(0, bisect_left(starts, done) - 1) : bisect_left(starts, start)]
            prompt = number in prompted
            last = next((i for i in range(len(near) - 1, -1, -1) if near[i].id in self.tokenizer.added), None)
            if prompt and last is not None and near[last].start >= done:
                # Behind an added token a prompt's end is encoded as when it was one.
                tail = self.tokenizer.encode_text(self.text[near[last].start : start], marked=self.marked)
                found.append([*self._between(near[:last], done, near[last].start), *tail])
            else:
                found.append(self._between(near, done, start, spaces=prompt))
            done = end
        return found

    def before(self, number: int) -> list[int]:
        """The ids before the answer of that number, with the other answers' own."""
        return self._part(number, 0)

    def after(self, number: int) -> list[int]:
        """The ids behind the answer of that number, with the other answers' own."""
        return self._part(number, 1)

    def _part(self, number: int, side: int) -> list[int]:
        place = self.places[number]
        if place is None:
            raise SyscallError(Errno.EINVAL, f"the chat template does not show answer {number} as it is")
        at = place[side]
        tokens, ids, done = self.tokens(), list[int](), at if side else 0
        for start_end, own in sorted((p, o) for p, o in zip(self.places, self.owns, strict=True) if p is not None):
            start, end = start_end
            if (start >= at and start_end != place) if side else end <= at and start_end != place:
                ids += self._between(tokens, done, start)
                ids += own.ids
                done = end
        return ids + self._between(tokens, done, len(self.text) if side else at)

    def _between(self, tokens: Sequence[Token], start: int, end: int, *, spaces: bool = False) -> list[int]:
        """The ids of the text between two answers. If a token reaches into an answer, the part outside is encoded by
        itself, unless it is a space before one (without `spaces`): sentencepiece writes that with the word."""
        if start >= end:
            return []
        ids: list[int] = []
        behind = [token.end for token in tokens if token.start < start < token.end <= end]
        if start and behind:
            ids += self._alone(start, max(behind))
        ids += [token.id for token in tokens if start <= token.start and token.end <= end and token.start < end]
        before = [token.start for token in tokens if start <= token.start < end < token.end]
        if before and (spaces or self.text[min(before) : end].strip(" ")):
            ids += self._alone(min(before), end)
        return ids

    def _alone(self, start: int, end: int) -> list[int]:
        return [token.id for token in self.tokenizer.encode_inside(self.text[start:end])]


class ChatTemplate:
    """The chat templates of one tokenizer. A broken one raises only when it is used.

    `window` is the model's context in tokens (0: unknown); a longer text is refused (see `text.checked`).
    """

    def __init__(self, tokenizer: Tokenizer, window: int = 0) -> None:
        self.tokenizer = tokenizer
        self._window = window
        self._sources = tokenizer.settings.templates

    def source(self, template: str | None = None, *, tools: bool = False) -> str:
        """The template to use: the named one, else the one for tools if there are tools, else the default one.

        Raises SyscallError: ENOTSUP if the model has none, EINVAL if it has none of that name.
        """
        names = sorted(self._sources)
        if not names:
            raise SyscallError(Errno.ENOTSUP, "the model has no chat template; feed and generate plain text instead")
        if template is not None:
            if template not in self._sources:
                raise SyscallError(
                    Errno.EINVAL, f"the model has no chat template {template!r}; it has {', '.join(names)}"
                )
            return self._sources[template]
        for name in ("tool_use", "default") if tools else ("default",):
            if name in self._sources:
                return self._sources[name]
        raise SyscallError(
            Errno.EINVAL, f"the model has several chat templates and no default; name one: {', '.join(names)}"
        )

    def ids(self, messages: Sequence[Mapping[str, Any]], *, prompt: bool, **options: Any) -> list[int]:
        """The ids of a conversation; see `render`."""
        return self.render(messages, prompt=prompt, **options).ids()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        now: datetime | None = None,
        allow_special: bool = False,
    ) -> Rendering:
        """A conversation as the template writes it, with `prompt` up to where the model answers.

        `variables` are further ones of the template (`enable_thinking`); `now` is the time that it may write. With
        `allow_special` the messages may spell control tokens. Instructions that the template refuses (a system role that
        it does not know) go before the first question. Raises SyscallError: EINVAL with the template's words.
        """
        source = self.source(template, tools=tools is not None)
        told = _checked(messages, any_role=allow_special)
        if any(isinstance(message.get("content"), (list, tuple)) for message in told) and not _takes_parts(source):
            told = [_joined(message) for message in told]
        try:
            return self._rendered(source, told, prompt, tools, documents, variables or {}, now, allow_special)
        except SyscallError as refused:
            merged = _merged(told)
            if refused.errno is not Errno.EINVAL or merged is None:
                raise
            try:
                return self._rendered(source, merged, prompt, tools, documents, variables or {}, now, allow_special)
            except SyscallError:
                raise refused from None

    def _rendered(
        self,
        source: str,
        messages: list[dict[str, Any]],
        prompt: bool,
        tools: Any,
        documents: Any,
        variables: Mapping[str, Any],
        now: datetime | None,
        allow_special: bool,
    ) -> Rendering:
        from llmasos.userland.sdk.sandbox import compiled

        given = {**self.tokenizer.settings.named, **variables}
        everything = (messages, tools, documents, given)
        owns: list[Own] = []
        signs = _signs(everything)
        spellings = None if allow_special else self.tokenizer.control(source)

        def said(text: str) -> str:
            checked(text, self._window)
            if isinstance(text, Special):
                return text.replace(MARK, "").replace(UNMARK, "")
            return text if spellings is None else spellings.mark(text)

        def own(one: Own) -> str:
            owns.append(one)
            begin = signs + 2 * (len(owns) - 1)
            if begin > _LAST_SIGN:
                raise SyscallError(Errno.E2BIG, f"a conversation has at most {(_LAST_SIGN - signs) // 2} answers")
            return chr(begin) + said(one.text.strip()) + chr(begin + 1)

        told = [_with_reasoning(message) for message in _plain(messages, said, own)]
        values = {name: _plain(value, said, own) for name, value in variables.items()}
        if taken := OF_THE_TEMPLATE & values.keys():
            raise SyscallError(Errno.EINVAL, f"{min(taken)} is no variable of the template; pass it by itself")
        text = compiled(source).render(
            {
                **self.tokenizer.settings.named,
                **values,
                "messages": told,
                "tools": None if tools is None else _plain(list(tools), said, own),
                "documents": None if documents is None else _plain(list(documents), said, own),
                "add_generation_prompt": prompt,
            },
            now,
        )
        clean, places = _without_signs(text, signs, len(owns))
        return Rendering(self.tokenizer, clean, not allow_special, tuple(owns), places)


def _checked(messages: Sequence[Mapping[str, Any]], *, any_role: bool) -> list[dict[str, Any]]:
    """The messages as templates take them, without fields that are None."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        raise SyscallError(Errno.EINVAL, f"a conversation is a list of messages, not {type(messages).__name__}")
    told = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise SyscallError(
                Errno.EINVAL,
                f'a message is a dictionary like {{"role": "user", "content": "..."}}, not {message!r:.80}',
            )
        role = message.get("role")
        if not isinstance(role, str) or (role not in ROLES and not any_role):
            found = "there is none" if role is None else f"{role!r:.80} was found"
            raise SyscallError(Errno.EINVAL, f"a message has a role, one of {', '.join(sorted(ROLES))}; {found}")
        told.append({key: value for key, value in message.items() if value is not None})
    if not told:
        raise SyscallError(Errno.EINVAL, "the conversation is empty; it has at least one message")
    return told


@functools.lru_cache(maxsize=32)
def _takes_parts(source: str) -> bool:
    """Whether a template knows contents that are lists of parts; others would write them as Python prints them."""
    from llmasos.userland.sdk.sandbox import compiled

    asked = [{"role": "user", "content": [{"type": "text", "text": "alpha"}]}]
    try:
        text = compiled(source).render(
            {"messages": asked, "add_generation_prompt": True, "bos_token": "", "eos_token": ""}
        )
    except SyscallError:
        return False
    return "alpha" in text and "'alpha'" not in text and '"alpha"' not in text


def _joined(message: dict[str, Any]) -> dict[str, Any]:
    """A message with the text parts of its content joined."""
    content = message.get("content")
    if not isinstance(content, (list, tuple)):
        return message
    texts: list[Any] = [
        part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part for part in content
    ]
    if len(texts) == 1 and isinstance(texts[0], Own):
        return {**message, "content": texts[0]}
    for part in texts:
        if not isinstance(part, str):
            raise SyscallError(
                Errno.EINVAL,
                f'the chat template takes text, or parts like {{"type": "text", "text": "..."}}, not {part!r:.80}',
            )
    whole = "".join(texts)
    return {**message, "content": Special(whole) if all(isinstance(t, Special) for t in texts) else whole}


def _merged(messages: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The conversation with its instructions before the first question, as the makers of models without a system role
    advise; None if it does not begin with instructions."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return None
    system, question = messages[0].get("content"), messages[1].get("content")
    if not isinstance(system, str):
        return None
    trusted = isinstance(system, Special)
    if isinstance(question, str):
        apart = trusted or isinstance(question, Special)
        first: Any = Parts((system, "\n\n", question)) if apart else f"{system}\n\n{question}"
    elif isinstance(question, list):
        text = f"{system}\n\n"
        first = [{"type": "text", "text": Special(text) if trusted else text}, *question]
    else:
        return None
    return [{**messages[1], "content": first}, *messages[2:]]


def _plain(value: Any, said: Callable[[str], str], own: Callable[[Own], str]) -> Any:
    """The part of a value that a template may see: plain data, whose texts (keys too) `said` writes."""
    if isinstance(value, Own):
        return own(value)
    if isinstance(value, Parts):
        return "".join(map(said, value))
    if isinstance(value, str):
        return said(value if isinstance(value, Special) else str.__str__(value))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(key, said, own): _plain(item, said, own) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, said, own) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item, said, own) for item in value)
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", None) == 0:  # a number of numpy's
        return _plain(value.item(), said, own)
    raise SyscallError(
        Errno.EINVAL,
        f"messages, tools and variables are texts, numbers, lists and dictionaries, found {type(value).__name__}: "
        f"{value!r:.60}",
    )


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """A message with its thoughts under the names that templates look for."""
    found = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    return message if found is None else {"thinking": found, **message, "reasoning_content": found}


def _signs(values: Any) -> int:
    """The first characters of a row that occur in none of these values."""
    highest = _FIRST_SIGN - 1
    queue = [values]
    while queue:
        value = queue.pop()
        if isinstance(value, Own):
            value = value.text
        if isinstance(value, str):
            if not value.isascii():
                highest = max(highest, max((ord(c) for c in value if c <= chr(_LAST_SIGN)), default=0))
        elif isinstance(value, Mapping):
            queue += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple)):
            queue += value
    return highest + 1


def _without_signs(text: str, signs: int, count: int) -> tuple[str, tuple[tuple[int, int] | None, ...]]:
    """The text without the signs, and the stretch between each pair of them."""
    if not count:
        return text, ()
    parts: list[str] = []
    at: dict[int, list[int]] = {}
    done = length = 0
    for position, character in enumerate(text):
        number = ord(character) - signs
        if 0 <= number < 2 * count:
            parts.append(text[done:position])
            length += position - done
            done = position + 1
            at.setdefault(number, []).append(length)
    parts.append(text[done:])
    places: list[tuple[int, int] | None] = []
    for number in range(count):
        begins, ends = at.get(2 * number, []), at.get(2 * number + 1, [])
        whole = len(begins) == len(ends) == 1 and begins[0] <= ends[0]
        places.append((begins[0], ends[0]) if whole else None)
    return "".join(parts), tuple(places)

"""A context in another model's vocabulary: the log that `exec` gives a process whose new model has another tokenizer.

Vocabularies of equal size need not be equal, so their contents are compared. The old model's chat template takes a
conversation apart into its turns, and the new one's puts it together; it counts as a conversation only if the old
template makes the same log of it again. Everything else is text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.limits import MAX_TOKENS_PER_CALL
from llmasos.userland.sdk.actions import Language
from llmasos.userland.sdk.dialogue import Dialogue, Entry, Message, packed
from llmasos.userland.sdk.template import ChatTemplate
from llmasos.userland.sdk.tokenizer import Tokenizer

_SYSTEM, _USER, _ANSWER, _NEXT = "alpha", "beta", "gamma", "delta"


def same_words(one: Language, other: Language) -> bool:
    """Whether a log means the same to both models, its chat turns included."""
    if one.tokenizer.settings.templates != other.tokenizer.settings.templates:
        return False
    return one.tokenizer.digest == other.tokenizer.digest or same_tokens(one.tokenizer, other.tokenizer)


def same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether equal ids are equal tokens, however text is cut into them: those of a GGUF file and of the directory that
    it was made from. One of the two may have more at its end, as files have that pad a vocabulary to its embeddings."""
    fewer, more = sorted((one.core.get_vocab(), other.core.get_vocab()), key=len)
    return all(more.get(token) == i for token, i in fewer.items()) and all(
        i >= len(fewer) for token, i in more.items() if token not in fewer
    )


@dataclass(slots=True, frozen=True)
class Conversation:
    """The messages of a conversation. `answer` is the model's text so far in reply to the last one; None if that is no
    question."""

    messages: list[Message]
    answer: str | None


def conversation_in(language: Language, ids: Sequence[int]) -> Conversation | None:
    """The conversation that a log holds; None if there is none, or none that can be told from text."""
    if language.chat is None:
        return None
    text = language.decode(ids, special=True)
    for instructed in (False, True):
        try:
            found = _taken_apart(language, text, instructed=instructed)
            if found is not None and _squeezed(_put_together(language, found)) == _squeezed(text):
                return found
        except (SyscallError, ValueError):  # a template without such a role, or one that does not show the message
            continue
    return None


def _rendered(language: Language, messages: Sequence[Message], *, prompt: bool = False) -> str:
    return ChatTemplate(language.tokenizer).render(messages, prompt=prompt, allow_special=True).plain


def _put_together(language: Language, found: Conversation) -> str:
    if found.answer is None:
        return _rendered(language, found.messages)
    return _rendered(language, found.messages, prompt=True) + found.answer


def _squeezed(text: str) -> str:
    """A text without its white space: templates trim messages."""
    return "".join(text.split())


def _taken_apart(language: Language, text: str, *, instructed: bool) -> Conversation | None:
    """The turns of a log's text, by what the template puts around those of a probe. With `instructed`, a system prompt
    stands first."""
    head: list[Message] = [{"role": "system", "content": _SYSTEM}] if instructed else []
    asked: list[Message] = [*head, {"role": "user", "content": _USER}]
    answered: list[Message] = [*asked, {"role": "assistant", "content": _ANSWER}]
    first = _rendered(language, asked, prompt=True)
    again = _rendered(language, [*answered, {"role": "user", "content": _NEXT}], prompt=True)
    before_answer = first[first.index(_USER) + len(_USER) :]
    between = again[again.index(_ANSWER) + len(_ANSWER) : again.index(_NEXT)]
    closed = _rendered(language, answered)
    close = closed[closed.index(_ANSWER) + len(_ANSWER) :]
    if not before_answer or not between:
        return None
    start = first[: first.index(_USER)]
    if not instructed:
        return _turns(text[len(start) :], [], before_answer, between, close) if text.startswith(start) else None
    opening, _, start = start.partition(_SYSTEM)
    if not text.startswith(opening):
        return None
    said, mark, rest = text[len(opening) :].partition(start)
    if mark:
        return _turns(rest, [{"role": "system", "content": said}], before_answer, between, close)
    alone = _rendered(language, head)
    end = alone[alone.index(_SYSTEM) + len(_SYSTEM) :]
    return Conversation([{"role": "system", "content": said.removesuffix(end)}], None)


def _turns(rest: str, messages: list[Message], before_answer: str, between: str, close: str) -> Conversation | None:
    """The turns after the first user's mark."""
    while True:
        asked, mark, rest = rest.partition(before_answer)
        if not mark:
            return None
        messages.append({"role": "user", "content": asked})
        answer, mark, after = rest.partition(between)
        if not mark:
            break
        messages.append({"role": "assistant", "content": answer})
        rest = after
    stop = close.strip()
    if stop and rest.rstrip().endswith(stop):
        answer = rest.rstrip().removesuffix(stop)
        return Conversation([*messages, {"role": "assistant", "content": answer}], None)
    return Conversation(messages, rest)


def translated(old: Language, new: Language, ids: Sequence[int]) -> list[int]:
    """Another model's ids of the same text. Raises E2BIG if they are too many for it."""
    if not ids:
        return []
    found = conversation_in(old, ids)
    if found is None:
        result = new.encode(old.decode(ids), begin=True)
    elif new.chat is None:
        result = new.encode(_as_text(found), begin=True)
    else:
        result = _chat_ids(new, found)
    return _fitting(old, new, ids, result)


def carried(old: Language, new: Language, known: Dialogue | None, ids: Sequence[int]) -> tuple[list[int], list[bytes]]:
    """Another model's ids of the same conversation, and its record. `known`, the conversation in the records, decides;
    without it, the ids' text does. Raises E2BIG if they are too many for the model."""
    if known is None or old.chat is None or new.chat is None:
        return translated(old, new, ids), []
    variables = new.chat.known_variables(known.setup.variables)
    setup = msgspec.structs.replace(known.setup, variables=variables, template=None)
    if ids and (not known.said or (known.cut and not known.asked)):  # text outside of any message
        return translated(old, new, ids), [packed(Entry(setup=setup))]
    said, answer = [one.message for one in known.said], ""
    if known.asked or len(ids) > known.end:
        last = old.chat.answered(known, ids).message
        if old.chat.ended(known, ids):
            said.append(last)
        else:
            answer = str(last["content"])
    try:
        turn = new.chat.begin(said, setup) if said else None
    except SyscallError as error:
        if error.errno is not Errno.EINVAL:
            raise
        return translated(old, new, ids), []
    entry = turn.entry if turn is not None else Entry(setup=setup)
    carried_ids = [*(turn.ids if turn is not None else ()), *(new.encode(answer) if answer else ())]
    return _fitting(old, new, ids, carried_ids), [packed(entry)]


def _fitting(old: Language, new: Language, ids: Sequence[int], result: list[int]) -> list[int]:
    """The result, if the new model has room for it."""
    most = min(new.model.context or MAX_TOKENS_PER_CALL, MAX_TOKENS_PER_CALL)
    if len(result) > most:
        raise SyscallError(
            Errno.E2BIG,
            f"the {len(ids)} tokens of the log are {len(result)} to {new.model.name}, which can have {most}; truncate "
            "it, or use a model with a longer context",
        )
    return result


def _chat_ids(new: Language, found: Conversation) -> list[int]:
    first, *others = found.messages
    try:
        return new.must_chat().whole(found.messages, found.answer)
    except SyscallError as error:
        if error.errno is not Errno.EINVAL:
            raise
        if first["role"] == "system" and not others:
            return new.encode(first["content"], begin=True)
        raise SyscallError(
            Errno.ENOTSUP,
            f"the chat template of {new.model.name} does not take this conversation ({error.reason}); pass tokens of "
            "your own",
        ) from None


def _as_text(found: Conversation) -> str:
    """A conversation for a model without a chat template: each message on a line, after its role."""
    lines = [f"{message['role']}: {message['content'].strip()}" for message in found.messages]
    if found.answer is not None:
        lines.append(f"assistant: {found.answer.strip()}".rstrip())
    return "\n".join(lines)

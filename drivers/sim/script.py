"""What a simulated model says: answers that were written down, by the prompts that they are for.

So a shell, an agent or a test can be tried without a model, and without chance. The model's next token is a function of
its log alone: from the log come the messages, from these the answer, and what the log has of that already says which
letter is next. So an answer is the same after a restart, a preemption or a fork, and whoever else runs. A token is a
letter, as in every text of these models; a step gives a word. The sampler has no say.

The file is TOML (`examples/script.toml`):

    default = "..."      # what is said where no answer is for the prompt
    pace = 0.02          # seconds that a word takes beside the device's own time

    [[answer]]
    to = "hel+o"         # a regular expression, searched in the last message; left out: any
    role = "user"        # whose message that is: user, tool, ...; left out: anybody's
    say = "Hi!"          # or a list: what is said the first time, the second, ...; the last is said again and again
    seconds = 1.5        # that it takes before the first word
    error = "..."        # instead of `say`: the run fails with this reason

The first answer that fits counts. `\\1` and `\\g<name>` in `say` stand for groups of the expression.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from llmasos.drivers.sim.spec import ModelSpec
from llmasos.modelfiles import sim_vocabulary as vocabulary
from llmasos.syscalls.checked import Wrong, record
from llmasos.syscalls.errno import Errno

MOST_BYTES = 1 << 20  # of a file
MOST_SAID = 2000  # letters of an answer in plain text
_ANSWERS = "assistant"
_MESSAGE = re.compile(r"\n?(?P<role>[a-z_]+): (?P<content>.*)", re.DOTALL)
_GROUP = re.compile(r"\\(?:(\d)|g<(\w+)>)")
_Seconds = Annotated[float, Meta(ge=0.0, le=3600.0)]


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An `[[answer]]` of the file."""

    to: str = ""  # a regular expression, searched in the last message; empty: any message
    role: str = ""  # whose message that is: user, tool, ...; empty: anybody's
    say: str | list[str] = ""  # what is said; a list: the first time, the second, ..., and the last again and again
    seconds: _Seconds = 0.0  # that it takes before the first word
    error: str = ""  # instead of `say`: the run fails, alone, with this reason


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file."""

    default: str = "I have not been told what to say to that."  # where no answer fits
    pace: _Seconds = 0.0  # seconds that a word takes beside the device's own time
    answer: list[Answer] = []  # `[[answer]]`, tried in their order


@dataclass(frozen=True, slots=True)
class Next:
    """What comes next: a token, which may end a word; how long it takes beside the device's own time; or a failure."""

    token: int
    seconds: float = 0.0
    ends: bool = False  # another word comes after it, or nothing
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Message:
    role: str  # empty: plain text
    content: str


@lru_cache
def load(path: str) -> Script:
    """Read a script; as long as this process lives it stays as it was first read. Raises SyscallError ENOENT, EINVAL
    naming what is wrong."""
    try:
        with Path(path).expanduser().open("rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise Errno.EINVAL(f"the script {path} has more than {MOST_BYTES} bytes")
        script = record(msgspec.toml.decode(text), Script)
    except OSError as error:
        raise Errno.ENOENT(f"the script {path} cannot be read: {error.strerror}; name a TOML file of answers") from None
    except (msgspec.DecodeError, UnicodeError, Wrong) as error:
        raise Errno.EINVAL(f"the script {path} is wrong: {error}") from None
    for number, answer in enumerate(script.answer, 1):
        if wrong := _wrong(answer):
            raise Errno.EINVAL(f"the script {path} is wrong: answer {number}: {wrong}")
    return script


def _wrong(answer: Answer) -> str:
    try:
        pattern = _pattern(answer.to)
    except re.error as error:
        return f"`to` is no regular expression: {error}"
    if answer.error and answer.say:
        return "it has `say` and `error`; leave one out"
    if not answer.error and (not answer.say or "" in _says(answer)):
        return "`say` is missing, or empty; an answer says something, or has an `error`"
    for text in _says(answer):
        for number, name in _GROUP.findall(text):
            if int(number or 0) > pattern.groups or (name and name not in pattern.groupindex and not name.isdecimal()):
                return f"`say` has the group {number or name}, and `to` has none of that name"
    return ""


def check(script: Script, path: str, vocab: int) -> None:
    """EINVAL if a model with a vocabulary of this size cannot say all that is in the script."""
    for text in [script.default, *(text for answer in script.answer for text in _says(answer))]:
        try:
            vocabulary.encode(text.encode(), vocab)
        except ValueError as error:
            raise Errno.EINVAL(f"the script {path} does not fit the model: {error}") from None


def following(model: ModelSpec, log: Sequence[int]) -> Next:
    """What a model with a script says after a log."""
    script, vocab = load(model.script), model.vocab
    begin = len(log)
    while begin and log[begin - 1] != model.eos:
        begin -= 1
    answer, text, done = _place(model, tuple(log[:begin]), vocabulary.decode(log[begin:], vocab))
    if answer is not None and answer.error:
        return Next(model.eos, error=f"the script says so: {answer.error}")
    seconds = script.pace + (answer.seconds if answer is not None and done == 0 else 0.0)
    if done == len(text):
        return Next(model.eos, seconds, ends=True)
    ends = done + 1 < len(text) and text[done + 1 : done + 2].isspace()
    try:
        (token,) = vocabulary.encode(text[done : done + 1], vocab)
    except ValueError as error:  # it has come from the prompt, by a group
        return Next(model.eos, error=str(error))
    return Next(token, seconds, ends)


def _place(model: ModelSpec, past: tuple[int, ...], text: bytes) -> tuple[Answer | None, bytes, int]:
    """The answer that is being given (None: the default one), its text, and how much of that has been said. `past` ends
    with the last message that is complete, `text` is behind it."""
    begin, head = text.lstrip(b"\n"), f"{_ANSWERS}: ".encode()
    if past and begin.startswith(head):
        answer, told = _reply(model, past)
        return answer, told, _done(told, begin.removeprefix(head))
    return _place_in_text(model.script, text)


@lru_cache(maxsize=256)
def _reply(model: ModelSpec, past: tuple[int, ...]) -> tuple[Answer | None, bytes]:
    """What is said to the last message of a conversation."""
    script, messages, begin = load(model.script), [], 0
    for place, token in enumerate(past):
        if token == model.eos:
            messages.append(_message(vocabulary.decode(past[begin:place], model.vocab)))
            begin = place + 1
    asked = messages.pop()
    answer = _answer_to(script, asked)
    before = sum(_answer_to(script, one) is answer for one in messages if one.role not in (_ANSWERS, "system"))
    return answer, _text(script, answer, asked, before)


def _message(text: bytes) -> _Message:
    words = text.decode(errors="replace")
    found = _MESSAGE.fullmatch(words)
    return _Message(found["role"], found["content"]) if found else _Message("", words)


def _place_in_text(path: str, text: bytes) -> tuple[Answer | None, bytes, int]:
    """The same for plain text, of which nobody says where the prompt ends: as early as it can."""
    for done in range(min(len(text), MOST_SAID), -1, -1):
        prompt = len(text) - done
        answer, told = _reply_to_text(path, text[:prompt])
        if told.startswith(text[prompt:]):
            return answer, told, done
    raise AssertionError("all of a text can be the prompt")


@lru_cache(maxsize=2 * MOST_SAID)
def _reply_to_text(path: str, text: bytes) -> tuple[Answer | None, bytes]:
    script, asked = load(path), _Message("", text.decode(errors="replace"))
    answer = _answer_to(script, asked)
    return answer, _text(script, answer, asked, 0)


def _done(told: bytes, said: bytes) -> int:
    """How much of a text stands at the end of what has been said."""
    return next(count for count in range(min(len(told), len(said)), -1, -1) if said.endswith(told[:count]))


def _answer_to(script: Script, asked: _Message) -> Answer | None:
    for answer in script.answer:
        if answer.role in ("", asked.role) and _pattern(answer.to).search(asked.content):
            return answer
    return None


def _text(script: Script, answer: Answer | None, asked: _Message, before: int) -> bytes:
    """What is said to a message, when so many before it had this answer."""
    if answer is None or answer.error:
        return script.default.encode()
    says = _says(answer)
    found = _pattern(answer.to).search(asked.content)

    def group(match: re.Match[str]) -> str:
        key = match[1] or match[2]
        return (found[int(key) if key.isdecimal() else key] or "") if found is not None else ""

    return _GROUP.sub(group, says[min(before, len(says) - 1)]).encode()


def _says(answer: Answer) -> list[str]:
    return ([answer.say] if answer.say else []) if isinstance(answer.say, str) else answer.say


@lru_cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)

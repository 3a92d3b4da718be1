"""A model's tokenizer: text to token ids and back, by the `tokenizers` library itself.

It does what transformers' PreTrainedTokenizerFast does around that library, so that a program reads its first prompt
without the seconds that importing transformers takes; ids and texts are the same. Unlike there, text is not control: if
the caller says so, a text that spells `<|im_end|>` becomes the ordinary tokens of these ten characters.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.sdk.bounds import Bounds

# Around a control token that a text spells, so that it is encoded as text. Private use: no text has them.
MARK, UNMARK = "\U000f0000", "\U000f0001"
_MARKED = re.compile(f"{MARK}([^{MARK}{UNMARK}]*){UNMARK}|[{MARK}{UNMARK}]")
_LOOKS, _LOOKS_PER_CHARACTER = (
    5_000_000,
    8,
)  # for control tokens in a text; Phi has runs of spaces of 23 lengths
_VEILS = 4  # times that a text is looked at for what a normaliser makes control tokens of
_UNTOLD = ("truncation", "padding", "version")  # fields of a tokenizer's JSON that do not change what ids mean


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings in a model's files around the tokenizer itself."""

    named: Mapping[str, str] = field(default_factory=dict)  # "bos_token" and the like: variables of the templates
    extra: tuple[str, ...] = ()  # further special tokens, without a name
    templates: Mapping[str, str] = field(default_factory=dict)  # chat templates by name; a single one is "default"
    control: tuple[str, ...] | None = None  # added tokens that are control; None: those that templates spell
    response_template: Any = None  # how to take an answer apart, in transformers' format
    split_special: bool = False  # special tokens are never found in text
    where: str = ""  # the file of the tokenizer, for what is said of it


class Token(NamedTuple):
    """One token, and the characters of the text that it stands for."""

    id: int
    start: int
    end: int


class Added(NamedTuple):
    """A token that is found in a text before the text is cut into words."""

    content: str
    special: bool


class Spellings:
    """Finds any of some strings in a text: leftmost first, then the longest.

    `veiled` tells where a text becomes one of them only by a normaliser, `<|IM_END|>` say: as (start, end), in order."""

    def __init__(self, words: Iterable[str], veiled: Callable[[str], list[tuple[int, int]]] | None = None) -> None:
        self.words = frozenset(word for word in words if word)
        self._veiled = veiled
        lengths: dict[str, set[int]] = {}
        for word in self.words:
            lengths.setdefault(word[0], set()).add(len(word))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        self._first = re.compile("[" + "".join(map(re.escape, sorted(lengths))) + "]") if lengths else None

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Their places, as (start, end), without overlaps. Raises E2BIG for a text that would take too long."""
        at = looked = 0
        most = _LOOKS + _LOOKS_PER_CHARACTER * len(text)
        while self._first is not None and (found := self._first.search(text, at)):
            at = found.start()
            lengths = self._lengths[text[at]]
            looked += len(lengths)
            if looked > most:
                raise SyscallError(
                    Errno.E2BIG,
                    f"the model's tokenizer has control tokens of {len(lengths)} lengths, too many to look for in a "
                    f"text of {len(text)} characters; shorten it, or use a tokenizer that can be trusted",
                )
            for length in lengths:
                if text[at : at + length] in self.words:
                    yield at, at + length
                    at += length
                    break
            else:
                at += 1

    def mark(self, text: str) -> str:
        """The text with marks around them; marks that it had before are removed first."""
        if MARK in text or UNMARK in text:
            text = text.replace(MARK, "").replace(UNMARK, "")
        parts, done = list[str](), 0
        for start, end in self.find(text):
            parts += self._unveiled(text[done:start]), MARK, text[start:end], UNMARK
            done = end
        return "".join([*parts, self._unveiled(text[done:])])

    def _unveiled(self, text: str, depth: int = 0) -> str:
        """The text with marks around what becomes one of them by a normaliser. What is left is looked at again: it is
        encoded without its neighbours."""
        if self._veiled is None or not text or not (places := self._veiled(text)):
            return text
        if depth == _VEILS:
            raise SyscallError(
                Errno.EINVAL, f"the text {text[:40]!r} spells control tokens in ever new ways; take it out"
            )
        parts, done = list[str](), 0
        for start, end in places:
            parts += self._unveiled(text[done:start], depth + 1), MARK, text[start:end], UNMARK
            done = end
        return "".join([*parts, self._unveiled(text[done:], depth + 1)])


class Tokenizer:
    """One model's tokenizer. `core` is a `tokenizers.Tokenizer` with truncation and padding switched off."""

    def __init__(self, core: Any, settings: Settings) -> None:
        core.no_truncation()
        core.no_padding()
        core.encode_special_tokens = settings.split_special
        self.core = core
        self.settings = settings
        self._controls: dict[tuple[str, ...], Spellings] = {}

    @functools.cached_property
    def added(self) -> dict[int, Added]:
        """The added tokens by id."""
        return {i: Added(token.content, token.special) for i, token in self.core.get_added_tokens_decoder().items()}

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids of tokens that a text leaves out."""
        return frozenset(i for i, token in self.added.items() if token.special)

    @functools.cached_property
    def _added_ids(self) -> dict[str, int]:
        return {token.content: i for i, token in sorted(self.added.items())}

    @functools.cached_property
    def _spellings(self) -> Spellings:
        return Spellings(self._added_ids)

    @property
    def size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self.core.get_vocab_size())

    def id_of(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it; None if there is none."""
        found: int | None = self.core.token_to_id(token)
        return found

    def token_of(self, i: int) -> str | None:
        """The token of an id as the vocabulary writes it; None if there is none."""
        found: str | None = self.core.id_to_token(i)
        return found

    @functools.cached_property
    def digest(self) -> str:
        """A digest of everything that decides what an id means and how text is cut into ids."""
        whole = json.loads(self.core.to_str())
        about = {
            "special": sorted({*self.settings.named.values(), *self.settings.extra}),
            "backend": {name: value for name, value in whole.items() if name not in _UNTOLD},
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    # Control

    def control(self, *sources: str) -> Spellings:
        """What these chat templates (none given: all of the model's) take for control: special tokens, and the added ones
        that the model's makers name or the templates themselves write, except white space."""
        sources = sources or tuple(self.settings.templates.values())
        if sources not in self._controls:
            self._controls[sources] = self._control_of(sources)
        return self._controls[sources]

    def _control_of(self, sources: tuple[str, ...]) -> Spellings:
        if self.settings.control is not None:
            named: Callable[[str], bool] = frozenset(self.settings.control).__contains__
        else:
            from llmasos.userland.sdk.sandbox import literals  # imports jinja2, which plain texts do not need

            written = "\0".join(filter(None, map(literals, sources)))
            named = lambda token: token in written and not token.isspace()  # noqa: E731 - the other way to tell
        words = [token.content for token in self.added.values() if token.special or named(token.content)]
        veiled = self._normalised & {self._added_ids[word] for word in words}
        return Spellings(words, functools.partial(self._places, veiled) if veiled else None)

    @functools.cached_property
    def _normalised(self) -> frozenset[int]:
        """The added tokens that are looked for in what the normaliser has made of a text."""
        added = self.core.get_added_tokens_decoder()
        found = frozenset(i for i, token in added.items() if token.normalized and token.content != self._unknown)
        if not found:  # as of most models; the whole vocabulary as text takes part of a second
            return found
        normaliser = json.loads(self.core.to_str())["normalizer"]
        return frozenset() if normaliser is None or normaliser.get("normalizers") == [] else found

    def _places(self, ids: Set[int], text: str) -> list[tuple[int, int]]:
        """Where in a text some of these tokens are found."""
        return [(start, end) for i, start, end in self._inside(self.core, text, 0) if i in ids and end > start]

    # Text to ids

    def encode(self, text: str, *, control: bool, begin: bool = False) -> list[int]:
        """The ids of a text. With `control`, text that spells a control token becomes that token; without, it stays text.
        `begin` adds what the tokenizer puts around a text (a BOS token, say).

        Raises SyscallError: EINVAL for what this tokenizer cannot encode, E2BIG if it makes too much of it, ETIME if it
        takes too long.
        """
        if not control and (MARK in text or UNMARK in text):
            text = text.replace(MARK, "").replace(UNMARK, "")
        marked = text
        if not control and (self._normalised or next(self._spellings.find(text), None) is not None):
            marked = self.control().mark(text)
        if marked == text:
            return self._ids(self.core, text, begin)
        ids = [token.id for token in self.encode_marked(marked)]
        return [*self._around[0], *ids, *self._around[1]] if begin else ids

    @functools.cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a text."""
        plain, whole = self._ids(self.core, "a", False), self._ids(self.core, "a", True)
        for at in range(len(whole) - len(plain) + 1):
            if whole[at : at + len(plain)] == plain:
                return whole[:at], whole[at + len(plain) :]
        return [], []

    def encode_text(self, text: str, *, marked: bool) -> list[int]:
        """The ids of a text in which control tokens that stay text may stand between marks."""
        if marked and (MARK in text or UNMARK in text):
            return [token.id for token in self.encode_marked(text)]
        return self._ids(self.core, text, False)

    def tokens(self, text: str) -> list[Token]:
        """The tokens of a text, with their places in it."""
        return self._tokens(self.core, text)

    def encode_marked(self, text: str) -> list[Token]:
        """The tokens of a text in which control tokens that stay text stand between marks."""
        if MARK not in text and UNMARK not in text:
            return self._tokens(self.core, text)
        tokens: list[Token] = []
        done = 0
        for found in _MARKED.finditer(text):
            spelled = found[1]
            if (
                spelled is not None and spelled not in self._added_ids and not self._normalised
            ):  # two lone marks: they are just left out
                tokens += self._piece(text, done, found.start())
                tokens += self._piece(text, found.start(1), found.end(1))
            else:
                tokens += self._piece(text, done, found.start())
                if spelled:
                    tokens += self._as_text(spelled, found.start(1))
            done = found.end()
        return tokens + self._piece(text, done, len(text))

    def encode_inside(self, text: str) -> list[Token]:
        """The tokens of a text that follows any other text."""
        return self._inside(self.core, text, 0) if text else []

    def _piece(self, text: str, start: int, end: int) -> list[Token]:
        """The tokens of a part of a text, found as if the part were all of it, but not as if the text began there."""
        if start == 0:
            return self._tokens(self.core, text[:end])
        if start == end:
            return []
        return self._inside(self.core, text[start:end], start)

    def _inside(self, core: Any, piece: str, start: int) -> list[Token]:
        """A piece behind a line break, which is then removed; otherwise sentencepiece would put a space before the
        piece."""
        break_ids = self._break
        tokens = self._tokens(core, "\n" + piece)
        if [token.id for token in tokens[: len(break_ids)]] == break_ids:
            shift, tokens = start - 1, tokens[len(break_ids) :]
        else:
            shift, tokens = start, self._tokens(core, piece)
        return [Token(i, max(begin + shift, start), end + shift) for i, begin, end in tokens]

    @functools.cached_property
    def _break(self) -> list[int]:
        return self._ids(self.core, "\n", False)

    def _as_text(self, spelled: str, start: int) -> list[Token]:
        """The spelling of an added token, or what a normaliser makes one of, as ordinary tokens. A vocabulary that has it
        among its ordinary tokens (Unigram) gets it in two pieces; the token for unknown text stands for itself. Raises
        EINVAL if only the added token can write it."""
        token = self._added_ids.get(spelled)
        wrong = self._normalised if token is None else {token}
        for cut in range(len(spelled)):
            parts = [part for part in (spelled[:cut], spelled[cut:]) if part]
            tokens: list[Token] = []
            for part in parts:
                tokens += self._inside(self._plain, part, start)
            if wrong.isdisjoint(i for i, *_ in tokens) or spelled == self._unknown:
                return [Token(i, start, start + len(spelled)) for i, *_ in tokens]
        raise SyscallError(
            Errno.EINVAL,
            f"the text spells the control token {spelled!r}, and this tokenizer cannot write that in other tokens; take "
            "it out, or allow special tokens",
        )

    @functools.cached_property
    def _unknown(self) -> str | None:
        """The model's token for unknown text."""
        return self.settings.named.get("unk_token") or getattr(self.core.model, "unk_token", None)

    @functools.cached_property
    def _plain(self) -> Any:
        """The same tokenizer without its added tokens."""
        plain = type(self.core)(self.core.model)
        for part in ("normalizer", "pre_tokenizer"):
            if getattr(self.core, part) is not None:
                setattr(plain, part, getattr(self.core, part))
        return plain

    def _ids(self, core: Any, text: str, begin: bool) -> list[int]:
        [encoding] = self._run(core.encode_batch_fast, text, add_special_tokens=begin)
        ids: list[int] = encoding.ids
        return ids

    def _tokens(self, core: Any, text: str) -> list[Token]:
        [encoding] = self._run(core.encode_batch, text, add_special_tokens=False)
        return [Token(i, start, end) for i, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)]

    def _run(self, encode: Callable[..., list[Any]], text: str, **options: bool) -> list[Any]:
        return self._bounds.encode(lambda: encode([text], **options), text)

    @functools.cached_property
    def _bounds(self) -> Bounds:
        return Bounds.of(self.core, self.settings.where)

    # Ids to text

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of ids; special tokens are left out unless `special`. Raises SyscallError: EINVAL for what is no
        id."""
        return self._bounds.decode(self.core, list(ids), special)

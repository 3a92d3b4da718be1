"""Bounds of the work and memory that a tokenizer may spend on a text.

A tokenizer is a program that came with a model: its normaliser may write a page for each letter, its regular expression
may run for ever. The bounds come from its parts, before it runs; a text that it would blow up is refused. Work that may
take long runs on a thread of its own, which can be abandoned: the library releases the interpreter meanwhile.
"""

from __future__ import annotations

import base64
import json
import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from llmasos.syscalls.errno import Errno, SyscallError

T = TypeVar("T")

PLAIN_FACTOR = 8  # the most that common normalisers make of a character (a space becomes three bytes in sentencepiece)
MOST_MADE = 4_000_000  # the most characters that other tokenizers may make of a text
MOST_TEXT = 64_000_000  # characters of one decoded text
SECONDS = 5.0  # for any text; and
CHARACTERS_PER_SECOND = 50_000  # for long ones: slow machines do some 500,000
_SHORT = 4096  # any tokenizer without regular expressions cuts so many characters in no time
_LONG_WORD = 200  # characters of a word in which WordPiece looks for pieces


@dataclass(frozen=True, slots=True)
class Bounds:
    """`made`: the most characters that the normaliser makes of one; `said`: that the decoder makes; `wild`: it may run
    for ever; `where`: the file that it is from."""

    made: int
    said: int
    wild: bool
    wild_decoder: bool
    where: str = ""

    @classmethod
    def of(cls, core: Any, where: str = "") -> Bounds:
        """The bounds of a `tokenizers.Tokenizer`, from its parts."""
        normalizer, words, decoder = (_parts(part) for part in (core.normalizer, core.pre_tokenizer, core.decoder))
        wild = any("Regex" in str(part.get("pattern")) for part in (*normalizer, *words))
        wild = wild or int(getattr(core.model, "max_input_chars_per_word", 0)) > _LONG_WORD
        wild = wild or len(str(getattr(core.model, "continuing_subword_prefix", "") or "")) > _LONG_WORD
        wild_decoder = any("Regex" in str(part.get("pattern")) for part in decoder)
        return cls(_product(normalizer), _product(decoder), wild, wild_decoder, where)

    def encode(self, work: Callable[[], T], text: str) -> T:
        """The result of `work`, which encodes the text."""
        if self.made > PLAIN_FACTOR and len(text) * self.made > MOST_MADE:
            raise SyscallError(
                Errno.E2BIG,
                f"the model's tokenizer could make {self.made} characters of each, too many for a text of {len(text)}; "
                f"at most {MOST_MADE} in all are made: shorten the text, or use a tokenizer that can be trusted",
            )
        if not self.wild and len(text) <= _SHORT:
            return _told(work, f"{self._whose} cannot encode this text")
        return within(work, SECONDS + len(text) / CHARACTERS_PER_SECOND, f"{self._whose} cannot encode this text")

    def decode(self, core: Any, ids: list[int], special: bool) -> str:
        """The text of ids. Raises E2BIG if it is too long."""
        try:
            longest = max((len(core.id_to_token(i) or "") for i in set(ids)), default=0)
        except (OverflowError, TypeError) as error:
            raise SyscallError(Errno.EINVAL, f"no token ids: {error}; they are integers from 0 on") from None
        if len(ids) * longest * self.said > MOST_TEXT:
            length = sum(n * len(core.id_to_token(i) or "") for i, n in Counter(ids).items()) * self.said
            if length > MOST_TEXT:
                raise SyscallError(
                    Errno.E2BIG,
                    f"the text of these {len(ids)} tokens may have {length} characters; at most {MOST_TEXT} are decoded "
                    "at once: decode fewer tokens",
                )
        work: Callable[[], str]
        if self.wild_decoder:

            def work() -> str:
                [text] = core.decode_batch([ids], skip_special_tokens=not special)
                return str(text)

            return within(work, SECONDS + len(ids) / CHARACTERS_PER_SECOND, f"{self._whose} cannot decode these tokens")
        return _told(
            lambda: str(core.decode(ids, skip_special_tokens=not special)), f"{self._whose} cannot decode these tokens"
        )

    @property
    def _whose(self) -> str:
        return f"the model's tokenizer ({self.where})" if self.where else "the model's tokenizer"


def _parts(part: Any) -> list[dict[str, Any]]:
    """The steps of a normaliser, pre-tokenizer or decoder, nested ones taken apart."""
    if part is None:
        return []
    found: list[dict[str, Any]] = []
    steps = [json.loads(part.__getstate__())]
    while steps:
        step = steps.pop()
        found.append(step)
        for value in step.values():
            if isinstance(value, list):
                steps += [item for item in value if isinstance(item, dict)]
    return found


def _product(steps: list[dict[str, Any]]) -> int:
    """The most characters that these steps make of one."""
    product = 1
    for step in steps:
        made = 1
        if step.get("type") == "Replace":
            pattern = step.get("pattern", {}).get("String")
            # A regular expression may match nothing, between any two characters.
            made = max(1, -(-len(step["content"]) // len(pattern))) if pattern else 1 + len(step["content"])
        elif step.get("type") == "Precompiled":
            made = _longest_mapping(step.get("precompiled_charsmap"))
        product *= made
    return product


def _longest_mapping(packed: Any) -> int:
    """Bytes of the longest replacement in sentencepiece's table of characters."""
    blob = base64.b64decode(packed) if isinstance(packed, str) else bytes(packed or b"")
    texts = blob[4 + int.from_bytes(blob[:4], "little") :]
    return max(map(len, texts.split(b"\0")), default=1) or 1


def _told(work: Callable[[], T], what: str) -> T:
    """The result of the library's work; an error of its becomes one of ours, in its words."""
    try:
        return work()
    except (SyscallError, MemoryError):
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        why = str(error).strip() or type(error).__name__
        raise SyscallError(Errno.EINVAL, f"{what}: {why}") from None


class _Lane:
    """A thread that does one thing after the other for its holder."""

    def __init__(self) -> None:
        self._work: SimpleQueue[tuple[Callable[[], Any], str]] = SimpleQueue()
        self._done: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        threading.Thread(target=self._go, name="tokenizer", daemon=True).start()

    def _go(self) -> None:
        while True:
            work, what = self._work.get()
            try:
                self._done.put((_told(work, what), None))
            except BaseException as error:  # who waits for it gets it
                self._done.put((None, error))

    def do(self, work: Callable[[], Any], what: str, seconds: float) -> tuple[Any, BaseException | None]:
        """The result of `work`. Raises Empty after `seconds`; the lane is useless then."""
        self._work.put((work, what))
        return self._done.get(timeout=seconds)


_idle: list[_Lane] = []
os.register_at_fork(after_in_child=_idle.clear)  # their threads are the parent's


def within(work: Callable[[], T], seconds: float, what: str) -> T:
    """The result of `work`. Raises ETIME after `seconds`, and leaves its thread to end by itself."""
    try:
        lane = _idle.pop()
    except IndexError:
        lane = _Lane()
    try:
        result, error = lane.do(work, what, seconds)
    except Empty:
        raise SyscallError(
            Errno.ETIME,
            f"{what} within {seconds:.0f} s, and was given up; shorten the text, or use a tokenizer that can be trusted",
        ) from None
    _idle.append(lane)  # but not where this was interrupted: the lane's result has no taker
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]  # a lane does work of any kind

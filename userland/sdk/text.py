"""Text and tokens: text that continues other text, the incremental detokenizer, and stop strings.

The kernel deals in token ids only; characters are dealt with here. The detokenizer holds back what the next token may
still change (half a UTF-8 character, a space that a metaspace tokenizer has not decided on), as vLLM's and TGI's do; its
pieces join to the text of the whole. One exception: where a model writes bytes that are no text right after bytes that
are, a byte-fallback tokenizer decodes the whole run as unreadable; here the text that was given stays.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.sdk.tokenizer import Tokenizer

BEFORE = 8  # enough tokens before a text to decode it as their continuation
CHARACTERS_PER_TOKEN = 64  # more than any text has on average: words have some 4, runs of spaces this many at most
_UNFINISHED = "\ufffd"  # decoders write it for bytes that are no character (yet)


@functools.lru_cache(maxsize=16)
def begins_apart(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer writes a text's beginning unlike its middle: sentencepiece puts a space before the first
    word, and removes it when it decodes, so that a continuation has other ids than the same text alone."""
    ids = tokenizer.encode("a b", control=True)
    return tokenizer.decode(ids) != "".join(tokenizer.decode([i]) for i in ids)


def decode_after(decoder: Callable[[Sequence[int]], str], before: Sequence[int], ids: Sequence[int]) -> str:
    """The text of `ids` where they follow `before`."""
    known, whole = decoder(before), decoder([*before, *ids])
    return whole[len(known) :] if whole.startswith(known) else decoder(ids)


def checked(text: str, window: int) -> str:
    """The text, if it can be tokenized for a context of `window` tokens (0: unknown).

    Raises SyscallError: E2BIG if it cannot possibly fit, because tokenizing takes seconds for each million characters;
    EINVAL for half of a surrogate pair, which no tokenizer takes.
    """
    most = window * CHARACTERS_PER_TOKEN
    if window and len(text) > most:
        raise SyscallError(
            Errno.E2BIG,
            f"the text has {len(text)} characters; for the model's context of {window} tokens at most {most} "
            f"({CHARACTERS_PER_TOKEN} a token) are tokenized; shorten it",
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SyscallError(
            Errno.EINVAL,
            f"character {error.start} of the text is U+{ord(text[error.start]):04X}, half a surrogate pair (what Python "
            "makes of bytes that are no UTF-8); remove it, or decode the bytes with errors='replace'",
        ) from None
    return text


def encode_after(tokenizer: Tokenizer, text: str, *, control: bool) -> list[int]:
    """The ids of a text that continues any other: without sentencepiece's space before it."""
    for anchor in ("\n", ".", text[:1]):
        lead = tokenizer.encode(anchor, control=control)
        ids = tokenizer.encode(anchor + text, control=control)
        if ids[: len(lead)] == lead:
            rest = ids[len(lead) :]
            if decode_after(functools.partial(tokenizer.decode, special=True), lead, rest) == text:
                return rest
    return tokenizer.encode(text, control=control)


class Detokenizer:
    """Turns a stream of ids into pieces of text that are final once given. `before` are the ids before them."""

    def __init__(self, decoder: Callable[[Sequence[int]], str], before: Sequence[int] = ()) -> None:
        self._decode = decoder
        self._ids = list(before)
        self._from = 0  # ids before this one no longer influence the text
        self._given = len(self._ids)  # ids before this one have been given as text

    def push(self, ids: Sequence[int]) -> str:
        """The text that these ids make certain; may be empty."""
        self._ids.extend(ids)
        piece = self._piece()
        if not piece or piece.endswith(_UNFINISHED):
            return ""
        self._from, self._given = self._given, len(self._ids)
        return piece

    def flush(self) -> str:
        """The text that was held back, when no more ids arrive."""
        piece = self._piece()
        self._from = self._given = len(self._ids)
        return piece

    def _piece(self) -> str:
        """The text of the ids that have not been given yet, as it follows those before them."""
        known = self._decode(self._ids[self._from : self._given])
        whole = self._decode(self._ids[self._from :])
        if whole.startswith(known):
            return whole[len(known) :]
        return self._decode(self._ids[self._given :])  # they have made the given text unreadable; it stays


class StopStrings:
    """Watches a stream of pieces for strings that end it, and holds back a possible beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        if any(not stop for stop in stops):
            raise SyscallError(Errno.EINVAL, "a stop string is empty; it would stop everything")
        self._stops = list(stops)
        self._held = ""
        self.given = 0  # characters given so far
        self.stopped = False

    def push(self, piece: str) -> str:
        """The part of the text so far that can be given; once `stopped`, the text before the stop string, and nothing
        more."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=-1)
        if found >= 0:
            self.stopped, self._held = True, ""
            self.given += found
            return text[:found]
        keep = max((self._begun(text, stop) for stop in self._stops), default=0)
        cut = len(text) - keep
        self._held = text[cut:]
        self.given += cut
        return text[:cut]

    def flush(self) -> str:
        """The text that was held back, when no more arrives."""
        text, self._held = self._held, ""
        self.given += len(text)
        return text

    @staticmethod
    def _begun(text: str, stop: str) -> int:
        """The length of the longest end of `text` that begins `stop`."""
        for length in range(min(len(stop) - 1, len(text)), 0, -1):
            if text.endswith(stop[:length]):
                return length
        return 0

"""llguidance as the judge of grammars: what one accepts, and what it lets a decoder say that chooses at random.

Its vocabulary is the 256 bytes and some special tokens, so every byte is a choice of its own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

llguidance = pytest.importorskip("llguidance")
END = 256


class _Bytes:
    """A tokenizer of bytes, with special tokens behind them."""

    bos_token_id = None
    eos_token_id = END

    def __init__(self, special: Sequence[str]) -> None:
        self.tokens = [bytes([i]) for i in range(256)] + [b"<end>"] + [mark.encode() for mark in special]
        self.special_token_ids = list(range(END, len(self.tokens)))

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


class Oracle:
    """A grammar as llguidance takes it. `special` are the vocabulary's special tokens."""

    def __init__(self, special: Sequence[str] = ()) -> None:
        self.ids = {mark: END + 1 + i for i, mark in enumerate(special)}
        self._tokens = _Bytes(special).tokens
        self._tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes(special)))

    def _matcher(self, grammar: str) -> Any:
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        assert not matcher.is_error(), matcher.get_error() + grammar
        return matcher

    def encoded(self, text: str) -> list[int]:
        """A text's ids: its special tokens as such, all else byte by byte."""
        ids: list[int] = []
        while text:
            mark = next((mark for mark in sorted(self.ids, key=len, reverse=True) if text.startswith(mark)), "")
            ids += [self.ids[mark]] if mark else list(text[0].encode())
            text = text[len(mark) or 1 :]
        return ids

    def refusal(self, grammar: str, text: str) -> str:
        """Empty if the grammar accepts a text, else where it stops."""
        matcher, ids = self._matcher(grammar), self.encoded(text)
        known = matcher.validate_tokens(ids)
        if known < len(ids):
            return f"stopped behind {b''.join(self._tokens[i] for i in ids[:known])!r}"
        matcher.consume_tokens(ids)
        return "" if matcher.is_accepting() else "wants more"

    def said(self, grammar: str, seed: int, marks: Sequence[str] = (), most: int = 4000) -> str | None:
        """What a decoder says that is held to a grammar and else chooses at random, in favour of what ends
        strings (`marks`, quotes); None if it has come to no end."""
        chance, matcher = random.Random(seed), self._matcher(grammar)
        said, ahead = bytearray(), b""
        ids: list[int] = []
        while len(ids) < most:
            bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
            able = [i for i in map(int, np.flatnonzero(bits)) if i < len(self._tokens) and i != END]
            if matcher.is_accepting() and (not able or chance.random() < 0.2):
                return said.decode()
            assert not matcher.is_error(), matcher.get_error()
            if not able:
                return None
            if not ahead and marks and chance.random() < 0.15:
                ahead = chance.choice(list(marks)).encode()
            token = ahead[0] if ahead and ahead[0] in able else _chosen(able, chance)
            ahead = ahead[1:] if ahead and token == ahead[0] else b""
            assert matcher.consume_token(token), matcher.get_error()
            said += self._tokens[token]
            ids.append(token)
        return None


def _chosen(able: list[int], chance: random.Random) -> int:
    special = [i for i in able if i > END]
    if special and chance.random() < 0.2:
        return chance.choice(special)
    ending = [i for i in able if i < 128 and chr(i) in "\"'<>}])\\\n"]
    if ending and chance.random() < 0.4:
        return chance.choice(ending)
    plain = [i for i in able if i < 128 or i > END]
    return chance.choice(plain if plain and chance.random() < 0.9 else able)

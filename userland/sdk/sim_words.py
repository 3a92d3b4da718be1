"""The tokenizer of the simulated device, which has no files: made from the size of its vocabulary alone.

The first ids are bytes, the common ones first, so that any text can be encoded and comes back unchanged; the others are
made-up words of a few syllables, so that answers can be read aloud, if not understood; the last id ends a text. A text
always becomes bytes, as with a byte-level tokenizer without merges.
"""

from __future__ import annotations

import functools
import hashlib
import string
from itertools import chain, islice, product
from typing import Any

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.sdk.tokenizer import Settings, Tokenizer

ARCHITECTURE = "sim"  # as its driver says
END = "<|end|>"
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}" + END + "\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
LEAST = 4  # ids that can make a text: " ", "a", "b" and the end
MOST_WORDS = 1 << 17  # ids beyond these have no word, and no text
_COMMON = (" " + string.ascii_lowercase + "\n.,?!'" + string.digits + string.ascii_uppercase).encode()
_SYLLABLES = [consonant + vowel for consonant in "bdfghjklmnprstvwz" for vowel in "aeiou"]


class SimTokenizer(Tokenizer):
    """The tokenizer of all simulated models with one size of vocabulary."""

    def __init__(self, core: Any, settings: Settings, vocab: int) -> None:
        super().__init__(core, settings)
        self._vocab = vocab

    @property
    def size(self) -> int:
        return self._vocab

    @functools.cached_property
    def digest(self) -> str:
        return hashlib.sha256(f"{__name__} {self._vocab}".encode()).hexdigest()


@functools.lru_cache(maxsize=4)
def sim_tokenizer(vocab: int) -> Tokenizer:
    """The tokenizer of a simulated model with `vocab` ids. Raises ENOTSUP if they are too few for any text. If they are
    fewer than bytes, encoding a text with other bytes raises EINVAL."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Core

    if vocab < LEAST:
        raise SyscallError(
            Errno.ENOTSUP,
            f"a vocabulary of {vocab} is too small for words, {LEAST} are the least; use token ids",
        )
    ordinary = vocab - 1
    letters = _letters()[:ordinary]
    names = chain(letters, _words(min(ordinary, MOST_WORDS) - len(letters)))
    ids = {name: i for i, name in enumerate(names)} | {END: vocab - 1}
    model: Any = models.BPE(ids, [], unk_token="")  # there is no such token: a byte without an id is refused
    core = Core(model)
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return SimTokenizer(core, Settings(named={"eos_token": END}, templates={"default": TEMPLATE}), vocab)


def _letters() -> list[str]:
    """The bytes in the order of their ids, as byte-level tokenizers write them: visible ones as they are, the others as
    letters from U+0100 on (GPT-2's table)."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    table = [chr(byte if byte in seen else next(others)) for byte in range(256)]
    rest = (byte for byte in chain(range(0x20, 0x7F), range(256)))
    return [table[byte] for byte in dict.fromkeys(chain(_COMMON, rest))]


def _words(count: int) -> list[str]:
    """`count` words, each with a space before it, in the letters of `_letters`."""
    space = _letters()[0]
    words = chain.from_iterable(product(_SYLLABLES, repeat=length) for length in (2, 3))
    return [space + "".join(word) for word in islice(words, max(0, count))]

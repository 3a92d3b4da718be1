"""The tokenizer of the simulated device, which has no files: made from the size of its vocabulary alone
(modelfiles/sim_vocabulary.py).

A text always becomes bytes, as with a byte-level tokenizer without merges. What a model says of itself is made-up words,
which can be read aloud, if not understood; what it is told to say (drivers/sim/script.py) is bytes too. The chat template
writes tools and calls as many models do, so that agents can be tried on it.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

from llmasos.modelfiles.sim_vocabulary import END, MOST_WORDS, byte_ids, words
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.sdk.tokenizer import Settings, Tokenizer

ARCHITECTURE = "sim"  # as its driver says
TEMPLATE = (
    "{% if tools %}tools: {{ tools | tojson }}" + END + "\n{% endif %}"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}<tool_call>"
    """{"name": {{ call['function']['name'] | tojson }}, "arguments": {{ call['function']['arguments'] | tojson }}}"""
    "</tool_call>{% endfor %}" + END + "\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
LEAST = 4  # ids that can make a text: " ", "a", "b" and the end


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
    space = letters[0]
    made = words(min(ordinary, MOST_WORDS) - len(letters))
    names = [*letters, *(space + word[1:] for word in made)]
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
    return [table[byte] for byte in byte_ids()]

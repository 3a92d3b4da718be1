"""Tokenizers of the published shapes, small: the way of splitting, the size of the vocabulary and the control tokens with
their ids are a published model's; merges are learned from a few sentences, and the other tokens fill up the size.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{%s}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CORPUS = [
    "The user asks the assistant what the system is, and it answers: hello, how are you today? I am fine, thank you.",
    "What is the capital of France? The capital of France is Paris. Say more about it, then go on with the story.",
    "def add(a, b):\n    return a + b\n\n\nfor i in range(10):\n    print(i, i * 2)  # numbers: 0123456789",
    "Once upon a time there was a little cat that lived in a house by the sea. It liked fish, milk and sleep.",
    '{"name": "look", "arguments": {"at": "the sky"}} [1, 2, 3] <b>bold</b> & "quotes" \'single\' `code` ~ ^ | $ % # @ !',
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrstuvwxyz",
]


@dataclass(frozen=True)
class Words:
    """A tokenizer's kind: how it splits, the size of its vocabulary without what is appended to it, its control tokens by
    id, and which of its added tokens are no special ones."""

    kind: str  # "split N", "digits", or sentencepiece's "prepend", "metaspace", "spaces"
    size: int
    tokens: Mapping[str, int]
    plain: tuple[str, ...] = ()
    begins: bool = True  # the tokenizer puts its BOS before a text


def write(words: Words, names: Mapping[str, str], window: int, directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json; `names` are bos_token and the like."""
    core = json.loads(_bytes(words) if words.kind.startswith(("split", "digits")) else _pieces(words))
    bos = names.get("bos_token")
    tokens = dict(words.tokens)
    for i in range(words.size, max(tokens.values())):  # no id between the base and the last is left out
        if i not in tokens.values():
            tokens[f"<|reserved_special_token_{i}|>"] = i
    added = {
        content: {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                  "special": content not in words.plain}
        for content in tokens
    }  # fmt: skip
    core["added_tokens"] = [
        {"id": i, **added[content]} for content, i in sorted(tokens.items(), key=lambda item: item[1])
    ]
    loaded = Tokenizer.from_str(json.dumps(core))
    if bos is not None and words.begins:
        loaded.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokens[bos])]
        )
    loaded.save(str(directory / "tokenizer.json"))
    config: dict[str, Any] = {
        **names, "added_tokens_decoder": {str(i): added[content] for content, i in tokens.items()},
        "clean_up_tokenization_spaces": False, "model_max_length": window,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }  # fmt: skip
    if words.kind == "prepend":
        config |= {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": True,
            "add_eos_token": False,
            "legacy": False,
        }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def _bytes(words: Words) -> str:
    """A byte-level tokenizer: every byte, some words, and fillers up to the published size."""
    core = Tokenizer(models.BPE())
    apart: list[Any] = []
    if words.kind == "digits":
        apart = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    else:
        digits = Regex(_SPLIT % words.kind.removeprefix("split "))
        apart = [
            pre_tokenizers.Split(digits, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    core.pre_tokenizer = pre_tokenizers.Sequence(apart)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        _CORPUS,
        trainers.BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    return _filled(core, words, "Ġw")


def _pieces(words: Words) -> str:
    """A sentencepiece-like tokenizer with a piece for every byte."""
    made = _trained_pieces()
    core = Tokenizer.from_str(made)
    if words.kind == "metaspace":
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        prepends = [normalizers.Prepend("▁")] if words.kind == "prepend" else []
        core.normalizer = normalizers.Sequence([*prepends, normalizers.Replace(" ", "▁")])
        core.pre_tokenizer = None
    strip = [] if words.kind == "spaces" else [decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return _filled(core, words, "▁w", [f"<0x{byte:02X}>" for byte in range(256)])


@functools.cache
def _trained_pieces() -> str:
    core = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.train_from_iterator(_CORPUS, trainers.BpeTrainer(vocab_size=500, show_progress=False))
    text: str = core.to_str()
    return text


def _filled(core: Tokenizer, words: Words, filler: str, first: list[str] | None = None) -> str:
    """The tokenizer with the published number of tokens, each control token at its id."""
    described = json.loads(core.to_str())
    learned = described["model"]["vocab"]
    fixed = {i: content for content, i in words.tokens.items() if i < words.size}
    known = {*learned, *(first or []), *fixed.values()}
    pieces = iter(
        [
            *(first or []),
            *(piece for piece in sorted(learned, key=learned.get) if piece not in fixed.values()),
        ]
    )
    vocab: dict[str, int] = {}
    for i in range(words.size):
        content = fixed[i] if i in fixed else next(pieces, None)
        if content is None:
            content = f"{filler}{i}"
            assert content not in known
        vocab[content] = i
    described["model"]["vocab"] = vocab
    return json.dumps(described)

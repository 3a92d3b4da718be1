"""Tokenizers and chat templates of all published shapes, small, written as a model's files are.

Nothing here knows how the SDK reads them: the tests compare what it reads with what transformers reads.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

CORPUS = "the user says hello to an assistant and system tools think about what one should answer next no yes"
PIECES = ["<s>", "</s>", "<unk>"]

# What templates write and people may spell. The first are special; the others are added tokens that are not.
SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<|eot|>",
    "<|return|>",
    "<|channel|>",
]
PLAIN = [
    "<think>",
    "</think>",
    "[INST]",
    "[/INST]",
    "<tool_call>",
    "</tool_call>",
    "<|message|>",
    "\n\n",
    "  ",
]


def _merges(letters: str, words: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Merges that make each word from its letters, and what they make."""
    made: list[str] = []
    merges: list[tuple[str, str]] = []
    for word in words:
        left = word[0]
        for letter in word[1:]:
            if (left, letter) not in merges:
                merges.append((left, letter))
            left += letter
            if left not in made:
                made.append(left)
    return made, merges


def _byte_bpe(before: Any) -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made, merges = _merges("", ["Ġ" + word for word in CORPUS.split()] + CORPUS.split()[:6] + ["ĊĊ"])
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate([*letters, *made])}, merges))
    core.pre_tokenizer = before
    core.decoder = decoders.ByteLevel()
    return core


def _sentencepiece_bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    letters = sorted(set("▁\nabcdefghijklmnopqrstuvwxyzABCHIS.,!<|>/_[]é漢"))
    made, merges = _merges("", ["▁" + word for word in CORPUS.split()])
    pieces = [*PIECES, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *made]
    return {piece: i for i, piece in enumerate(pieces)}, merges


def _llama(prepend: bool) -> Tokenizer:
    """As Llama 2's tokenizer.json: a normaliser writes the spaces, and bytes stand for what has no piece."""
    vocab, merges = _sentencepiece_bpe()
    core = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend("▁")] if prepend else []
    core.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", int(prepend), 0),
        ]
    )
    return core


def _metaspace(scheme: str, split: bool) -> Tokenizer:
    vocab, merges = _sentencepiece_bpe()
    core = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
    return core


def _unigram(scheme: str) -> Tokenizer:
    vocab, _ = _sentencepiece_bpe()
    scored = [(piece, -20.0 if len(piece) == 1 else -30.0 + len(piece)) for piece in vocab]
    core = Tokenizer(models.Unigram(scored, unk_id=2, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return core


def _wordpiece() -> Tokenizer:
    words = [
        *PIECES,
        *CORPUS.split()[:12],
        *"abcdefghijklmnopqrstuvwxyz<>|/[]._",
        *("##" + c for c in "abcdefghijklmnopqrstuvwxyz"),
    ]
    core = Tokenizer(models.WordPiece({word: i for i, word in enumerate(dict.fromkeys(words))}, unk_token="<unk>"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    return core


def _wordlevel() -> Tokenizer:
    words = [*PIECES, *SPECIAL[:2], *CORPUS.split(), *"<>|/[]._\n"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(dict.fromkeys(words))}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|\W"), "isolated")
    return core


_GPT4 = r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CORES: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": lambda: _byte_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "byte-level, space before": lambda: _byte_bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "byte-level, split": lambda: _byte_bpe(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_GPT4), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    ),
    "llama": lambda: _llama(True),
    "gemma": lambda: _llama(False),
    "metaspace first": lambda: _metaspace("first", False),
    "metaspace always": lambda: _metaspace("always", True),
    "metaspace never": lambda: _metaspace("never", True),
    "unigram": lambda: _unigram("always"),
    "unigram first": lambda: _unigram("first"),
    "wordpiece": _wordpiece,
    "wordlevel": _wordlevel,
}


@functools.cache
def core_json(name: str) -> str:
    text: str = CORES[name]().to_str()
    return text


flags = st.fixed_dictionaries(
    {}, optional={name: st.booleans() for name in ("lstrip", "rstrip", "single_word", "normalized")}
)


@st.composite
def tokenizer_files(draw: st.DrawFn) -> dict[str, Any]:
    """The files of a tokenizer by name: JSON values, or the text of others."""
    core = Tokenizer.from_str(core_json(draw(st.sampled_from(sorted(CORES)))))
    rarely = st.integers(0, 4).map(lambda n: n == 0)
    odd = draw(rarely)
    adding = [AddedToken(token, special=True, **(draw(flags) if odd else {})) for token in [*PIECES[:2], *SPECIAL]]
    for token in draw(st.lists(st.sampled_from(PLAIN), unique=True)):
        how = draw(flags) if odd else {"normalized": False}
        if token.isspace():  # two that are normalised to the same are found in no certain order
            how["normalized"] = False
        adding.append(AddedToken(token, special=False, **how))
    later: list[AddedToken] = (
        draw(st.lists(st.sampled_from(adding), unique_by=lambda token: token.content, max_size=3)) if draw(rarely) else []
    )
    names = {token.content for token in later}
    core.add_tokens([token for token in adding if token.content not in names])
    around = draw(st.sampled_from(["", "bos", "both"]))
    if around:
        bos, eos = core.token_to_id("<s>"), core.token_to_id("</s>")
        if bos is not None and eos is not None:
            core.post_processor = processors.TemplateProcessing(
                single="<s> $A" + (" </s>" if around == "both" else ""),
                pair="<s> $A $B",
                special_tokens=[("<s>", bos), ("</s>", eos)],
            )
    if draw(rarely):
        core.enable_truncation(4)
        core.enable_padding(length=8)
    files: dict[str, Any] = {"tokenizer.json": json.loads(core.to_str())}
    config: dict[str, Any] = {"bos_token": "<s>", "eos_token": draw(st.sampled_from(["</s>", "<|im_end|>"]))}
    config |= draw(
        st.fixed_dictionaries(
            {},
            optional={
                "tokenizer_class": st.sampled_from(["LlamaTokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast"]),
                "add_bos_token": st.booleans(), "add_eos_token": st.booleans(),
                "clean_up_tokenization_spaces": st.booleans(), "legacy": st.booleans(),
                "additional_special_tokens": st.just(["<|im_start|>", "<extra>"]),
                "extra_special_tokens": st.sampled_from(
                    [["<more>"], ["<more>", "<|im_start|>"], {"image_token": "<image>"}, []]
                ),
                "pad_token": st.sampled_from(["<pad>", "</s>", None]),
                "audio_token": st.just("<audio>"),
                "unk_token": st.just({"__type": "AddedToken", "content": "<unk>", "lstrip": False, "normalized": False}),
                "chat_control_tokens": st.sampled_from([["<think>"], [], ["[INST]", "nothing"]]),
                "auto_map": st.just({"AutoTokenizer": ["words.Words", None]}),
            },
        )
    )  # fmt: skip
    if draw(rarely):
        config["split_special_tokens"] = draw(st.booleans())
    listed = {str(i): _written(token) for i, token in core.get_added_tokens_decoder().items()}
    listed |= {str(1000 + i): _written(token) for i, token in enumerate(later)}
    if bool(later) or draw(st.booleans()):
        config["added_tokens_decoder"] = listed
    elif draw(st.booleans()):
        files["special_tokens_map.json"] = draw(
            st.sampled_from(
                [
                    {"eos_token": "</s>"},
                    {
                        "eos_token": {
                            "content": "<|end|>",
                            "lstrip": False,
                            "rstrip": True,
                            "normalized": False,
                        }
                    },
                    {"additional_special_tokens": ["<|user|>", "<third>"]},
                ]
            )
        )
        if draw(st.booleans()):
            files["added_tokens.json"] = {
                "<older>": core.get_vocab_size(),
                "<|end|>": core.token_to_id("<|end|>"),
            }
    files["tokenizer_config.json"] = config
    return files


def _written(token: AddedToken) -> dict[str, Any]:
    state: dict[str, Any] = token.__getstate__()
    return state


def write(files: dict[str, Any], directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        file = directory / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return directory


# What people and tools say: words the tokenizers know, others, spaces, control tokens, and characters that mark them.
SPELLED = [
    *SPECIAL, *PLAIN, *PIECES, "<extra>", "<image>", "\U000f0000", "\U000f0001", "<|im_<|im_end|>end|>",
]  # fmt: skip
WORDS = [*CORPUS.split(), "naïve", "漢字", "😀", "1234", "x.y!", "'s", '"', "{", "\\"]
SPACES = [" ", "  ", "\n", "\n\n", "\t", ""]
# One draw for each piece: drawing is what most of a property test's time goes to.
texts = st.lists(st.sampled_from([*WORDS, *SPACES * 5, *SPELLED]), max_size=8).map("".join)
tame = st.lists(st.sampled_from([*WORDS, *SPACES * 5]), max_size=8).map("".join)

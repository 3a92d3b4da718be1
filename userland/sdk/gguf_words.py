"""The tokenizer and chat templates of a model in a GGUF file, from the metadata alone.

Vocabularies go by llama.cpp's names of their kinds: `gpt2` (byte-level BPE), `llama` (sentencepiece's BPE), `gemma4`,
`t5` (Unigram), `bert` (WordPiece). Each becomes a tokenizer of the `tokenizers` library; ids are llama.cpp's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmasos.modelfiles.gguf import Texts, read_header
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.sdk.gguf_pretokenizers import CUTS
from llmasos.userland.sdk.tokenizer import Settings, Tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_SPACE = "▁"
_NAMED = {
    "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "sep_token": "seperator", "pad_token": "padding",
    "cls_token": "cls", "mask_token": "mask",
}  # fmt: skip
_TEMPLATE = "tokenizer.chat_template"
_MOST_ADDED = 1 << 16  # tokens found in a text before it is cut into words: each costs; published files have some 6,400
_LONGEST, _MOST_CHARACTERS = 1024, 8 << 20  # of sentencepiece's pieces; 262,144 published ones have 2 million


def load(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file. Raises ENOTSUP for an unknown kind, EIO for metadata that make no sense, and the
    errors of `read_header`."""
    return of_metadata(read_header(path).metadata, str(path))


def of_metadata(metadata: Mapping[str, Any], where: str) -> Tokenizer:
    """The same, from a header's metadata."""
    words = _Words(metadata, where)
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in _KINDS:
        raise SyscallError(
            Errno.ENOTSUP,
            f"{where} has a tokenizer of the kind {str(kind)[:40]!r}; known are {', '.join(_KINDS)}; work with token ids",
        )
    try:
        core, begin, end = _KINDS[kind](words)
        _add_tokens(core, words)
    except SyscallError:
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise words.broken(f"its tokenizer cannot be built: {str(error)[:200]}") from None
    _surround(core, words, words.flag("add_bos_token", begin), words.flag("add_eos_token", end))
    named = {name: words.tokens[i] for name, key in _NAMED.items() if (i := words.id(key)) is not None}
    return Tokenizer(core, Settings(named=named, templates=_templates(metadata), where=where))


class _Words:
    """A file's metadata of its vocabulary, checked."""

    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        self.metadata = metadata
        self.where = where
        tokens = metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, Texts) or not len(tokens):
            raise SyscallError(Errno.EIO, f"{where} has no vocabulary; work with token ids")
        kinds = metadata.get("tokenizer.ggml.token_type")
        if kinds is None:
            kinds = np.full(len(tokens), _NORMAL)
        if not isinstance(kinds, np.ndarray) or kinds.ndim != 1 or len(kinds) != len(tokens):
            raise self.broken(f"it does not say of which kind each of its {len(tokens)} tokens is")
        added = int(np.isin(kinds, (_CONTROL, _USER_DEFINED)).sum())
        if added > _MOST_ADDED:
            raise self.broken(f"{added} of its tokens are control tokens or user's, at most {_MOST_ADDED} are taken")
        self.tokens: Sequence[str] = list(tokens)
        self.kinds: list[int] = kinds.tolist()

    @functools.cached_property
    def vocab(self) -> dict[str, int]:
        """Ids by token; of a token that is there twice, the first."""
        found: dict[str, int] = {}
        for i, token in enumerate(self.tokens):
            found.setdefault(token, i)
        return found

    def scores(self) -> list[float]:
        scores = self.metadata.get("tokenizer.ggml.scores")
        if not isinstance(scores, np.ndarray) or len(scores) != len(self.tokens) or not np.isfinite(scores).all():
            raise self.broken(f"it has no scores of its {len(self.tokens)} tokens")
        return [float(score) for score in scores]

    def merges(self) -> list[tuple[str, str]]:
        merges = self.metadata.get("tokenizer.ggml.merges", ())
        longer = any(len(token) > 1 and kind == _NORMAL for token, kind in zip(self.tokens, self.kinds, strict=True))
        if not isinstance(merges, Texts) and (merges != () or longer):  # writers leave an empty array out
            raise self.broken("it has no merges")
        vocab, found = self.vocab, []
        for merge in merges:
            at = merge.find(" ", 1)  # not the first: a token may be a space
            left, right = merge[:at], merge[at + 1 :]
            if left in vocab and right in vocab and left + right in vocab:
                found.append((left, right))
        return found

    def id(self, name: str) -> int | None:
        value = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(self.tokens):
            return None
        return value

    def unknown(self) -> str | None:
        i = self.id("unknown")
        return None if i is None else self.tokens[i]

    def flag(self, name: str, default: bool) -> bool:
        return bool(self.metadata.get(f"tokenizer.ggml.{name}", default))

    def broken(self, what: str) -> SyscallError:
        return SyscallError(Errno.EIO, f"broken GGUF file: {self.where}: {what}; copy or download it again")


# Each returns the tokenizer, and whether a text begins with BOS and ends with EOS if the file does not say.
_Made = tuple[Any, bool, bool]


def _byte_level(words: _Words) -> _Made:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    name = words.metadata.get("tokenizer.ggml.pre", "default")
    if name not in CUTS:
        raise SyscallError(
            Errno.ENOTSUP,
            f"{words.where} cuts its words as {str(name)[:40]!r} does, which is not known here; work with token ids",
        )
    cut = CUTS[name]
    core = Tokenizer(models.BPE(words.vocab, words.merges(), ignore_merges=cut.whole))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(split), "isolated") for split in cut.splits),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    return core, cut.begin, False


def _spaced_bpe(words: _Words) -> _Made:
    """Gemma 4's: merges over characters, spaces written as ▁, nothing merged across the end of a line."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    core = Tokenizer(
        models.BPE(words.vocab, words.merges(), unk_token=words.unknown(), fuse_unk=True, byte_fallback=True)
    )
    core.normalizer = normalizers.Replace(" ", _SPACE)
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+"), "isolated")
    core.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return core, True, False


def _sentencepiece(words: _Words) -> _Made:
    """The file has no merges: any two pieces that join to a third do, the one with the best score first."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocab = words.vocab
    core = Tokenizer(
        models.BPE(vocab, _by_score(words, vocab), unk_token=words.unknown(), fuse_unk=True, byte_fallback=True)
    )
    decoded = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if words.flag("add_space_prefix", True):
        core.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
        decoded.append(decoders.Strip(" ", 1, 0))
    else:
        core.normalizer = normalizers.Replace(" ", _SPACE)
    core.decoder = decoders.Sequence(decoded)
    return core, True, False


def _by_score(words: _Words, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the best piece first. Bounded, because it takes the square of a length."""
    scores = words.scores()
    longest, whole = max(map(len, vocab)), sum(map(len, vocab))
    if longest > _LONGEST or whole > _MOST_CHARACTERS:
        raise words.broken(
            f"its tokens have {whole} characters and one has {longest}, more than {_MOST_CHARACTERS} and {_LONGEST}"
        )
    merged = sorted((i for i in vocab.values() if len(words.tokens[i]) > 1), key=lambda i: (-scores[i], i))
    found = []
    for i in merged:
        token = words.tokens[i]
        if words.kinds[i] not in (_CONTROL, _BYTE, _UNUSED, _UNKNOWN):
            found += [
                (token[:at], token[at:]) for at in range(1, len(token)) if token[:at] in vocab and token[at:] in vocab
            ]
    return found


def _unigram(words: _Words) -> _Made:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    scores = words.scores()
    pieces = list(zip(words.tokens, scores, strict=True))
    core = Tokenizer(models.Unigram(pieces, words.id("unknown"), byte_fallback=_BYTE in words.kinds))
    steps: list[Any] = []
    charsmap = words.metadata.get("tokenizer.ggml.precompiled_charsmap")
    if isinstance(charsmap, np.ndarray) and charsmap.size:
        steps.append(normalizers.Precompiled(charsmap.astype(np.uint8).tobytes()))
    if words.flag("remove_extra_whitespaces", False):
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if steps:
        core.normalizer = normalizers.Sequence(steps)
    scheme = "always" if words.flag("add_space_prefix", True) else "never"
    core.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme=scheme)
    core.decoder = decoders.Metaspace(_SPACE, prepend_scheme=scheme)
    return core, False, True


def _wordpiece(words: _Words) -> _Made:
    """Files mark the beginning of a word with ▁; BERT's own vocabularies mark the rest of a word with ##."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocab: dict[str, int] = {}
    for i, (token, kind) in enumerate(zip(words.tokens, words.kinds, strict=True)):
        if kind == _NORMAL:
            token = token[1:] if token.startswith(_SPACE) else f"##{token}"
        vocab.setdefault(token, i)
    core = Tokenizer(models.WordPiece(vocab, unk_token=words.unknown() or "[UNK]", max_input_chars_per_word=1000))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    return core, True, True


_KINDS: dict[str, Callable[[_Words], _Made]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
    "gemma4": _spaced_bpe,
    "t5": _unigram,
    "bert": _wordpiece,
}


def _add_tokens(core: Any, words: _Words) -> None:
    """Control tokens are special, user-defined ones are found in text; both keep their ids."""
    from tokenizers import AddedToken

    core.add_tokens(
        [
            AddedToken(token, normalized=False, special=kind == _CONTROL)
            for token, kind in zip(words.tokens, words.kinds, strict=True)
            if token and kind in (_CONTROL, _USER_DEFINED)
        ]
    )


def _surround(core: Any, words: _Words, begin: bool, end: bool) -> None:
    """Put BOS before and EOS behind a text."""
    from tokenizers import processors

    bert = words.metadata.get("tokenizer.ggml.model") == "bert"
    first = words.id("cls") if bert and words.id("bos") is None else words.id("bos")
    last = words.id("seperator") if bert else words.id("eos")
    around = [(first, begin), (last, end)]
    before, behind = ([words.tokens[i]] if i is not None and wanted else [] for i, wanted in around)
    if not before and not behind:
        return
    ids = {words.tokens[i]: i for i, wanted in around if i is not None and wanted}
    core.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *behind],
        pair=[
            *before,
            "$A",
            *behind,
            *(f"{one}:1" for one in before),
            "$B:1",
            *(f"{one}:1" for one in behind),
        ],
        special_tokens=list(ids.items()),
    )


def _templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name."""
    found = {}
    for key, value in metadata.items():
        if isinstance(value, str) and key == _TEMPLATE:
            found["default"] = value
        elif isinstance(value, str) and key.startswith(_TEMPLATE + "."):
            found[key.removeprefix(_TEMPLATE + ".")] = value
    return found

"""The fields of the files around `tokenizer.json`: each one that is read has a type, and a value of another is refused by
its field's name before it is used. Libraries let Python fail where it happens to ("'int' object has no attribute
'items'"), which does not help the owner of such a file.

Two fields change `tokenizer.json` itself: `fast_tokenizer_files` names other files for other versions of transformers,
and `fix_mistral_regex` mends the way in which early files of Mistral's cut words. Both work as in transformers 5.24.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmasos.syscalls.errno import Errno, SyscallError

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
AS_OF = (5, 24)  # the version of transformers that is followed
_VERSIONED = re.compile(r"tokenizer\.(.*)\.json")
_PATCHED_FROM = 100_000  # ids; smaller vocabularies are left as they are
_MISTRALS = ("mistral", "mistral3", "voxtral", "ministral", "pixtral")
_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def is_token(value: Any) -> bool:
    if isinstance(value, str):
        return True
    flags = isinstance(value, dict) and all(isinstance(value.get(name, False), bool) for name in FLAGS)
    return flags and isinstance(value.get("content"), str)


def _is_id(value: Any) -> bool:
    return str(value).isascii() and str(value).isdigit() and len(str(value)) < 10


def _are_listed(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _is_id(i) and isinstance(token, dict) and is_token(token) for i, token in value.items()
    )


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_token, value))


def _are_named(value: Any) -> bool:
    return _are_tokens(value) or (isinstance(value, dict) and all(map(is_token, value.values())))


def _are_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _are_templates(value: Any) -> bool:
    if isinstance(value, list):
        return all(
            isinstance(one, dict) and isinstance(one.get("name"), str) and isinstance(one.get("template"), str)
            for one in value
        )
    if isinstance(value, dict):
        return all(isinstance(one, str) for one in value.values())
    return isinstance(value, str)


_TOKEN = 'a token: a text, or an object like {"content": "<s>", "lstrip": false}'
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(NAMED, (is_token, _TOKEN)),
    "extra_special_tokens": (_are_named, "a list of tokens, or an object of tokens by name"),
    "additional_special_tokens": (_are_tokens, "a list of tokens"),
    "chat_template": (_are_templates, "a text, or several with their names"),
    "split_special_tokens": (lambda value: isinstance(value, bool), "true or false"),
    "chat_control_tokens": (_are_strings, "a list of texts"),
    "fast_tokenizer_files": (_are_strings, "a list of names of files"),
    "added_tokens_decoder": (_are_listed, 'an object of tokens by id, like {"0": {"content": "<s>"}}'),
}


def checked_fields(file: Path, fields: Mapping[str, Any]) -> None:
    """Raise EIO for a field of a wrong type. A field that is null counts as absent."""
    for name, (fits, wanted) in _KINDS.items():
        value = fields.get(name)
        if not fits(value) and (value is not None or (name == "added_tokens_decoder" and name in fields)):
            raise _odd(file, name, wanted, value)


def checked_ids(file: Path, ids: Mapping[str, Any]) -> None:
    """Raise EIO unless that is a table of ids by token."""
    for token, i in ids.items():
        if isinstance(i, bool) or not isinstance(i, int) or not _is_id(i):
            raise _odd(file, token, "the id of a token, a whole number", i)


def _odd(file: Path, name: str, wanted: str, found: Any) -> SyscallError:
    shown = json.dumps(found)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    return SyscallError(Errno.EIO, f"{json.dumps(name)} in {file} is {shown}; wanted was {wanted}; correct it")


def versioned(file: Path, names: list[str], default: str) -> str:
    """The file among several that is the tokenizer: the last one, in the order of their names, that is for no later
    version of transformers. Raises EIO for a name that is none, or that is in another directory."""
    found = {match[1]: name for name in names if (match := _VERSIONED.search(name))}
    chosen = default
    for version in sorted(found):
        numbers = re.fullmatch(r"v?(\d{1,9}(?:\.\d{1,9})*)", version)
        if numbers is None or Path(found[version]).name != found[version]:
            raise _odd(file, "fast_tokenizer_files", "names like tokenizer.4.0.0.json", found[version])
        if tuple(map(int, numbers[1].split("."))) > AS_OF:
            break
        chosen = found[version]
    return chosen


def with_mistral_words(core: Any, config: Mapping[str, Any], model: Mapping[str, Any] | None) -> None:
    """Cut words as Mistral's models learnt them, if `fix_mistral_regex` says so and a transformers before 5.0 wrote the
    model (its `config.json`; None: there is none)."""
    from tokenizers import Regex, pre_tokenizers

    before = core.pre_tokenizer
    if not config.get("fix_mistral_regex") or model is None or before is None:
        return
    kind, version = (
        model.get("model_type"),
        re.match(r"\d{1,9}", str(model.get("transformers_version") or "0")),
    )
    if core.get_vocab_size() <= _PATCHED_FROM or (kind is not None and kind not in _MISTRALS):
        return
    if version is None or int(version[0]) >= 5:
        return
    words = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    if isinstance(before, pre_tokenizers.Sequence):
        core.pre_tokenizer[0] = words
        return
    if isinstance(before, pre_tokenizers.Metaspace):
        before = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([words, before])

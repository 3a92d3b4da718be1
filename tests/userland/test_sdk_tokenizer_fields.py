"""What the files around tokenizer.json hold: heeded as PreTrainedTokenizerFast of transformers heeds it, and refused by
name where it is of another kind."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.sdk.tokenizer_files import load_tokenizer
from tests.userland import words_zoo

TEXT = "AbABab12 ab HELLOworld, it's   a day\n\n/ x"
ODD: list[Any] = [
    5,
    1.5,
    True,
    "",
    "x",
    [5],
    [None],
    [[]],
    {"a": 1},
    {"1": 5},
    {"content": 5},
    [{"name": 1}],
    [],
    {},
]


def written(place: Path, config: dict[str, Any], file: str = "tokenizer_config.json") -> str:
    place.mkdir(parents=True, exist_ok=True)
    (place / "tokenizer.json").write_text(words_zoo.core_json("byte-level"))
    (place / file).write_text(json.dumps(config))
    return str(place)


def refusal(place: str) -> SyscallError | None:
    try:
        load_tokenizer(place)
    except SyscallError as error:
        return error
    return None


@pytest.mark.parametrize(
    "field",
    [
        "added_tokens_decoder", "bos_token", "unk_token", "extra_special_tokens", "additional_special_tokens",
        "chat_template", "chat_control_tokens", "split_special_tokens", "fast_tokenizer_files",
    ],
)  # fmt: skip
def test_a_field_of_another_kind_is_refused_by_its_name(tmp_path: Path, field: str) -> None:
    """What transformers takes is taken, but for what it would only fail of later (a template that is a number)."""
    refused, late = (
        0,
        ("added_tokens_decoder", "chat_template", "chat_control_tokens", "fast_tokenizer_files"),
    )
    for number, value in enumerate(ODD):
        place = written(tmp_path / str(number), {field: value})
        try:
            PreTrainedTokenizerFast.from_pretrained(place)
            taken = field not in late and value not in ({}, [])
        except (TypeError, AttributeError, ValueError, KeyError):
            taken = False
        error = refusal(place)
        if error is not None:
            refused += 1
            assert error.errno is Errno.EIO
            assert error.reason.startswith(f'"{field}" in {place}/tokenizer_config.json is ')
            assert "; wanted was " in error.reason
            assert not taken
    assert refused >= 6


@pytest.mark.parametrize(("file", "field"), [("added_tokens.json", "<x>"), ("special_tokens_map.json", "bos_token")])
def test_older_files_say_what_is_odd_in_them_too(tmp_path: Path, file: str, field: str) -> None:
    place = written(tmp_path, {field: ["five"]}, file)
    with pytest.raises(SyscallError) as caught:
        load_tokenizer(place)
    assert caught.value.errno is Errno.EIO
    assert f'"{field}" in {place}/{file} is ["five"]; wanted was ' in caught.value.reason


@pytest.mark.parametrize(
    "names",
    [
        ["tokenizer.json"],
        ["tokenizer.4.0.0.json", "tokenizer.json"],
        ["tokenizer.4.0.0.json", "tokenizer.5.0.json", "tokenizer.99.0.0.json"],
        ["tokenizer.99.0.0.json"],
        ["tokenizer.10.0.json", "tokenizer.5.0.json"],  # versions are in the order of their names
        ["other.json"],
        [],
    ],
)
def test_the_tokenizer_of_a_version_is_that_which_transformers_takes(tmp_path: Path, names: list[str]) -> None:
    place = written(tmp_path, {"fast_tokenizer_files": names})
    for number, name in enumerate(["tokenizer.json", *names]):
        core = Tokenizer.from_str(words_zoo.core_json("byte-level"))
        core.add_tokens([f"<{number}>"])
        core.save(str(tmp_path / name))
    theirs = PreTrainedTokenizerFast.from_pretrained(place)
    assert {i: token.content for i, token in load_tokenizer(place).added.items()} == {
        i: token for token, i in theirs.get_added_vocab().items()
    }


def test_the_tokenizer_of_a_version_lies_in_the_directory(tmp_path: Path) -> None:
    place = written(tmp_path, {"fast_tokenizer_files": ["../tokenizer.4.0.0.json"]})
    with pytest.raises(SyscallError, match="fast_tokenizer_files") as caught:
        load_tokenizer(place)
    assert caught.value.errno is Errno.EIO
    written(tmp_path, {"fast_tokenizer_files": ["tokenizer.4.0.0.json"]})
    with pytest.raises(SyscallError, match="there is no such file") as caught:
        load_tokenizer(place)
    assert caught.value.errno is Errno.ENOENT


@functools.cache
def large(before: str) -> str:
    """A tokenizer with more than 100,000 ids, which cuts words in one of three ways."""
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("a", "b"), ("1", "2"), ("A", "B"), ("A", "b")]
    for one, other in merges:
        vocabulary[one + other] = len(vocabulary)
    vocabulary |= {f"<filler {i}>": i for i in range(len(vocabulary), 100_100)}
    core = Tokenizer(models.BPE(vocabulary, merges))
    core.decoder = decoders.ByteLevel()
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = {
        "sequence": pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "isolated"), bytes_only]),
        "bytes": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "metaspace": pre_tokenizers.Metaspace(split=False),
    }[before]
    text: str = core.to_str()
    return text


OLD = {"model_type": "mistral", "transformers_version": "4.50.0"}


@pytest.mark.parametrize(
    ("before", "model", "fix", "mended"),
    [
        ("sequence", OLD, True, True),
        ("bytes", {"model_type": "mistral3"}, True, True),
        ("metaspace", {}, True, True),
        ("sequence", OLD, None, False),
        ("sequence", OLD, False, False),
        ("sequence", {**OLD, "transformers_version": "5.1.0"}, True, False),
        ("sequence", {**OLD, "model_type": "llama"}, True, False),
        ("sequence", None, True, False),
    ],
)
def test_mistrals_words_are_put_right_where_transformers_does(
    tmp_path: Path, before: str, model: dict[str, Any] | None, fix: bool | None, mended: bool
) -> None:
    (tmp_path / "tokenizer.json").write_text(large(before))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({} if fix is None else {"fix_mistral_regex": fix}))
    if model is not None:
        (tmp_path / "config.json").write_text(json.dumps(model))
    ids = PreTrainedTokenizerFast.from_pretrained(str(tmp_path)).encode(TEXT, add_special_tokens=False)
    ours = load_tokenizer(str(tmp_path))
    assert ours.encode(TEXT, control=True) == ids
    assert ("12" not in [ours.token_of(i) for i in ids]) == mended

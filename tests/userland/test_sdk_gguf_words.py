"""The words of GGUF files: llama.cpp's own ids on its own vocabularies, and templates that come with a file.

The vocabularies are in the source of llama-cpp-python (tests/llama_cpp_source.py); they are never committed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf as package
import pytest

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.sdk import gguf_words
from llmasos.userland.sdk.gguf_pretokenizers import CUTS
from llmasos.userland.sdk.tokenizer_files import load_tokenizer
from tests import models_zoo
from tests.gguf_writer import convert
from tests.llama_cpp_source import VOCABULARIES, WHY

_SEPARATOR = "\n__ggml_vocab_test__\n"


@pytest.mark.parametrize(
    "file",
    VOCABULARIES or [pytest.param(None, marks=pytest.mark.skip(reason=WHY))],
    ids=lambda file: file.stem if isinstance(file, Path) else "none",
)
def test_ids_are_llama_cpps_own_on_its_difficult_texts(file: Path) -> None:
    tokenizer = gguf_words.load(file)
    texts, ids = file.with_name(f"{file.name}.inp"), file.with_name(f"{file.name}.out")
    if not texts.exists():
        assert tokenizer.decode(tokenizer.encode("A text.", control=False)).strip()
        return
    wanted = [[int(i) for i in line.split()] for line in ids.read_text().split("\n")]
    given = texts.read_bytes().decode().split(_SEPARATOR)
    assert len(wanted) >= len(given) > 40
    for text, expected in zip(given, wanted, strict=False):
        assert tokenizer.encode(text, control=False) == expected, text


def _write(target: Path, **more: Any) -> Path:
    writer = package.GGUFWriter(target, "llama")
    for name, value in more.items():
        if name == "template":
            writer.add_chat_template(value)
        else:
            getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return target


def _sentencepiece(target: Path, **more: Any) -> Path:
    """Byte tokens, letters, and merges by score: `▁th` before `th` before `he`."""
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    pieces += [(word, 1) for word in ("▁th", "th", "he", "▁the", "▁", "t", "h", "e", "n", "é")] + [("<|user|>", 4)]
    return _write(
        target,
        tokenizer_model="llama",
        token_list=[word for word, _ in pieces],
        token_scores=[-float(i) for i in range(len(pieces))],
        token_types=[kind for _, kind in pieces],
        bos_token_id=1,
        eos_token_id=2,
        unk_token_id=0,
        **more,
    )


def _spelled(tokenizer: Any, text: str, **options: bool) -> list[str]:
    return [tokenizer.token_of(i) for i in tokenizer.encode(text, **{"control": True} | options)]


def test_sentencepiece_merges_by_score_and_writes_what_it_does_not_know_in_bytes(tmp_path: Path) -> None:
    tokenizer = gguf_words.load(_sentencepiece(tmp_path / "spm.gguf"))
    assert _spelled(tokenizer, "then") == ["▁the", "n"]
    assert _spelled(tokenizer, "ß") == ["▁", "<0xC3>", "<0x9F>"]
    assert _spelled(tokenizer, "the", begin=True) == ["<s>", "▁the"]
    assert _spelled(tokenizer, "he<|user|>he") == ["▁", "he", "<|user|>", "▁", "he"]
    assert tokenizer.decode(tokenizer.encode("then é ß", control=True)) == "then é ß"
    assert 1 in tokenizer.special_ids
    assert not tokenizer.added[tokenizer.id_of("<|user|>") or 0].special


def test_files_say_whether_a_text_begins_with_a_space_and_with_bos(tmp_path: Path) -> None:
    file = _sentencepiece(tmp_path / "spm.gguf", add_space_prefix=False, add_bos_token=False)
    assert _spelled(gguf_words.load(file), "the", begin=True) == ["th", "e"]


def test_templates_by_name_and_named_tokens_are_those_of_the_file(tmp_path: Path) -> None:
    templates = [
        {"name": "default", "template": "{{ bos_token }}"},
        {"name": "tool_use", "template": "{{ tools }}"},
    ]
    settings = gguf_words.load(_sentencepiece(tmp_path / "spm.gguf", template=templates)).settings
    assert settings.templates == {"default": "{{ bos_token }}", "tool_use": "{{ tools }}"}
    assert settings.named["bos_token"] == "<s>"


def test_the_words_of_a_directory_of_gguf_files_are_those_of_the_file_that_is_run(tmp_path: Path) -> None:
    model = models_zoo.build("llama", tmp_path / "model")
    (tmp_path / "alone").mkdir()
    file = convert(model, tmp_path / "alone" / "tiny-Q8_0.gguf", "Q8_0")
    assert load_tokenizer(str(file.parent)) is load_tokenizer(str(file))


def test_a_converted_model_has_the_words_that_it_had(tmp_path: Path) -> None:
    directory = models_zoo.build("llama", tmp_path / "llama")
    file = convert(directory, tmp_path / "model.gguf")
    ours, theirs = load_tokenizer(str(file)), load_tokenizer(str(directory))
    for text in ("Hello, wörld!\n\n  12345 <|user|>x", "", " ", "\u3042\U0001f600"):
        assert ours.encode(text, control=True) == theirs.encode(text, control=True)
        assert ours.encode(text, control=False) == theirs.encode(text, control=False)
    assert ours.settings.templates == theirs.settings.templates
    assert ours.settings.named.items() >= {"bos_token": "<|begin|>", "eos_token": "<|end|>"}.items()
    assert ours.special_ids == theirs.special_ids


@pytest.mark.parametrize("name", sorted(CUTS))
def test_every_cut_leaves_a_text_whole(name: str, tmp_path: Path) -> None:
    letters = [letter for _, letter in sorted(models_zoo._byte_letters().items())]
    file = _write(
        tmp_path / "bpe.gguf",
        tokenizer_model="gpt2",
        tokenizer_pre=name,
        token_list=letters,
    )
    text = "It's 1234567 o'clock;  the\r\n\n dog\u2019s ÉTÉ… はい、中文 \t(x+y)² "
    ids = gguf_words.load(file).encode(text, control=True)
    assert bytes(ids) == text.encode()


def test_what_is_not_known_or_makes_no_sense_is_an_errno(tmp_path: Path) -> None:
    cases: tuple[tuple[dict[str, Any], Errno], ...] = (
        ({"tokenizer_model": "rwkv", "token_list": ["a"]}, Errno.ENOTSUP),
        ({"tokenizer_model": "gpt2", "tokenizer_pre": "other", "token_list": ["a"]}, Errno.ENOTSUP),
        ({"tokenizer_model": "gpt2", "token_list": ["a", "b", "ab"]}, Errno.EIO),
        ({"tokenizer_model": "llama", "token_list": ["a", "b"]}, Errno.EIO),
        ({"tokenizer_model": "llama"}, Errno.EIO),
        ({"tokenizer_model": "llama", "token_list": ["a" * 2_000_000], "token_scores": [0.0]}, Errno.EIO),
    )  # fmt: skip
    for number, (fields, errno) in enumerate(cases):
        with pytest.raises(SyscallError) as refused:
            gguf_words.load(_write(tmp_path / f"{number}.gguf", **fields))
        assert refused.value.errno is errno

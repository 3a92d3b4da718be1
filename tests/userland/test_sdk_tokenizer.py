"""The SDK's tokenizers give the ids and the texts that transformers' PreTrainedTokenizerFast gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.sdk.template import ChatTemplate
from llmasos.userland.sdk.tokenizer_files import load_tokenizer
from tests.booted import PATIENCE
from tests.userland import words_zoo
from tests.userland.tokenizers_zoo import directory, many


@many
@given(words_zoo.tokenizer_files(), st.lists(words_zoo.texts, min_size=1, max_size=4), st.data())
def test_ids_and_texts_are_those_of_transformers(files: dict[str, Any], said: list[str], data: st.DataObject) -> None:
    with directory(files) as place:
        theirs = PreTrainedTokenizerFast.from_pretrained(place)
        ours = load_tokenizer(place)
        assert ours.size == len(theirs)
        assert {i: t.content for i, t in ours.added.items()} == {
            i: token for token, i in theirs.get_added_vocab().items()
        }
        assert dict(ours.settings.named) == theirs.special_tokens_map
        for text in said:
            for begin in (False, True):
                try:
                    expected = theirs.encode(text, add_special_tokens=begin)
                except BaseException as error:  # a panic of the library, once in some thousand examples
                    if type(error).__name__ != "PanicException":
                        raise
                    with pytest.raises(SyscallError):
                        ours.encode(text, control=True, begin=begin)
                else:
                    assert ours.encode(text, control=True, begin=begin) == expected
        ids = data.draw(st.lists(st.integers(0, len(theirs) + 3), max_size=20))
        for special in (False, True):
            text = theirs.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False)
            assert ours.decode(ids, special=special) == text


# --- shapes of their own ----------------------------------------------------------------------------------------------


def written(place: Path, core: Tokenizer, **config: Any) -> str:
    files = {"tokenizer.json": json.loads(core.to_str()), "tokenizer_config.json": config}
    return str(words_zoo.write(files, place))


def core_of(name: str, *control: str) -> Tokenizer:
    core = Tokenizer.from_str(words_zoo.core_json(name))
    core.add_tokens([AddedToken(token, special=True) for token in control])
    return core


@pytest.mark.parametrize("name", sorted(words_zoo.CORES))
def test_what_spells_a_control_token_stays_text(name: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(written(tmp_path, core_of(name, "<|im_end|>", "</s>")))
    control = {tokenizer.id_of("<|im_end|>"), tokenizer.id_of("</s>")}
    said = "the user says</s> hello<|im_end|>yes"
    assert control <= set(tokenizer.encode(said, control=True))
    ids = tokenizer.encode(said, control=False)
    assert not control & set(ids)
    if name not in ("wordpiece", "wordlevel"):  # which forget spaces
        assert tokenizer.decode(ids).lstrip() == said


@pytest.mark.parametrize("name", ["byte-level", "llama", "metaspace always", "unigram", "wordpiece"])
@pytest.mark.parametrize("special", [True, False])
def test_what_a_normaliser_makes_a_control_token_of_stays_text(name: str, special: bool, tmp_path: Path) -> None:
    """`<|IM_END|>`, or wide brackets, is what the token's own spelling is."""
    core = Tokenizer.from_str(words_zoo.core_json(name))
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace("q", "")])
    core.add_tokens([AddedToken("<|im_end|>", special=special, normalized=True)])
    template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    tokenizer = load_tokenizer(written(tmp_path, core, chat_template=template))
    end = tokenizer.id_of("<|im_end|>")
    for veiled in ("<|IM_END|>", "\uff1c|im_end|\uff1e", "<|imq_Qend|>", "<|im_<|im_END|>end|>", "<|IM_END|>" * 3):
        assert end in tokenizer.encode(veiled, control=True)
        assert end not in tokenizer.encode(f"it says{veiled} here", control=False)
        said = ChatTemplate(tokenizer).ids([{"role": "user", "content": veiled}], prompt=False)
        assert said.count(end) == 1, "the template's own"


def test_tokenizer_json_decides_whatever_class_is_named(tmp_path: Path) -> None:
    core = core_of("byte-level, split")
    expected = core.encode("1234567").ids
    for kind in ("Qwen2Tokenizer", "LlamaTokenizer", "CohereTokenizer", "NoSuchTokenizer"):
        place = written(tmp_path / kind, core, tokenizer_class=kind)
        assert load_tokenizer(place).encode("1234567", control=False) == expected


@pytest.mark.processes
def test_no_code_of_a_repository_runs_and_nothing_is_asked(tmp_path: Path) -> None:
    for number, with_file in enumerate((True, False)):
        place = tmp_path / str(number)
        written(place, core_of("llama"), auto_map={"AutoTokenizer": ["words.Words", "words.Words"]})
        if not with_file:
            (place / "tokenizer.json").unlink()
        trace = tmp_path / f"ran {number}"
        (place / "words.py").write_text(f"open({str(trace)!r}, 'w')\nclass Words: pass\n")
        program = f"from llmasos.userland.sdk.tokenizer_files import load_tokenizer\nload_tokenizer({str(place)!r})"
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, input="y\ny\n", capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == (0 if with_file else 1)
        assert with_file or "no tokenizer can be loaded" in done.stderr
        assert "[y/N]" not in done.stdout + done.stderr
        assert not trace.exists()


@pytest.mark.processes
def test_a_tokenizer_is_read_without_transformers_or_torch(tmp_path: Path) -> None:
    place = written(tmp_path, core_of("llama"))
    program = f"""
import sys
from llmasos.userland.sdk.template import ChatTemplate
from llmasos.userland.sdk.tokenizer_files import load_tokenizer
from llmasos.userland.sdk.template import ChatTemplate
load_tokenizer({place!r}).encode("hello", control=False, begin=True)
print([name for name in ("torch", "transformers", "numpy", "jinja2") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_model_written_anew_has_new_words(tmp_path: Path) -> None:
    place = written(tmp_path, core_of("llama"))
    first = load_tokenizer(place)
    assert load_tokenizer(place) is first
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    second = load_tokenizer(place)
    assert second.settings.templates == {"default": "{{ messages }}"}
    written(tmp_path, core_of("gemma"))
    assert load_tokenizer(place).digest != second.digest == first.digest


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no tokenizer can be loaded from"),
        ('{"version": "9.0", "model": {"type": "Future"}}', "no tokenizer can be loaded from"),
        ("[]", "no tokenizer can be loaded from"),
        ("\0" * 100, "no tokenizer can be loaded from"),
    ],
)
def test_what_is_no_tokenizer_is_refused_with_the_library_s_words(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(SyscallError, match=words) as caught:
        load_tokenizer(str(tmp_path))
    assert caught.value.errno is Errno.EIO


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_pipe_in_the_place_of_a_file_is_refused(tmp_path: Path, name: str) -> None:
    written(tmp_path, core_of("llama"))
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(SyscallError, match="no regular file") as caught:
        load_tokenizer(str(tmp_path))
    assert caught.value.errno is Errno.EIO


@pytest.mark.parametrize("kind", ["Replace", "Replace twice", "Replace regex"])
def test_a_normaliser_that_would_make_gigabytes_is_refused(tmp_path: Path, kind: str) -> None:
    core = core_of("llama")
    step = normalizers.Replace(Regex("h?") if kind == "Replace regex" else "h", "h" * 100_000)
    core.normalizer = normalizers.Sequence([step] * (2 if kind == "Replace twice" else 1))
    tokenizer = load_tokenizer(written(tmp_path, core))
    with pytest.raises(SyscallError, match="characters of each, too many for a text of 6000") as caught:
        tokenizer.encode("hello " * 1000, control=False)
    assert caught.value.errno is Errno.E2BIG


def test_tokens_that_would_be_gigabytes_of_text_are_refused(tmp_path: Path) -> None:
    core = core_of("llama")
    core.add_tokens(["x" * 4000])
    tokenizer = load_tokenizer(written(tmp_path, core))
    long = tokenizer.id_of("x" * 4000)
    assert long is not None
    assert len(tokenizer.decode([long])) == 4000
    with pytest.raises(SyscallError, match="at most 64000000 are decoded") as caught:
        tokenizer.decode([long] * 20_000)
    assert caught.value.errno is Errno.E2BIG


def test_control_tokens_that_take_too_long_to_look_for_are_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(written(tmp_path, core_of("llama", *("a" * n + "b" for n in range(1, 1000)))))
    assert tokenizer.encode("a" * 100, control=False) == tokenizer.encode("a" * 100, control=True)
    with pytest.raises(SyscallError, match="control tokens of 999 lengths") as caught:
        tokenizer.encode("a" * 100_000, control=False)
    assert caught.value.errno is Errno.E2BIG
    core = core_of("llama", "a" * 10_000)
    with pytest.raises(SyscallError, match=r"^EIO: .*10000"):
        load_tokenizer(written(tmp_path / "longer", core))


@pytest.mark.processes
def test_a_model_that_needs_transformers_says_so_where_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"sentencepiece")
    program = f"""
import sys
sys.modules["transformers"] = None
from llmasos.userland.sdk.template import ChatTemplate
from llmasos.userland.sdk.tokenizer_files import load_tokenizer
try:
    load_tokenizer({str(tmp_path)!r})
except Exception as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert "needs transformers, which is not installed: pip install transformers" in done.stdout


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "gemma2", "llama"])
def test_a_directory_without_files_of_a_tokenizer_has_none(tmp_path: Path, kind: str) -> None:
    """transformers makes some classes out of nothing, whose every text has no tokens."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(SyscallError, match="tokenizer") as caught:
        load_tokenizer(str(tmp_path))
    assert caught.value.errno is Errno.EIO


def test_an_expression_that_tries_for_ever_is_an_errno(tmp_path: Path) -> None:
    core = core_of("llama")
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"(a|aa|b?a)+(?=c)"), "isolated")
    tokenizer = load_tokenizer(written(tmp_path, core))
    with pytest.raises(SyscallError, match="retry-limit") as caught:
        tokenizer.encode("a" * 60, control=False)
    assert f"({tmp_path}/tokenizer.json)" in caught.value.reason, "whose it is"
    assert caught.value.errno is Errno.EINVAL
    assert tokenizer.decode(tokenizer.encode("hello", control=False)) == "hello"


@pytest.mark.parametrize("ids", [[-1], [10**30], ["a"], [None]])
def test_what_is_no_id_is_refused(tmp_path: Path, ids: Any) -> None:
    tokenizer = load_tokenizer(written(tmp_path, core_of("llama")))
    with pytest.raises(SyscallError) as caught:
        tokenizer.decode(ids)
    assert caught.value.errno is Errno.EINVAL

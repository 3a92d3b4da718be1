"""Pieces of a stream always join to the text of the whole, and stop strings are found across pieces."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from llmasos.syscalls.errno import SyscallError
from llmasos.userland.sdk.text import Detokenizer, StopStrings
from tests.booted import PATIENCE

BYTE_LEVEL = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level() -> Callable[[Sequence[int]], str]:
    """A tokenizer whose tokens are single bytes: every character beyond ASCII is split."""
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(BYTE_LEVEL)}, unk_token=BYTE_LEVEL[0]))
    tokenizer.decoder = decoders.ByteLevel()
    return lambda ids: tokenizer.decode(list(ids))


def metaspace() -> Callable[[Sequence[int]], str]:
    """A sentencepiece-like tokenizer: the space belongs to the word after it, and the first one is not written."""
    words = ["▁a", "▁word", "s", "▁", "▁été", "漢", "字", "▁😀"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="▁"))
    tokenizer.decoder = decoders.Metaspace()
    return lambda ids: tokenizer.decode(list(ids))


def byte_fallback() -> Callable[[Sequence[int]], str]:
    """A tokenizer as Llama 2's: words, and a token for every byte (ids 0 to 255) that no word has."""
    words = [*(f"<0x{byte:02X}>" for byte in range(256)), *BESIDE_BYTES]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="A"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return lambda ids: tokenizer.decode(list(ids))


BESIDE_BYTES = ["A", "▁B", "▁"]


def split(ids: Sequence[int], cuts: Sequence[int]) -> list[list[int]]:
    """`ids` in runs of the lengths `cuts`, the rest in ones."""
    runs, at = [], 0
    for length in cuts:
        runs.append(list(ids[at : at + length]))
        at += length
    return runs + [[i] for i in ids[at:]]


def pieces(decode: Callable[[Sequence[int]], str], runs: Sequence[Sequence[int]]) -> list[str]:
    detokenizer = Detokenizer(decode)
    return [*(detokenizer.push(run) for run in runs), detokenizer.flush()]


@given(st.text(max_size=40), st.lists(st.integers(0, 5), max_size=20))
def test_pieces_of_bytes_join_to_the_text_and_never_hold_half_a_character(text: str, cuts: list[int]) -> None:
    table = {byte: i for i, byte in enumerate(BYTE_LEVEL)}
    encoded = Tokenizer(models.WordLevel(table, unk_token=BYTE_LEVEL[0]))
    encoded.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            pre_tokenizers.Split("", "isolated"),
        ]
    )
    ids = encoded.encode(text).ids
    parts = pieces(byte_level(), split(ids, cuts))
    assert "".join(parts) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)


@given(st.lists(st.integers(0, len(BYTE_LEVEL) - 1), max_size=40), st.lists(st.integers(0, 5), max_size=20))
def test_bytes_that_are_no_text_come_out_as_the_whole_decodes(ids: list[int], cuts: list[int]) -> None:
    decode = byte_level()
    assert "".join(pieces(decode, split(ids, cuts))) == decode(ids)


@given(st.lists(st.integers(0, 7), max_size=40), st.lists(st.integers(0, 5), max_size=20))
def test_pieces_of_a_metaspace_tokenizer_join_to_the_text(ids: list[int], cuts: list[int]) -> None:
    decode = metaspace()
    assert "".join(pieces(decode, split(ids, cuts))) == decode(ids)


@given(
    st.lists(st.one_of(st.characters(min_codepoint=128, codec="utf-8"), st.integers(256, 258)), max_size=20),
    st.lists(st.integers(0, 5), max_size=20),
)
def test_pieces_of_characters_spelt_in_bytes_join_to_the_text(items: list[str | int], cuts: list[int]) -> None:
    decode = byte_fallback()
    ids = [i for item in items for i in (item.encode() if isinstance(item, str) else [item])]
    parts = pieces(decode, split(ids, cuts))
    assert "".join(parts) == decode(ids)
    if "\ufffd" not in items:
        assert not any("\ufffd" in part for part in parts)


@given(st.lists(st.one_of(st.integers(128, 255), st.integers(256, 258)), max_size=40))
@example([*"中".encode(), 255, 256, 257])
def test_bytes_that_are_no_text_swallow_nothing_of_what_follows(ids: list[int]) -> None:
    text = "".join(pieces(byte_fallback(), [[i] for i in ids]))
    assert [c for c in text if c in "AB"] == [BESIDE_BYTES[i - 256].strip("▁") for i in ids if i in (256, 257)]


@given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_a_stop_string_cuts_the_text_wherever_the_pieces_end(parts: list[str], stops: list[str]) -> None:
    watch = StopStrings(stops)
    given_text = "".join(watch.push(part) for part in parts)
    if not watch.stopped:
        given_text += watch.flush()
    whole = "".join(parts)
    # What is found first while reading on, not what begins first: the shortest prefix that holds a stop string.
    ends = [end for end in range(len(whole) + 1) if any(stop in whole[:end] for stop in stops)]
    if not ends:
        assert (given_text, watch.stopped) == (whole, False)
    else:
        assert watch.stopped
        assert whole.startswith(given_text)
        assert any(whole[len(given_text) :].startswith(stop) for stop in stops)
        assert not any(stop in given_text for stop in stops)
    assert watch.given == len(given_text)


def test_text_that_may_begin_a_stop_string_is_held_back_until_it_is_known() -> None:
    watch = StopStrings(["###"])
    assert watch.push("one #") == "one "
    assert watch.push("#") == ""
    assert watch.push(" two") == "## two"


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(SyscallError, match=r"^EINVAL: .*stop"):
        StopStrings([""])


def test_a_directory_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    from llmasos.userland.sdk.tokenizer_files import load_tokenizer

    with pytest.raises(SyscallError, match=f"^EIO: .*{tmp_path}"):
        load_tokenizer(str(tmp_path))


@pytest.mark.processes
def test_threads_that_need_a_tokenizer_at_once_get_the_same_one() -> None:
    program = """
import sys, threading
from llmasos.userland.sdk.tokenizer_files import load_tokenizer
barrier, found = threading.Barrier(8), []
def load():
    barrier.wait()
    found.append(load_tokenizer(sys.argv[1]))
team = [threading.Thread(target=load) for _ in range(8)]
for thread in team: thread.start()
for thread in team: thread.join()
print(len(found), len(set(map(id, found))))
"""
    command = [sys.executable, "-c", program, str(Path("models", "tiny").absolute())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("8 1\n", "")

"""The SDK's tokenizers give the ids and the texts that transformers' PreTrainedTokenizerFast gives."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tests.userland import words_zoo
from userland.sdk.tokenizer_files import load_tokenizer

EXAMPLES = int(os.environ.get("LLMASOS_EXAMPLES", "200"))
many = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@contextmanager
def directory(files: dict[str, Any]) -> Iterator[str]:
    place = tempfile.mkdtemp()
    try:
        yield str(words_zoo.write(files, Path(place)))
    finally:
        shutil.rmtree(place)


@many
@given(words_zoo.tokenizer_files(), st.lists(words_zoo.texts, min_size=1, max_size=4), st.data())
def test_ids_and_texts_are_those_of_transformers(
    files: dict[str, Any], said: list[str], data: st.DataObject
) -> None:
    with directory(files) as place:
        theirs = PreTrainedTokenizerFast.from_pretrained(place)
        ours = load_tokenizer(place)
        assert ours.size == len(theirs)
        assert {i: t.content for i, t in ours.added.items()} == theirs.get_added_vocab().__class__(
            (i, t) for t, i in theirs.get_added_vocab().items()
        )
        assert dict(ours.settings.named) == theirs.special_tokens_map
        for text in said:
            for begin in (False, True):
                expected = theirs.encode(text, add_special_tokens=begin)
                assert ours.encode(text, control=True, begin=begin) == expected
        ids = data.draw(st.lists(st.integers(0, len(theirs) + 3), max_size=20))
        for special in (False, True):
            text = theirs.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False)
            assert ours.decode(ids, special=special) == text

"""The simulated device has words: no file, no network, and the SDK and the shell work on it as on any model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.modelfiles.sim_vocabulary import END, MOST_WORDS
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import ModelInfo
from llmasos.userland.sdk import actions
from llmasos.userland.sdk.llm import LLM
from llmasos.userland.sdk.sim_words import sim_tokenizer
from llmasos.userland.sdk.system import System
from llmasos.userland.sdk.tokenizer import MARK, UNMARK
from tests.userland.command_line import DEADLINE, llmasos

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.sampled_from(
    ["", " ", "\x00\x7f", "a\r\n\tb", "wörld 🙂", END, f"x{END}y", f"{MARK}x{UNMARK}"]
)
VOCABS = [257, 300, 32_000, MOST_WORDS + 1, 200_000]


# --- the tokenizer --------------------------------------------------------------------------------------------------


@given(text=texts, vocab=st.sampled_from(VOCABS))
def test_any_text_comes_back_as_it_was(text: str, vocab: int) -> None:
    tokenizer = sim_tokenizer(vocab)
    plain = text.replace(MARK, "").replace(UNMARK, "")  # the SDK's own, which no text has
    ids = tokenizer.encode(text, control=False)
    assert tokenizer.decode(ids, special=True) == plain
    assert len(ids) == len(plain.encode())
    assert vocab - 1 not in ids, "text is not control"


@given(ids=st.lists(st.integers(0, 31_999), max_size=40))
def test_every_id_has_a_text_and_pieces_join_to_the_whole(ids: list[int]) -> None:
    tokenizer = sim_tokenizer(32_000)
    text = tokenizer.decode(ids, special=True)
    assert all(tokenizer.decode([i], special=True) for i in ids)
    if all(i > 255 for i in ids):  # words: bytes may be halves of characters
        assert "".join(tokenizer.decode([i], special=True) for i in ids) == text


def test_words_differ_and_the_last_id_is_the_end() -> None:
    tokenizer = sim_tokenizer(32_000)
    words = [tokenizer.decode([i]) for i in range(256, 31_999)]
    assert len(set(words)) == len(words)
    assert all(word.startswith(" ") and word[1:].isalpha() and word.isascii() for word in words)
    assert tokenizer.encode(f"hi{END}", control=True)[-1] == 31_999
    assert (tokenizer.decode([31_999]), tokenizer.decode([31_999], special=True)) == ("", END)
    assert tokenizer.special_ids == {31_999}


def test_a_small_vocabulary_writes_what_it_has_bytes_for_and_refuses_the_rest() -> None:
    tokenizer = sim_tokenizer(100)
    text = "Hello, world? #1\n{~}"
    assert tokenizer.decode(tokenizer.encode(text, control=True)) == text
    with pytest.raises(SyscallError) as caught:
        tokenizer.encode("wörld", control=True)
    assert caught.value.errno is Errno.EINVAL
    assert tokenizer.decode(range(99), special=True).isascii()
    with pytest.raises(SyscallError) as caught:
        sim_tokenizer(3)
    assert caught.value.errno is Errno.ENOTSUP


def test_a_vocabulary_beyond_all_words_is_silent_there_and_costs_no_more() -> None:
    tokenizer = sim_tokenizer((1 << 31) - 1)
    assert tokenizer.decode([1 << 30, (1 << 31) - 2]) == ""
    assert tokenizer.decode([(1 << 31) - 2], special=True) == END
    assert tokenizer.digest != sim_tokenizer(32_000).digest


def test_models_of_one_path_and_several_vocabularies_have_words_of_their_own() -> None:
    small, large = (
        actions.language_of(ModelInfo("sim", "sim", architecture="sim", vocab=vocab, context=99)) for vocab in (300, 400)
    )
    assert small.stop_ids == [299]
    assert large.stop_ids == [399]


# --- on a system ----------------------------------------------------------------------------------------------------


def test_ids_text_and_turns_work_as_on_any_model(where: Path) -> None:
    with System.connect(where, name="test") as system:
        with system.spawn("sim", prompt=[7] * 100) as process:
            said = process.generate(5)
            assert process.tokens()[:100] == [7] * 100
            assert said == process.language.decode(process.tokens()[100:])
            assert len(process.tokens()) == 105
        with system.spawn("sim", system="Be brief.") as agent:
            first = "".join(agent.say("hi", 6))
            assert agent.text().startswith("system: Be brief.\nuser: hi\nassistant: " + first)
            second = agent.ask("and you?", 6)
            assert agent.text().endswith(f"\nuser: and you?\nassistant: {second}")
            child = agent.fork()[0]
            assert child.text() == agent.text()
            child.end()
        with LLM.from_pretrained("sim", system=system) as llm:
            assert llm.generate("Once", max_new_tokens=4) == llm.generate("Once", max_new_tokens=4) != ""


def test_a_conversation_moves_to_a_simulated_model_of_other_words(where: Path) -> None:
    with System.connect(where, name="test") as system, system.spawn("sim", system="Be brief.") as agent:
        agent.ask("hi", 4)
        before = agent.text()
        agent.exec("sim:1b,vocab=500")
        assert agent.text() == before
        assert max(agent.tokens()) < 500


def test_the_shell_talks_to_it(where: Path) -> None:
    ended = llmasos(where, "shell", typed="spawn --model sim --max 5 x hi\nsay --max 5 x again\ncat x\n")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert re.search(r"you: hi\nx: \w+( \w+){4}\nyou: again\nx: \w+( \w+){4}\n", ended.stdout)


def test_no_hub_and_no_transformers_are_asked_for_its_words(where: Path) -> None:
    code = (
        "import sys\nfrom userland.sdk.system import System\n"
        f"with System.connect({str(where)!r}, name='test') as system:\n"
        "    with system.spawn('sim', 'hi') as process:\n        process.generate(3)\n"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE, check=True)
    assert ended.stdout == "[]\n"

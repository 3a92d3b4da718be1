"""exec in the SDK: a process gets another model, and its context goes with it in that model's words.

What a conversation is to the new model is what transformers' own rendering of its turns says.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from llmasos import aio
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Limits, ModelInfo, Sampler
from llmasos.syscalls.table import Decode, Exec, Feed, Fork, Pagein, Records
from llmasos.userland.sdk import actions
from llmasos.userland.sdk.actions import Language, language_of
from llmasos.userland.sdk.chat import ChatFormat
from llmasos.userland.sdk.dialogue import Message
from llmasos.userland.sdk.system import Process, System
from llmasos.userland.sdk.tokenizer_files import load_tokenizer
from llmasos.userland.sdk.translate import conversation_in, same_words, translated
from tests import models_zoo
from tests.gguf_writer import convert

pytestmark = pytest.mark.processes

TINY = "tiny"
SYSTEM = "Be brief."
QUESTIONS = ["My name is Zoë.", "What is my name?"]


@pytest.fixture(scope="module")
def llama(zoo: Callable[[str], Path]) -> str:
    return str(zoo("llama"))


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose vocabulary has the same size and words as llama's, under other ids."""
    place = models_zoo.build("qwen2", tmp_path_factory.mktemp("shuffled") / "model")
    file = place / "tokenizer.json"
    whole = json.loads(file.read_text())
    vocab = whole["model"]["vocab"]
    whole["model"]["vocab"] = {word: 255 - number if number < 256 else number for word, number in vocab.items()}
    file.write_text(json.dumps(whole))
    return str(place)


def reference(path: str, messages: list[Message], *, prompt: bool) -> list[int]:
    """The ids of a conversation as transformers makes them."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    return list(tokenizer.encode(text, add_special_tokens=False))


def tiny_path() -> str:
    return str(Path(models_zoo.__file__).parent.parent / "models" / "tiny")


def language(path: str, context: int = 2048) -> Language:
    return language_of(ModelInfo(Path(path).name, path, context=context, vocab=2048))


# --- whose words are whose ------------------------------------------------------------------------------------------


def test_vocabularies_are_compared_by_what_stands_in_them_not_by_size(
    llama: str, shuffled: str, zoo: Callable[[str], Path]
) -> None:
    qwen = str(zoo("qwen3"))
    assert same_words(language(llama), language(qwen))
    assert not same_words(language(llama), language(shuffled))
    assert not same_words(language(llama), language(tiny_path()))
    sizes = {load_tokenizer(path).size for path in (llama, shuffled)}
    assert len(sizes) == 1
    assert load_tokenizer(llama).digest != load_tokenizer(shuffled).digest


def test_another_template_makes_other_words_of_a_conversation(llama: str, tmp_path: Path) -> None:
    place = models_zoo.build("llama", tmp_path / "other")
    template = models_zoo.CHAT_TEMPLATE.replace("<|end|>", "<|end|>\n")
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        if (place / name).exists() and name.endswith("jinja"):
            (place / name).write_text(template)
    other = language(str(place))
    assert other.tokenizer.digest == load_tokenizer(llama).digest
    assert not same_words(language(llama), other)


def test_the_words_of_a_gguf_file_are_those_of_the_directory_that_it_was_made_of(
    llama: str, shuffled: str, tmp_path: Path
) -> None:
    file = str(convert(Path(llama), tmp_path / "model.gguf"))
    assert same_words(language(llama), language(file))
    assert same_words(language(file), language(llama))
    assert not same_words(language(shuffled), language(file))


def test_a_context_keeps_its_ids_from_a_gguf_file_to_the_directory_and_back(
    cpu_system: System, llama: str, tmp_path: Path
) -> None:
    file = str(convert(Path(llama), tmp_path / "model.gguf"))
    with cpu_system.spawn(file, system=SYSTEM) as process:
        process.turn("one", 5)
        process.feed_ids([7, 7, 7, 200, 9])  # what no text is encoded to
        log, records = process.tokens(), cpu_system.kernel(Records(process.pid)).records
        for model in (llama, file):
            process.exec(model)
            assert process.tokens() == log
            assert cpu_system.kernel(Records(process.pid)).records == records
        process.turn("two", 1)
        assert process.tokens()[: len(log)] == log


# --- conversations are found again ----------------------------------------------------------------------------------

words = st.text(st.characters(codec="utf-8", exclude_characters="<>|"), min_size=1, max_size=12).filter(
    lambda text: text.strip() == text
)


@given(
    turns=st.lists(words, min_size=1, max_size=6),
    system=st.none() | words,
    cut=st.integers(0, 12),
    tiny=st.booleans(),
)
def test_what_the_template_makes_of_a_conversation_is_taken_apart_again(
    turns: list[str], system: str | None, cut: int, tiny: bool, zoo: Callable[[str], Path]
) -> None:
    one, other = language(str(zoo("llama"))), language(tiny_path())
    old, new = (other, one) if tiny else (one, other)
    head: list[Message] = [{"role": "system", "content": system}] if system else []
    said = [*head, *({"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns))]
    ended = len(turns) % 2 == 0
    ids = reference(old.model.path, said, prompt=not ended)
    found = conversation_in(old, ids)
    assert found is not None
    assert found.messages == said
    assert found.answer == (None if ended else "")
    assert translated(old, new, ids) == reference(new.model.path, said, prompt=not ended)
    if not ended:  # an answer that was cut off
        part = "so far"[:cut].strip()
        whole = ids + old.encode(part)
        assert translated(old, new, whole) == reference(new.model.path, said, prompt=True) + new.encode(part)


@pytest.mark.parametrize("text", ["", "Once upon a time", "<|user|>no<|user|>sense", "<|assistant|>", "a<|end|>b"])
def test_what_no_template_has_made_is_text(llama: str, text: str) -> None:
    old, new = language(llama), language(tiny_path())
    ids = load_tokenizer(llama).encode(text, control=True)
    assert conversation_in(old, ids) is None
    plain = new.tokenizer.encode(old.decode(ids), control=False, begin=True) if ids else []
    assert translated(old, new, ids) == list(plain)


def test_only_told_how_to_behave(llama: str) -> None:
    old, new = language(llama), language(tiny_path())
    ids = old.must_chat().opening(SYSTEM)
    found = conversation_in(old, ids)
    assert found is not None
    assert (found.messages, found.answer) == ([{"role": "system", "content": SYSTEM}], None)
    assert translated(old, new, ids) == new.must_chat().opening(SYSTEM)


def test_a_template_without_a_system_role_gets_the_instructions_with_the_first_question(
    llama: str, tmp_path: Path
) -> None:
    place = models_zoo.build("llama", tmp_path / "strict")
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    (place / "chat_template.jinja").write_text(strict + models_zoo.CHAT_TEMPLATE)
    new, old = language(str(place)), language(tiny_path())
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Why?"}]
    ids = reference(tiny_path(), messages, prompt=True)
    merged = [{"role": "user", "content": f"{SYSTEM}\n\nWhy?"}]
    assert translated(old, new, ids) == reference(str(place), merged, prompt=True)


def test_a_model_without_chat_is_told_who_said_what(llama: str, tmp_path: Path) -> None:
    place = models_zoo.build("gpt2", tmp_path / "plain")
    (place / "chat_template.jinja").unlink()
    new, old = language(str(place)), language(llama)
    ids = reference(llama, [{"role": "user", "content": "Why?"}], prompt=True)
    assert new.decode(translated(old, new, ids)) == "user: Why?\nassistant:"


def test_what_is_too_long_in_the_other_words_is_refused_with_both_lengths(llama: str) -> None:
    old, new = language(tiny_path()), language(llama, context=100)
    ids = load_tokenizer(tiny_path()).encode("the small house is by the water " * 5, control=False)
    with pytest.raises(SyscallError, match=f"the {len(ids)} tokens of the log are 160") as caught:
        translated(old, new, ids)
    assert caught.value.errno is Errno.E2BIG


# --- through the system ---------------------------------------------------------------------------------------------


@pytest.fixture
def process(cpu_system: System, llama: str) -> Process:
    return cpu_system.spawn(llama, "Every call is answered", name="under test", dtype="fp32")


def test_tokens_stay_where_the_words_are_the_same(
    cpu_system: System, process: Process, zoo: Callable[[str], Path]
) -> None:
    process.generate(9)
    log = process.tokens()
    qwen = str(zoo("qwen3"))
    assert process.exec(qwen, dtype="fp32") == len(log)
    assert process.tokens() == log
    assert process.model.path == qwen
    twin = cpu_system.spawn(qwen, log, dtype="fp32")
    assert cpu_system(Decode(process.pid, 20)).tokens == cpu_system(Decode(twin.pid, 20)).tokens
    twin.end()
    process.end()


def test_equal_sizes_are_not_taken_for_equal_words(process: Process, shuffled: str) -> None:
    text, log = process.text(), process.tokens()
    process.exec(shuffled, dtype="fp32")
    assert process.text() == text
    assert process.tokens() == [255 - number for number in log]
    process.end()


def test_a_conversation_goes_on_with_another_model_and_everything_else_stays(cpu_system: System, llama: str) -> None:
    cpu_system.group("guests", cpu_weight=50)
    sampler: dict[str, Any] = {"temperature": 0.5, "top_k": 9, "seed": 5}
    process = cpu_system.spawn(
        llama,
        system=SYSTEM,
        name="guest",
        nice=3,
        limits=Limits(tokens=500),
        group="guests",
        dtype="fp32",
        **sampler,
    )
    answer = process.ask(QUESTIONS[0], 8)
    before = process.info()
    length = process.exec(TINY)
    after = process.info()
    for name in ("pid", "name", "nice", "limits", "group", "seed", "ppid", "sched_class"):
        assert getattr(after, name) == getattr(before, name), name
    turns = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": QUESTIONS[0]},
    ]
    said = reference(tiny_path(), turns, prompt=True)
    assert process.tokens()[: len(said)] == said
    assert length == after.length == len(process.tokens())
    assert process.language.decode(process.tokens()[len(said) :]).strip() == answer.strip()
    assert process.language.chat is not None
    process.ask(QUESTIONS[1], 4)
    assert QUESTIONS[1] in process.text()
    process.exec(llama, dtype="fp32")  # and back
    assert process.language.model.path == llama
    assert conversation_in(process.language, process.tokens()) is not None
    process.end()
    cpu_system.remove_group("guests")


def test_given_tokens_are_taken_as_they_are(process: Process) -> None:
    assert process.exec(TINY, tokens=[1, 70, 71]) == 3
    assert process.tokens() == [1, 70, 71]
    process.end()


def test_what_cannot_be_changes_nothing(cpu_system: System, llama: str) -> None:
    process = cpu_system.spawn(TINY, "the small house is by the water " * 30)
    log, model = process.tokens(), process.info().model
    assert len(log) < models_zoo.CONTEXT < 32 * 30
    with pytest.raises(SyscallError, match="960") as caught:
        process.exec(llama, dtype="fp32")
    assert caught.value.errno is Errno.E2BIG
    with pytest.raises(SyscallError) as caught:
        process.exec("./no-such-model")
    assert caught.value.errno is Errno.ENOENT
    cpu_system(Decode(process.pid, 200, wait=False))
    process.stop()
    with pytest.raises(SyscallError) as caught:
        process.exec(llama)
    assert caught.value.errno is Errno.EBUSY
    assert (process.info().model, process.model.name) == (model, TINY)
    assert process.tokens()[: len(log)] == log
    process.end()


def test_a_log_that_others_have_changed_is_not_replaced_by_what_it_was(process: Process) -> None:
    length = process.info().length
    process.system(Feed(process.pid, [1]))
    with pytest.raises(SyscallError, match="read it again") as caught:
        process.system(Exec(process.pid, TINY, [1, 2], length=length))
    assert caught.value.errno is Errno.EAGAIN
    process.system(Exec(process.pid, TINY, [1, 2], length=length + 1))
    assert process.tokens() == [1, 2]
    process.end()


def test_the_kernel_says_what_to_do_where_vocabularies_differ(process: Process) -> None:
    with pytest.raises(SyscallError, match=r"pass its own as `tokens`") as caught:
        process.system(Exec(process.pid, TINY))
    assert caught.value.errno is Errno.EINVAL
    process.end()


def test_the_asynchronous_face_changes_models_too(cpu_system: System, llama: str) -> None:
    async def main() -> tuple[str, str]:
        async with aio.System.connect(cpu_system.kernel.boot.runtime) as system:
            process = await system.spawn(llama, "Once upon a time", dtype="fp32")
            before = await process.text()
            await process.exec(TINY)
            async with process:
                return before, await process.text()

    before, after = trio.run(main)
    assert before == after


def test_a_fork_with_another_model_is_a_second_opinion(cpu_system: System, process: Process) -> None:
    (pid,) = cpu_system(Fork(process.pid))
    other = Process(cpu_system, pid, process.model)
    other.exec(TINY)
    assert other.text() == process.text()
    assert other.generate(5) != ""
    assert process.generate(5, sampler=Sampler()) != ""
    other.end()
    process.end()


def test_chat_formats_render_a_whole_conversation(llama: str) -> None:
    chat = ChatFormat(load_tokenizer(llama), "llama")
    messages = [{"role": "user", "content": "Why?"}]
    assert chat.whole(messages, "") == chat.first(messages) == reference(llama, messages, prompt=True)


@pytest.mark.parametrize("state", ["resident", "streamed", "evicted", "loading"])
def test_a_model_is_found_wherever_its_weights_are(state: str) -> None:
    """Those of a model that takes turns with others are on their way back at any time."""
    new = ModelInfo("new", "/new", "int8", "cpu0", "loading")
    row = ModelInfo("m", "/m", device="cpu0", state=state, vocab=256)
    for name in ("m", "/m"):
        script = actions.model_in_memory(name, "cpu0")
        next(script)
        with pytest.raises(StopIteration) as end:
            script.send([new, row])
        assert end.value.value is row
    script = actions.model_in_memory("new")  # what it is the driver has yet to say
    next(script)
    assert script.send([new, row]) == Pagein("/new", "cpu0", "int8")
    with pytest.raises(StopIteration) as end:
        script.send(row)
    assert end.value.value is row
    script = actions.model_in_memory("other")
    next(script)
    with pytest.raises(SyscallError, match=r"^ENOENT: .*'other'"):
        script.send([new, row, ModelInfo("other", "/other")])

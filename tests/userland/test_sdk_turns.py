"""Conversations with processes of a booted system: what is known of them goes where the process goes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import llmasos.models
from llmasos.syscalls.blocking import Client
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Limits
from llmasos.syscalls.table import Decode, Records, Truncate
from llmasos.userland.sdk.script import run
from llmasos.userland.sdk.system import Process, System
from llmasos.userland.sdk.template import ChatTemplate, special
from llmasos.userland.sdk.tokenizer import MARK, UNMARK
from llmasos.userland.sdk.tokenizer_files import load_tokenizer
from llmasos.userland.sdk.tool_calls import ToolCall
from llmasos.userland.sdk.turns import known_of
from tests import models_zoo
from tests.userland.chat_shapes import SHAPES

pytestmark = pytest.mark.processes

THINKING = (
    SHAPES["thoughts in the last answer only"]
    .source.replace("<|im_start|>", "<|user|>")
    .replace("<|im_end|>", "<|end|>")
    .replace("assistant\n{% if enable", "assistant\n{% if opens %}<think>\n{% endif %}{% if enable")
)
ADDED = {"<think>": 261, "</think>": 262, "<|stop|>": 263}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with random weights whose template is a reasoning model's, with added tokens that are not special."""
    place = models_zoo.build("llama", tmp_path_factory.mktemp("thinking") / "model")
    (place / "chat_template.jinja").write_text(THINKING)
    words = json.loads((place / "tokenizer.json").read_text())
    words["added_tokens"] += [
        {
            "id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": False,
        }
        for token, i in ADDED.items()
    ]  # fmt: skip
    (place / "tokenizer.json").write_text(json.dumps(words))
    return str(place)


@pytest.fixture
def process(cpu_system: System, model: str) -> Iterator[Process]:
    with cpu_system.spawn(model, system="Be brief.") as found:
        yield found


def test_what_was_said_is_known_to_any_program_and_to_a_fork(cpu_system: System, process: Process) -> None:
    process.turn("one", 5)
    (child,) = process.fork()
    for one in (process, child, cpu_system.process(process.pid)):
        known = run(cpu_system.kernel, known_of(one.pid)).dialogue
        assert known is not None
        assert [said.message["role"] for said in known.said] == ["system", "user"]
        assert known.end + 5 == len(one.tokens())
    child.turn("two", 5)
    known = run(cpu_system.kernel, known_of(child.pid)).dialogue
    assert known is not None
    assert [said.message["role"] for said in known.said] == ["system", "user", "assistant", "user"]
    child.end()


def test_what_was_said_is_known_to_a_restored_process(cpu_system: System, process: Process, tmp_path: Path) -> None:
    process.turn("one", 5)
    process.checkpoint(tmp_path / "image")
    with cpu_system.restore(tmp_path / "image") as restored:
        before = restored.tokens()
        restored.turn("two", 5)
        assert restored.tokens()[: len(before)] == before
        process.turn("two", 5)
        assert restored.tokens()[:-5] == process.tokens()[:-5]


def test_the_log_of_three_turns_is_the_templates_rendering(process: Process) -> None:
    words = ChatTemplate(load_tokenizer(process.model.path))
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}]
    for number, question in enumerate(("one <|end|>", "two", "three")):
        messages.append({"role": "user", "content": question})
        process.turn(question, 1)
        log = process.tokens()[:-1]
        assert log == words.ids(messages, prompt=True)
        process.truncate(len(log))  # and as if the model had said something
        process.feed_ids(process.language.encode(f"answer {number}"))
        messages.append({"role": "assistant", "content": f"answer {number}"})


def test_a_turn_that_the_template_refuses_changes_nothing(cpu_system: System, process: Process) -> None:
    process.turn("one", 3)
    before, records = process.tokens(), cpu_system(Records(process.pid))
    with pytest.raises(SyscallError, match="a message has a role") as caught:
        process.turn([{"role": "stranger", "content": "x"}])
    assert caught.value.errno is Errno.EINVAL
    assert (process.tokens(), cpu_system(Records(process.pid))) == (before, records)


def test_a_turn_that_may_not_be_answered_changes_nothing(cpu_system: System, process: Process) -> None:
    process.turn("one", 3)
    cpu_system.run(_thought(process))  # so that the next turn must cut the log
    before, records = process.tokens(), cpu_system(Records(process.pid))
    process.limits(Limits(tokens=3))
    with pytest.raises(SyscallError) as caught:
        process.turn("two", 3)
    assert caught.value.errno is Errno.EDQUOT
    assert (process.tokens(), cpu_system(Records(process.pid))) == (before, records)


def _thought(process: Process) -> Any:
    """Feed a thought and an answer, as if the model had said them."""
    from llmasos.syscalls.table import Feed
    from llmasos.userland.sdk.script import ask

    ids = process.language.encode("<think>\nhm\n</think>\n\nyes<|end|>", control=True)
    return (yield from ask(Feed(process.pid, ids)))


def test_thoughts_are_cut_from_the_log_when_the_template_drops_them_and_stay_with_keep(
    cpu_system: System, model: str
) -> None:
    for thoughts, stays in (("drop", False), ("keep", True)):
        with cpu_system.spawn(model, thoughts=thoughts) as process:  # type: ignore[arg-type]
            process.turn("one", 1)
            process.truncate(len(process.tokens()) - 1)
            cpu_system.run(_thought(process))
            before = process.tokens()
            process.turn("two", 1)
            text = process.language.decode(process.tokens(), special=True)
            assert ("<think>\nhm\n</think>" in text) == stays
            assert "yes<|end|>\n<|user|>user\ntwo" in text
            assert (process.tokens()[: len(before)] == before) == stays


def test_a_budget_of_thoughts_brings_the_model_to_its_answer(cpu_system: System, model: str) -> None:
    """Its way to the answer is fed, and what is left of the tokens is the answer's."""
    way = load_tokenizer(model).encode("\n</think>\n\n", control=True)
    with cpu_system.spawn(model, thought_tokens=4, template={"opens": True}) as process:
        answer = process.turn("one", 12)
        log = process.tokens()
        known = run(cpu_system.kernel, known_of(process.pid)).dialogue
        assert known is not None
        said = log[known.end :]
        assert said[4 : 4 + len(way)] == way
        assert len(said) == 12 + len(way) or said[-1] == models_zoo.EOS
        words = process.language
        assert answer.thought == words.decode(said[:4]).strip()
        assert answer.text.strip() == words.decode(said[4 + len(way) :]).strip()


def test_what_a_tool_answered_goes_into_the_conversation(cpu_system: System, model: str) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
    with cpu_system.spawn(model, tools=tools) as process:
        process.turn("look", 1)
        process.truncate(len(process.tokens()) - 1)
        ids = process.language.encode('<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call><|end|>', control=True)
        process.feed_ids(ids)
        before = process.tokens()
        process.reply_tool(ToolCall("look"), "a cat", 1)
        assert process.tokens()[: len(before)] == before  # the call keeps the ids in which it was made
        text = process.language.decode(process.tokens()[len(before) : -1], special=True)
        assert text == "\n<|user|>tool\na cat<|end|>\n<|user|>assistant\n"
        said = process.tokens()
        wrong: list[Any] = [[], ["x"], [("look", "a cat")], [(ToolCall("look"), 3)]]
        for results in wrong:
            with pytest.raises(SyscallError) as caught:
                process.reply_tools(results)
            assert caught.value.errno is Errno.EINVAL
        assert process.tokens() == said


def test_a_template_without_a_switch_for_thoughts_says_what_it_looked_for(
    cpu_system: System, zoo: Callable[[str], Path]
) -> None:
    with pytest.raises(SyscallError, match="no switch for thinking=True") as caught:
        cpu_system.spawn(str(zoo("llama")), thinking=True)
    assert caught.value.errno is Errno.EINVAL


def test_a_log_without_records_can_be_talked_to(cpu_system: System, zoo: Callable[[str], Path]) -> None:
    language = load_tokenizer(str(zoo("llama")))
    ids = language.encode("<|user|>hi<|end|><|assistant|>yes", control=True)
    with cpu_system.spawn(str(zoo("llama")), ids) as process:
        process.turn("and?", 1)
        assert process.language.decode(process.tokens()[:-1], special=True) == (
            "<|user|>hi<|end|><|assistant|>yes<|end|><|user|>and?<|end|><|assistant|>"
        )


@pytest.mark.parametrize("length", [1, 3, 7, 20, 40])
def test_a_question_that_was_cut_is_not_said_again(process: Process, length: int) -> None:
    """What the log was cut inside of is gone, also when the log has grown longer than it was."""
    process.turn("one", 3)
    process.truncate(length)
    process.turn("two", 3)
    before = process.tokens()[:-3]
    process.turn("three", 3)
    assert process.tokens()[: len(before)] == before
    text = process.language.decode(process.tokens(), special=True)
    assert text.count("Be brief.") <= 1
    assert text.count("one") <= 1
    assert text.count("two") == text.count("three") == 1


@pytest.mark.parametrize("shape", ["thinking", "no system role"])
def test_control_tokens_that_are_allowed_are_control_in_later_turns_too(
    cpu_system: System, model: str, zoo: Callable[[str], Path], tmp_path: Path, shape: str
) -> None:
    if shape != "thinking":
        model = str(shutil.copytree(zoo("llama"), tmp_path / "model"))
        source = SHAPES[shape].source.replace("<|im_start|>", "<|user|>").replace("<|im_end|>", "<|end|>")
        (Path(model) / "chat_template.jinja").write_text(source)
    end = load_tokenizer(model).id_of("<|end|>")
    assert end is not None
    with cpu_system.spawn(model, system="Be <|end|> brief.") as process:
        plain = process.fork()[0]
        process.turn("one <|end|>", 1, allow_special=True)
        plain.turn("one <|end|>", 1)
        assert process.tokens()[:-1].count(end) == plain.tokens()[:-1].count(end) + 1
        for one in (process, plain):
            before = one.tokens()
            one.turn("two <|end|>", 1)
            assert one.tokens()[: len(before)] == before
        assert "".join(process.ask("three <|end|>", 1, allow_special=True)) is not None
        assert process.tokens().count(end) - plain.tokens().count(end) >= 3
        plain.end()
    with cpu_system.spawn(model, system="Be <|end|> brief.", prompt="one", allow_special=True) as process:
        text = process.language.decode(process.tokens(), special=True)
        assert process.tokens().count(end) == text.count("<|end|>")
        length = process.feed("<|end|>", allow_special=True)
        assert process.tokens()[length - 1] == end
        assert process.feed("<|end|>") == length + len("<|end|>")  # a token for each byte


def test_allowed_tokens_do_not_let_others_in() -> None:
    """A token that is spelled across two parts of a message, or between marks of the SDK's own, stays text."""
    words = load_tokenizer(str(Path(llmasos.models.__file__).parent / "tiny"))
    template, end = ChatTemplate(words), words.id_of("<|end|>")
    assert end is not None
    said = [{"role": "user", "content": [{"type": "text", "text": "<|e"}, {"type": "text", "text": "nd|>"}]}]
    assert template.ids(said, prompt=True).count(end) == 1
    assert template.ids([special(said[0])], prompt=True).count(end) == 2
    marked = [{"role": "user", "content": f"{MARK}a{UNMARK}<|end|>"}]
    assert template.ids([special(marked[0])], prompt=True) == template.ids(
        [special({"role": "user", "content": "a<|end|>"})], prompt=True
    )


@pytest.mark.parametrize(
    ("said", "max_tokens", "reason"),
    [
        ("x", "5", "max_tokens: wanted a whole number or None, found text '5'"),
        ("x", 2.5, "max_tokens: wanted a whole number or None, found float 2.5"),
        ("x", True, "max_tokens: wanted a whole number or None, found bool True"),
        (None, 5, "said: wanted text, a dictionary or a sequence of dictionaries"),
        (3, 5, "said: wanted text, a dictionary or a sequence of dictionaries"),
        (["x"], 5, "what is said is text"),
        ([{"role": "user", "content": b"x"}], 5, "found b'x' (bytes)"),
        ([{"role": "user", "content": "x", "more": 10**30}], 5, "numbers of 64 bits"),
        ([{"role": "user", "content": "x", 3: 4}], 5, "the keys of a message are strings, found 3 (int)"),
        ([{"role": "assistant", "content": "x", "tool_calls": 3}], 5, "tool_calls of a message are a list"),
    ],
)
def test_what_cannot_be_said_is_named_and_changes_nothing(
    process: Process, said: Any, max_tokens: Any, reason: str
) -> None:
    process.turn("one", 2)
    before = process.tokens()
    with pytest.raises(SyscallError) as caught:
        process.turn(said, max_tokens)
    assert caught.value.errno is Errno.EINVAL
    assert reason in caught.value.reason
    assert process.tokens() == before
    process.turn({"role": "user", "content": "two"}, 2)  # one message is a turn


@pytest.mark.parametrize("text", [None, b"x", 3])
def test_only_text_is_said_and_fed(process: Process, text: Any) -> None:
    for act in (process.ask, process.feed, lambda said: next(process.pieces(said))):
        with pytest.raises(SyscallError, match=r"^EINVAL: \w+\(\) text: wanted text, found "):
            act(text)


@pytest.mark.parametrize(
    "options",
    [
        {"template": 3}, {"template": {"x": object()}}, {"template": {"x": 10**30}}, {"template": {3: 4}},
        {"chat_template": 3}, {"thought_tokens": 10**30}, {"thought_tokens": "x"}, {"tools": [{"x": 10**40}]},
        {"thought_tokens": 0}, {"thought_tokens": -1}, {"template": {"messages": [1]}}, {"template": {"tools": []}},
    ],
)  # fmt: skip
def test_what_a_template_cannot_be_told_is_refused_at_once(
    cpu_system: System, model: str, options: dict[str, Any]
) -> None:
    with pytest.raises(SyscallError) as caught:
        cpu_system.spawn(model, **options)
    assert caught.value.errno is Errno.EINVAL


def test_what_was_fed_before_anything_was_said_stays_as_it_is(cpu_system: System, model: str) -> None:
    with cpu_system.spawn(model, thinking=False) as process:
        process.feed("notes on rain ")
        fed = process.tokens()
        process.ask("one", 5)
        first = process.tokens()
        assert first[: len(fed)] == fed
        process.ask("two", 5)
        assert process.tokens()[: len(first)] == first


def test_a_turn_with_nothing_said_needs_a_conversation(cpu_system: System, model: str) -> None:
    with cpu_system.spawn(model) as process, pytest.raises(SyscallError, match=r"^EINVAL: .*conversation"):
        process.turn([])


def test_a_model_without_a_system_role_is_told_once_how_to_behave(
    cpu_system: System, zoo: Callable[[str], Path], tmp_path: Path
) -> None:
    """Its instructions have no ids before the first question: they wait in a record."""
    model = shutil.copytree(zoo("llama"), tmp_path / "model")
    source = SHAPES["no system role"].source.replace("<|im_start|>", "<|user|>").replace("<|im_end|>", "<|end|>")
    (model / "chat_template.jinja").write_text(source)
    with cpu_system.spawn(model, system="Be brief.") as process:
        for question in ("one", "two", "three"):
            process.turn(question, 1)
            process.truncate(len(process.tokens()) - 1)
            process.feed("yes")
        assert process.language.decode(process.tokens(), special=True) == (
            "<|begin|><|user|>user\nBe brief.\n\none<|end|>\n<|user|>model\nyes<|end|>\n<|user|>user\ntwo<|end|>\n"
            "<|user|>model\nyes<|end|>\n<|user|>user\nthree<|end|>\n<|user|>model\nyes"
        )


def test_a_conversation_names_its_template_where_there_is_no_default(
    cpu_system: System, zoo: Callable[[str], Path], tmp_path: Path
) -> None:
    model = shutil.copytree(zoo("llama"), tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    file = model / "tokenizer_config.json"
    templates = [{"name": name, "template": f"{name}:{models_zoo.CHAT_TEMPLATE}"} for name in ("rag", "tool_use_2")]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": templates}))
    with cpu_system.spawn(model, chat_template="rag") as process:
        for question in ("one", "two"):
            process.turn(question, 1)
            process.truncate(len(process.tokens()) - 1)
            process.feed("yes")
        found = cpu_system.process(process.pid)
        assert process.language.decode(found.tokens(), special=True) == (
            "rag:<|user|>one<|end|><|assistant|>yes<|end|><|user|>two<|end|><|assistant|>yes"
        )
    with pytest.raises(SyscallError, match=r"^EINVAL: .*rag, tool_use_2"):
        cpu_system.spawn(model, chat_template="default")
    with cpu_system.spawn(model, "plain text") as process:
        assert process.generate(2)
        with pytest.raises(SyscallError, match=r"^ENOTSUP: .*chat_template.*rag, tool_use_2"):
            process.ask("and?")


# --- a log that others have changed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
def test_what_was_fed_after_a_cut_into_a_question_stays_and_the_question_is_unsaid(
    cpu_system: System, model: str, first: bool
) -> None:
    """Also where the log is as long as it was, or longer: its length does not say that it is whole."""
    with cpu_system.spawn(model) as process:
        if not first:
            process.turn("zero", 3)
        start = len(process.tokens())
        process.turn("one two three", 1)
        process.system.kernel(Truncate(process.pid, start + 12))
        process.feed("four five six seven eight nine ten eleven twelve thirteen fourteen")
        before = process.tokens()
        known = run(cpu_system.kernel, known_of(process.pid)).dialogue
        assert known is not None
        assert [said.message["content"] for said in known.said] == ([] if first else ["zero"])
        process.turn("last", 2)
        assert process.tokens()[: len(before)] == before
        text = process.language.decode(process.tokens()[len(before) :], special=True)
        assert text.startswith("<|end|>\n<|user|>user\nlast<|end|>\n<|user|>assistant\n")


def test_what_is_left_of_a_first_question_is_no_answer(cpu_system: System, model: str) -> None:
    with cpu_system.spawn(model) as process:
        process.turn("one two three", 1)
        process.truncate(12)
        process.turn("last", 1)
        text = process.language.decode(process.tokens()[:-1], special=True)
        assert text == "<|user|>user\none tw<|end|>\n<|user|>user\nlast<|end|>\n<|user|>assistant\n"


def test_switches_stay_when_the_whole_log_is_cut(cpu_system: System, model: str) -> None:
    off = "<|user|>assistant\n<think>\n\n</think>\n\n"
    for system in ("Be brief.", ""):
        with cpu_system.spawn(model, system=system, thinking=False) as process:
            for handle in (process, cpu_system.process(process.pid)):
                handle.truncate(0)
                handle.turn("one", 1)
                text = process.language.decode(process.tokens()[:-1], special=True)
                assert text.endswith("<|user|>user\none<|end|>\n" + off)
                assert text.startswith("<|user|>system\nBe brief.<|end|>") == (handle is process and bool(system))


class Slow:
    """A kernel to which the way is long between what is said and the wish for an answer."""

    def __init__(self, kernel: Client) -> None:
        self._kernel = kernel

    def __call__(self, call: Any, **options: Any) -> Any:
        if isinstance(call, Decode):
            time.sleep(0.02)
        return self._kernel(call, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)


def test_turns_of_several_threads_are_whole_or_refused(
    cpu_system: System, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[Errno] = []
    monkeypatch.setattr(cpu_system, "kernel", Slow(cpu_system.kernel))

    def talk(number: int) -> None:
        for _ in range(6):
            try:
                handles[number % 2].turn(f"question {number}", 4)
            except SyscallError as error:
                refused.append(error.errno)

    with cpu_system.spawn(model) as process:
        handles = [process, cpu_system.process(process.pid)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(talk, range(4)))
        process.turn("end", 1)
        known = run(cpu_system.kernel, known_of(process.pid)).dialogue
        assert known is not None
        roles = [said.message["role"] for said in known.said]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert len(roles) // 2 == 24 - len(refused)
        assert set(refused) <= {Errno.EBUSY}


def test_who_asks_while_an_answer_is_heard_is_refused_and_nothing_has_changed(process: Process) -> None:
    process.limits(Limits(context=4096))
    answer = process.say("one", 60)
    next(answer)
    for more in (lambda: process.turn("two", 1), lambda: process.generate(1)):
        with pytest.raises(SyscallError, match="talking to process") as caught:
            more()
        assert caught.value.errno is Errno.EBUSY
    answer.close()
    process.turn("three", 1)
    assert "two" not in process.text()


def test_switches_go_along_to_a_model_of_other_words_that_has_them(
    cpu_system: System, model: str, tmp_path: Path
) -> None:
    """Under its own name for them; what its template does not know stays behind."""
    place = Path(shutil.copytree(model, tmp_path / "model"))
    (place / "chat_template.jinja").write_text(THINKING.replace("enable_thinking", "thinking"))
    with cpu_system.spawn(model, thinking=False, template={"other": 1}) as process:
        process.turn("one", 3)
        process.exec(place)
        known = run(cpu_system.kernel, known_of(process.pid)).dialogue
        assert known is not None
        assert known.setup.variables == {"thinking": False}
        process.turn("two", 1)
        text = process.language.decode(process.tokens()[:-1], special=True)
        assert text.endswith("user\ntwo<|end|>\n<|user|>assistant\n<think>\n\n</think>\n\n")

"""What people pass to the SDK, on a real system: one stop string, ids of any kind, paths, dtypes. What is refused changes
nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.sdk import actions, arguments
from llmasos.userland.sdk.llm import LLM
from llmasos.userland.sdk.system import Process, System
from tests import models_zoo

pytestmark = pytest.mark.processes

IDS = [7, 8, 9]


@pytest.fixture(scope="module")
def model(zoo: Callable[[str], Path]) -> Path:
    return zoo("llama")


@pytest.fixture
def process(cpu_system: System, model: Path) -> Process:
    return cpu_system.spawn(model, "Every call", dtype="fp32")


@pytest.mark.parametrize(
    "prompt",
    [
        IDS,
        tuple(IDS),
        range(7, 10),
        np.array(IDS),
        torch.tensor(IDS),
        [np.int64(i) for i in IDS],
        np.array(IDS, np.uint8),
    ],
    ids=["list", "tuple", "range", "numpy", "tensor", "list of numpy", "bytes array"],
)
def test_a_prompt_may_be_any_sequence_of_integers(cpu_system: System, model: Path, prompt: Any) -> None:
    with cpu_system.spawn(model, prompt, dtype="fp32") as process:
        assert process.tokens() == IDS
        process.feed_ids(prompt)
        assert process.tokens() == IDS * 2


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([7, 8.5], "8.5"),
        (np.array([[1, 2]]), "one sequence"),
        ([True], "True"),
        (b"bytes", "bytes"),
        (7, "prompt: wanted text, a dictionary, .*, found int 7"),
        ([{"content": "no role"}], "role"),
        ([{"role": "user", "content": "x"}, "y"], "'y'"),
    ],
)
def test_a_prompt_that_is_none_is_named(cpu_system: System, model: Path, prompt: Any, said: str) -> None:
    with pytest.raises(SyscallError, match=said) as caught:
        cpu_system.spawn(model, prompt, dtype="fp32")
    assert caught.value.errno is Errno.EINVAL


def test_one_message_is_a_conversation(cpu_system: System, model: Path) -> None:
    message = {"role": "user", "content": "hello"}
    with (
        cpu_system.spawn(model, message, dtype="fp32") as one,
        cpu_system.spawn(model, [message], dtype="fp32") as many,
    ):
        assert one.tokens() == many.tokens()


def test_one_stop_string_is_one(process: Process) -> None:
    """Taken for the stops "l" and "q" it would end at the first of them, wherever that is."""
    whole = process.generate(60)
    process.truncate(len(process.tokens()) - 60)
    stop = whole[20:23]
    first = whole.index(stop)
    assert first > min(whole.index(character) for character in stop)
    assert process.generate(60, stop=stop) == whole[:first]


def test_one_stop_string_is_one_for_llm(cpu_system: System, model: Path) -> None:
    llm = LLM.from_pretrained(model, dtype="float32", system=cpu_system)
    whole = llm.generate("Every call", max_new_tokens=60)
    assert llm.generate("Every call", max_new_tokens=60, stop=whole[20:23]) == whole[: whole.index(whole[20:23])]
    assert llm.generate(("Every call",), max_new_tokens=60) == [whole]


@pytest.mark.parametrize("stop", [[""], "", [3], 3])
@pytest.mark.parametrize("way", ["generate", "stream", "say", "ask"])
def test_a_refused_stop_list_changes_nothing(process: Process, stop: Any, way: str) -> None:
    before = process.info()
    ways: dict[str, Callable[[], object]] = {
        "generate": lambda: process.generate(200, stop=stop),
        "stream": lambda: list(process.stream(200, stop=stop)),
        "say": lambda: list(process.say("hello", stop=stop)),
        "ask": lambda: process.ask("hello", stop=stop),
    }
    with pytest.raises(SyscallError) as caught:
        ways[way]()
    assert caught.value.errno is Errno.EINVAL
    after = process.info()
    assert (after.length, after.decoding, after.usage.decoded) == (before.length, False, before.usage.decoded)


def test_an_error_on_the_way_leaves_nothing_decoding(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Exception):
        pass

    def fail(*_: object, **__: object) -> str:
        raise Broken

    monkeypatch.setattr("llmasos.userland.sdk.text.Detokenizer.push", fail)
    with pytest.raises(SyscallError, match=r"^EIO: Broken") as caught:
        list(process.stream(400))
    assert isinstance(caught.value.__cause__, Broken)
    result = process.system.run(actions.until_idle(process.pid, 0))
    assert len(result.tokens) < len("Every call") + 400


def test_a_keyword_that_spawn_does_not_take_is_named_with_the_one_that_was_meant(cpu_system: System) -> None:
    with pytest.raises(SyscallError, match=r"spawn\(\) takes no 'temp'; did you mean temperature\?") as caught:
        cpu_system.spawn(temp=3)  # type: ignore[call-arg]
    assert caught.value.errno is Errno.EINVAL
    with pytest.raises(SyscallError, match=r"^EINVAL: .*'zzz'.*allow_special, budget, chat_template"):
        cpu_system.spawn(zzz=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("dtype", ["float32", "fp32", torch.float32, "torch.float32"])
def test_dtypes_have_the_names_that_people_use(cpu_system: System, model: Path, dtype: Any) -> None:
    assert cpu_system.load(model, dtype).dtype == "fp32"


def test_other_dtypes() -> None:
    assert arguments.dtype_name(torch.bfloat16) == "bf16"
    assert arguments.dtype_name("auto") == arguments.dtype_name(None) == ""
    assert arguments.dtype_name("int4") == "int4"
    assert arguments.dtype_name("nonsense") == "nonsense"  # the driver's to refuse


def test_a_dtype_that_the_device_does_not_have_is_refused_by_name(cpu_system: System, model: Path) -> None:
    with pytest.raises(SyscallError, match="fp16") as caught:
        cpu_system.load(model, torch.float16)
    assert caught.value.errno is Errno.ENOTSUP


def test_a_model_that_is_no_name(cpu_system: System) -> None:
    with pytest.raises(SyscallError, match=r"^EINVAL: spawn\(\) model: wanted text or a path, found int 3"):
        cpu_system.spawn(3)  # type: ignore[arg-type]


def test_models_of_the_zoo_have_a_token_for_each_byte() -> None:
    """What the tests above suppose."""
    assert models_zoo.VOCAB > 256


@pytest.mark.parametrize("tools", [[3], 5, "x", [None], {"function": {}}])
def test_what_is_no_list_of_tools_is_refused_by_spawn_and_grammars(cpu_system: System, model: Path, tools: Any) -> None:
    with cpu_system.spawn(model) as process:
        for act in (process.call_grammar, lambda tools: cpu_system.spawn(model, tools=tools)):
            with pytest.raises(SyscallError, match=r"^EINVAL: .*tools"):
                act(tools)


_USER = {"role": "user", "content": "c"}
_TOLD = {"role": "system", "content": "a"}
NO_MESSAGES: dict[str, tuple[Any, str]] = {
    "no content": ({"role": "user"}, "the content of a message of 'user' is missing"),
    "content that is None": ({"role": "user", "content": None}, "the content of a message of 'user' is missing"),
    "no role": ({"content": "a"}, r"a message has a role, a string; found \['content'\]"),
    "nothing": ([{}], "a message has a role"),
    "a role that is a number": ({"role": 3, "content": "a"}, "a message has a role"),
    "a content that is a number": (
        {"role": "user", "content": 3},
        r"of 'user' is text, or a list of parts, found 3 \(int\)",
    ),
    "a content that is bytes": ({"role": "user", "content": b"a"}, "is text, or a list of parts, found b'a'"),
    "a part that is a number": (
        [_USER, {"role": "user", "content": ["a", 3]}],
        r"list of parts such as .*, found 3 \(int\)",
    ),
    "a key that is a number": ({"role": "user", "content": "a", 3: 4}, "the keys of a message are strings, found 3"),
    "calls that are a number": ({"role": "assistant", "tool_calls": 3}, "tool_calls of a message are a list"),
    "a list with a string": ([_USER, "a"], "a list of messages, found 'a'"),
    "two system messages": ([_TOLD, _TOLD, _USER], "begins with one system message, and two were given"),
}


@pytest.mark.parametrize("name", NO_MESSAGES)
@pytest.mark.parametrize("way", ["spawn", "turn"])
def test_what_is_no_message_is_refused_and_changes_nothing(cpu_system: System, model: Path, name: str, way: str) -> None:
    value, says = NO_MESSAGES[name]
    with cpu_system.spawn(model) as process:
        before = process.info().length, len(cpu_system.ps())
        act = {"spawn": lambda: cpu_system.spawn(model, value), "turn": lambda: process.turn(value)}[way]
        with pytest.raises(SyscallError, match=says) as caught:
            act()
        assert caught.value.errno is Errno.EINVAL
        assert (process.info().length, len(cpu_system.ps())) == before


def test_system_and_a_system_message_are_two(cpu_system: System, model: Path) -> None:
    with pytest.raises(SyscallError, match=r"two were given.*`system` is one, and the prompt begins with another"):
        cpu_system.spawn(model, [_TOLD, _USER], system="b")


def test_a_message_that_calls_tools_needs_no_words() -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    assert arguments.messages([_TOLD, _USER, call, {"role": "tool", "content": {"found": 3}}, _TOLD]) != []


@pytest.mark.parametrize("system", [5, b"x", ["Be brief."], {"role": "system"}])
def test_instructions_are_text(cpu_system: System, model: Path, system: Any) -> None:
    with pytest.raises(SyscallError, match=r"^EINVAL: spawn\(\) system: wanted text, found "):
        cpu_system.spawn(model, system=system)

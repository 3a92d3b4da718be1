"""A model of Ollama's store is started as Ollama starts it: sampling, stops, length and system text of its manifest."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmasos.modelfiles.ollama_options import WINDOW, Started, started
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import SamplingDefaults
from llmasos.userland.programs.screen import Screen
from llmasos.userland.sdk.llm import LLM
from llmasos.userland.sdk.options import Options
from llmasos.userland.sdk.system import System
from llmasos.userland.shell.main import Session
from tests.gguf_writer import convert
from tests.modelfiles.ollama_store import blob, manifest

TINY = Path(__file__).resolve().parents[2] / "models" / "tiny"
SYSTEM = "You are a poet."
QUESTION = "What is your name?"


# --- what a manifest's params mean ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "wanted"),
    [
        ({}, Started()),
        ({"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1},
         Started({"top_k": 20, "top_p": 0.95, "min_p": 0.05, "temperature": 0.6, "repetition_penalty": 1.0})),
        ({"temperature": 0}, Started({"temperature": 0.0})),
        ({"temperature": -1}, Started({"temperature": 0.0})),
        ({"top_k": 40}, Started({"top_k": 40, "temperature": 0.8})),
        ({"top_k": -1, "top_p": 7, "min_p": -3, "temperature": 1},
         Started({"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0})),
        ({"repeat_penalty": 1.3, "repeat_last_n": 0}, Started()),
        ({"repeat_penalty": 1.3, "repeat_last_n": 64}, Started({"repetition_penalty": 1.3})),
        ({"seed": 42}, Started(seed=42)),
        ({"seed": (1 << 62) + 1}, Started(seed=(1 << 62) + 1)),
        ({"seed": -1}, Started()),
        ({"num_predict": 12}, Started(max_tokens=12)),
        ({"num_predict": -1}, Started(max_tokens=WINDOW)),
        ({"num_predict": -2}, Started(max_tokens=WINDOW)),
        ({"stop": "END"}, Started(stop=("END",))),
        ({"stop": ["<|a|>", "<|b|>", "<|a|>", ""]}, Started(stop=("<|a|>", "<|b|>"))),
        ({"num_ctx": 8192, "num_gpu": 1, "mirostat": 2, "something": {"new": 1}}, Started()),
    ],
    ids=str,
)  # fmt: skip
def test_each_parameter_means_what_it_means_to_ollama(params: dict[str, Any], wanted: Started) -> None:
    assert started("ollama:m:x", params, "") == wanted


@pytest.mark.parametrize(
    ("key", "value"),
    [("temperature", "hot"), ("temperature", 1e9), ("top_k", 2.5), ("top_p", True), ("seed", 1 << 63), ("stop", [1]),
     ("seed", 10**400), ("temperature", 10**400),
     ("stop", ["x"] * 100), ("repeat_penalty", 0), ("repeat_penalty", -1), ("num_predict", "many"), ("min_p", [0.1])],
    ids=str,
)  # fmt: skip
def test_a_parameter_that_cannot_be_is_named(key: str, value: Any) -> None:
    with pytest.raises(SyscallError, match=rf"EIO.*ollama:m:x.*{key}.*defaults=False"):
        started("ollama:m:x", {key: value}, "")


def test_the_caller_comes_first_then_the_store_then_the_files_own_metadata() -> None:
    advised = SamplingDefaults(temperature=0.6, top_k=3)
    sampler = Options(temperature=0.1).sampler(advised)
    assert sampler is not None
    assert (sampler.temperature, sampler.top_k) == (0.1, 3)


# --- on a real system -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as a GGUF file."""
    return convert(TINY, tmp_path_factory.mktemp("gguf") / "tiny.gguf", "Q8_0")


@pytest.fixture
def pulled(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Puts the model into an Ollama store with these params and system text; its name there."""
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))

    def pull(name: str, params: dict[str, Any], system: str = "") -> str:
        layers = {"model": blob(tmp_path, file.read_bytes()), "template": blob(tmp_path, b"{{ .Prompt }}")}
        if params:
            layers["params"] = blob(tmp_path, json.dumps(params).encode())
        if system:
            layers["system"] = blob(tmp_path, system.encode())
        manifest(tmp_path, f"registry.ollama.ai/library/{name}/latest", **layers)
        return f"ollama:{name}"

    yield pull
    shutil.rmtree(tmp_path)


def said(system: System, model: str, **options: Any) -> str:
    with system.spawn(model, **options) as agent:
        return agent.ask(QUESTION, 16)


def test_a_process_samples_as_its_store_says_and_the_caller_overrules_it(
    cpu_system: System, file: Path, pulled: Callable[..., str]
) -> None:
    params = {"temperature": 30.0, "top_k": 50, "repeat_penalty": 1.2, "seed": 5}
    name = pulled("warm", params)
    same: dict[str, Any] = {"temperature": 30.0, "top_k": 50, "repetition_penalty": 1.2, "seed": 5}
    warm, cold = said(cpu_system, name), said(cpu_system, str(file))
    assert warm == said(cpu_system, str(file), **same) != cold
    assert said(cpu_system, name, temperature=0.0, repetition_penalty=1.0) == cold
    assert said(cpu_system, name, seed=6) == said(cpu_system, str(file), **{**same, "seed": 6}) != warm
    assert said(cpu_system, name, defaults=False) == cold
    llm = LLM.from_pretrained(name, system=cpu_system)
    expected = LLM.from_pretrained(file, system=cpu_system).generate(
        "The", max_new_tokens=12, temperature=30.0, top_k=50, repetition_penalty=1.2, seed=3
    )
    assert llm.generate("The", max_new_tokens=12, seed=3) == expected
    assert "".join(llm.stream("The", 12, seed=3)) == expected


def test_the_system_text_begins_a_conversation_that_has_none_whoever_asks_first(
    cpu_system: System, file: Path, pulled: Callable[..., str]
) -> None:
    name = pulled("poet", {}, SYSTEM)
    with cpu_system.spawn(str(file), system=SYSTEM) as told, cpu_system.spawn(name) as agent:
        assert agent.tokens() == [], "what is fed to a process that nobody talks to is its own affair"
        assert cpu_system.process(agent.pid).ask(QUESTION, 8) == told.ask(QUESTION, 8)
        assert agent.tokens() == told.tokens()
        (copy,) = agent.fork()
        assert copy.ask("Why?", 8) == told.ask("Why?", 8)
        copy.end()
    question = [{"role": "user", "content": QUESTION}]
    with cpu_system.spawn(name, question) as agent:
        assert agent.text().startswith(SYSTEM)
    for options in (
        {"system": "You are a cook."},
        {"prompt": [{"role": "system", "content": "You are a cook."}, *question]},
        {"defaults": False},
    ):
        with cpu_system.spawn(name, **options) as agent:
            agent.turn("Hm?", 4)
            assert SYSTEM not in agent.text()
    with cpu_system.spawn(name) as agent:
        agent.turn([{"role": "system", "content": "You are a cook."}, *question], 4)
        assert SYSTEM not in agent.text()


def test_stop_strings_and_length_of_the_store_end_answers_where_the_caller_says_nothing(
    cpu_system: System, file: Path, pulled: Callable[..., str]
) -> None:
    with cpu_system.spawn(str(file)) as agent:
        whole = agent.ask(QUESTION, 24)
    stop = whole[len(whole) // 2 :][:3]
    name = pulled("short", {"stop": [stop], "num_predict": 3})
    with cpu_system.spawn(name) as agent:
        short = agent.ask(QUESTION)
        assert whole.startswith(short)
        assert len(agent.tokens()) < 30
        other = cpu_system.process(agent.pid)
        assert len(other.ask(QUESTION)) < len(other.ask(QUESTION, 24))
    for attached in (False, True):
        with cpu_system.spawn(name) as agent:
            heard = cpu_system.process(agent.pid) if attached else agent
            assert heard.ask(QUESTION, 24) == whole[: whole.index(stop)]
        with cpu_system.spawn(name) as agent:
            heard = cpu_system.process(agent.pid) if attached else agent
            assert heard.ask(QUESTION, 24, stop="\0never") == whole
    with cpu_system.spawn(name, "Once upon") as agent:
        before = len(agent.tokens())
        agent.generate()
        assert len(agent.tokens()) - before <= 3
    with cpu_system.spawn(name, defaults=False) as agent:
        assert agent.ask(QUESTION, 24) == whole
    llm = LLM.from_pretrained(name, system=cpu_system)
    assert len(llm.language.encode(llm.generate("Once upon"))) <= 4
    assert llm.generate("Once upon", max_new_tokens=9, stop="\0never").startswith(llm.generate("Once upon"))


def test_the_shell_starts_it_so_too(cpu_system: System, pulled: Callable[..., str]) -> None:
    name = pulled("brief", {"num_predict": 2}, SYSTEM)
    screen = Screen(out := io.StringIO())
    shell = Session(cpu_system, screen, lambda _: "", interactive=False)
    shell.execute(f"spawn bob --model {name} {QUESTION}")
    assert not shell.failures, out.getvalue()
    agent = cpu_system.process(shell.pid("bob"))
    assert agent.text().startswith(SYSTEM)
    shown = len(agent.tokens())
    shell.execute("say bob --max 5 And now?")
    assert shown < len(agent.tokens())
    agent.end()


def test_parameters_that_cannot_be_are_said_by_spawn_and_no_process_is_left(
    cpu_system: System, pulled: Callable[..., str]
) -> None:
    name = pulled("odd", {"temperature": "hot"})
    before = len(cpu_system.ps())
    with pytest.raises(SyscallError, match="temperature") as caught:
        cpu_system.spawn(name)
    assert caught.value.errno is Errno.EIO
    assert len(cpu_system.ps()) == before
    with cpu_system.spawn(name, defaults=False) as agent:
        assert agent.ask(QUESTION, 2)


def test_it_is_called_by_the_name_that_its_store_has_for_it_wherever_it_is_listed(
    cpu_system: System, pulled: Callable[..., str]
) -> None:
    name = pulled("called", {})
    screen = Screen(out := io.StringIO())
    shell = Session(cpu_system, screen, lambda _: "", interactive=False)
    for line in (f"spawn bob --model {name}", "ps", "ps bob", "models", "top --once", "kill bob", "dmesg"):
        shell.execute(line)
    said = out.getvalue()
    assert not shell.failures, said
    without_paths = [line for line in said.splitlines() if " from /" not in line]
    assert len([line for line in without_paths if "ollama:called:latest" in line]) >= 6
    assert "bob on ollama:called:latest" in said
    measured = "ollama:called:latest is sha256:"  # its digest, which the kernel logs
    assert [line for line in without_paths if "sha256" in line.partition("/")[0] and measured not in line] == []

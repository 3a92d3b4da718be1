"""The script of a simulated model: which answer to which prompt, as a function of the log alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.drivers.sim import open_device, tokens
from llmasos.drivers.sim.spec import ModelSpec, model
from llmasos.modelfiles import sim_vocabulary
from llmasos.modelfiles.sim_vocabulary import END
from llmasos.simulator import Simulation, simulate
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Finish, Sampler
from llmasos.syscalls.table import Decode, Fork, Getinfo, Read, Spawn
from llmasos.userland.sdk.sim_words import TEMPLATE, sim_tokenizer

VOCAB = 1000
TEXT = """\
default = "What?"

[[answer]]
to = '^hello'
say = ["Hi!", "Hi again."]

[[answer]]
to = '(?i)name is (?P<who>\\w+)'
say = 'Dear \\g<who>, \\1!'

[[answer]]
role = "tool"
to = '(\\d+)'
say = 'It is \\1.'

[[answer]]
to = 'wait'
say = "Now."
seconds = 2.0

[[answer]]
to = 'break'
error = "asked to"

[[answer]]
to = 'long'
say = "LONG"
""".replace("LONG", " ".join(["word"] * 30))


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "answers.toml"
    file.write_text(TEXT)
    return str(file)


def log_of(*messages: tuple[str, str]) -> list[int]:
    """The log of a conversation, by the tokenizer and the template of the SDK."""
    import jinja2

    shown = [{"role": role, "content": content} for role, content in messages]
    text = jinja2.Environment().from_string(TEMPLATE).render(messages=shown, add_generation_prompt=True)
    return sim_tokenizer(VOCAB).encode(text, control=True)


def said(path: str, log: list[int], count: int = 400) -> str:
    spec = ModelSpec(name="sim", vocab=VOCAB, script=path)
    found = tokens.continuation(spec, log, Sampler(temperature=1.0, seed=3), count, (spec.eos,))
    return sim_tokenizer(VOCAB).decode(found, special=True)


def test_the_first_answer_that_fits_is_given_and_counts_its_turns(path: str) -> None:
    assert said(path, log_of(("user", "hello"))) == f"Hi!{END}"
    assert said(path, log_of(("system", "hello"), ("user", "hello"))) == f"Hi!{END}"
    assert said(path, log_of(("user", "say hello"))) == f"What?{END}"
    assert said(path, log_of(("user", "My name is Ada"))) == f"Dear Ada, Ada!{END}"
    talk = [("user", "hello"), ("assistant", "Hi!"), ("user", "hello")]
    assert said(path, log_of(*talk)) == f"Hi again.{END}"
    assert said(path, log_of(*talk, ("assistant", "x"), ("user", "hello"))) == f"Hi again.{END}"
    assert said(path, log_of(("user", "6 by 7"), ("assistant", ""), ("tool", "42"))) == f"It is 42.{END}"
    assert said(path, log_of(("user", "42"))) == f"What?{END}"


def test_an_answer_that_was_begun_for_the_model_is_gone_on_with(path: str) -> None:
    begun = log_of(("user", "hello")) + sim_tokenizer(VOCAB).encode("I say: H", control=False)
    assert said(path, begun) == f"i!{END}"


def test_plain_text_is_gone_on_with_too(path: str) -> None:
    plain = sim_tokenizer(VOCAB).encode
    assert said(path, plain("hello there", control=False)) == f"Hi!{END}"
    assert said(path, plain("nothing", control=False)) == f"What?{END}"
    assert said(path, plain("My name is Bob", control=False)) == f"Dear Bob, Bob!{END}"


@settings(max_examples=60)
@given(prompt=st.sampled_from(["hello", "x", "my name is Zoë", "long"]), cut=st.integers(0, 200), chat=st.booleans())
def test_the_rest_of_an_answer_depends_on_the_log_alone(
    tmp_path_factory: pytest.TempPathFactory, prompt: str, cut: int, chat: bool
) -> None:
    file = tmp_path_factory.getbasetemp() / "answers.toml"
    file.write_text(TEXT)
    log = log_of(("user", prompt)) if chat else sim_tokenizer(VOCAB).encode(prompt, control=False)
    spec = ModelSpec(name="sim", vocab=VOCAB, script=str(file))
    whole = tokens.continuation(spec, log, Sampler(), 400, (spec.eos,))
    cut = min(cut, len(whole) - 1)
    assert tokens.continuation(spec, log + whole[:cut], Sampler(), 400, (spec.eos,)) == whole[cut:]


# --- in the kernel --------------------------------------------------------------------------------------------------


def scripted(path: str, **more: Any) -> Simulation:
    return simulate(options={"script": path, "vocab": str(VOCAB)}, **more)


def test_a_step_gives_a_word(path: str) -> None:
    sim = scripted(path)
    program = sim.program()
    pid = program.call(Spawn("sim", log_of(("user", "long"))))
    sim.run_idle()
    before = len(sim.steps)
    result = program.call(Decode(pid, 400, stop_ids=[VOCAB - 1]))
    assert result.finish is Finish.STOP
    assert len(sim.steps) - before == 30
    text = sim_tokenizer(VOCAB).decode(result.tokens)
    assert text == " ".join(["word"] * 30)
    assert sim.continuation(log_of(("user", "long")), 400, stop_ids=(VOCAB - 1,)) == result.tokens


def test_answers_are_the_same_under_pressure_and_through_deaths_of_the_driver(path: str) -> None:
    sim = scripted(path, frames=14, max_runs=4, step_tokens=24)
    program = sim.program()
    prompts = ["long", "hello", "my name is Ada", "nothing", "long", "long and hello"] * 2
    logs = [log_of(("user", prompt)) for prompt in prompts]
    pids = [program.call(Spawn("sim", log)) for log in logs]
    futures = [program.start(Decode(pid, 400, stop_ids=[VOCAB - 1])) for pid in pids]
    for _ in range(4):
        sim.run_for(0.02)
        sim.crash(outside=True)
    sim.run_until(lambda: all(future.done for future in futures))
    assert sum(program.call(Getinfo(pid)).usage.preemptions for pid in pids) > 0
    for log, future in zip(logs, futures, strict=True):
        assert future.value.tokens == sim.continuation(log, 400, stop_ids=(VOCAB - 1,))


def test_a_fork_in_the_middle_of_an_answer_says_the_rest(path: str) -> None:
    sim = scripted(path)
    program = sim.program()
    pid = program.call(Spawn("sim", log_of(("user", "long"))))
    begun = program.call(Decode(pid, 7)).tokens
    (child,) = program.call(Fork(pid))
    rests = [program.call(Decode(one, 400, stop_ids=[VOCAB - 1])).tokens for one in (pid, child)]
    assert rests[0] == rests[1]
    assert sim_tokenizer(VOCAB).decode(begun + rests[0]) == " ".join(["word"] * 30)
    assert program.call(Read(pid, 0)).tokens == program.call(Read(child, 0)).tokens


def test_an_answer_takes_its_time_and_an_error_fails_its_run_alone(path: str) -> None:
    sim = scripted(path)
    program = sim.program()
    pid = program.call(Spawn("sim", log_of(("user", "wait"))))
    started = sim.now
    assert sim_tokenizer(VOCAB).decode(program.call(Decode(pid, 50, stop_ids=[VOCAB - 1])).tokens) == "Now."
    assert 2.0 < sim.now - started < 2.5
    other = program.start(Decode(program.call(Spawn("sim", log_of(("user", "long")))), 50))
    broken = program.start(Decode(program.call(Spawn("sim", log_of(("user", "break")))), 50))
    sim.run_until(lambda: other.done and broken.done)
    assert broken.errno is Errno.EIO
    assert broken.reply is not None
    assert "the script says so: asked to" in broken.reply.reason
    assert len(other.value.tokens) == 50


def test_a_chosen_token_has_a_probability(path: str) -> None:
    program = scripted(path).program()
    result = program.call(Decode(program.call(Spawn("sim", log_of(("user", "hello")))), 4, logprobs=3))
    for token, found in zip(result.tokens, result.logprobs, strict=True):
        assert (found.token, found.top_ids[0]) == (token, token)
        assert len(set(found.top_ids)) == 3


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[[answer]]\nto = '('\nsay = 'x'", "answer 1: `to` is no regular expression"),
        ("[[answer]]\nto = 'x'", "answer 1: `say` is missing, or empty"),
        ("[[answer]]\nsay = ''", "answer 1: `say` is missing, or empty; an answer says something, or has an `error`"),
        ("[[answer]]\nsay = ['x', '']", "answer 1: `say` is missing, or empty"),
        ("[[answer]]\nsay = 'x'\nerror = 'y'", "answer 1: it has `say` and `error`; leave one out"),
        ("[[answer]]\nsay = 'x'\n[[answer]]\nto = 'a(b)'\nsay = '\\2'", "answer 2: `say` has the group 2"),
        ("[[answer]]\nto = 'x'\nsay = '\\g<who>'", "answer 1: `say` has the group who"),
        ("[[answer]]\nsays = 'x'", "[[answer]] 1: there is no key 'says' (is 'say' meant?)"),
        ("default = 3", "default: wanted text, found 3"),
        ("[[answer]\n", "is wrong"),
        ("pace = -1.0", "pace: from 0 to 3600, found -1.0"),
    ],
)
def test_a_wrong_script_is_refused_by_name(tmp_path: Path, text: str, wrong: str) -> None:
    file = tmp_path / "answers.toml"
    file.write_text(text)
    with pytest.raises(SyscallError, match=re.escape(wrong)) as caught:
        open_device({"script": str(file)})
    assert caught.value.errno is Errno.EINVAL
    assert str(file) in caught.value.reason


def test_a_script_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SyscallError, match="cannot be read: No such file") as caught:
        open_device({"script": str(tmp_path / "none.toml")})
    assert caught.value.errno is Errno.ENOENT


def test_a_vocabulary_that_is_too_small_for_the_script_is_refused(path: str) -> None:
    program = simulate(options={"script": path, "vocab": "40"}).program()
    with pytest.raises(SyscallError, match="does not fit the model: a vocabulary of 40 has no id for the byte") as caught:
        program.call(Spawn("sim", [1, 2]))
    assert caught.value.errno is Errno.EINVAL
    assert model(f"sim:script={path}", "", ModelSpec()).script == path


def test_the_vocabulary_is_the_one_of_the_tokenizer() -> None:
    for vocab in (300, 32_000):
        tokenizer = sim_tokenizer(vocab)
        ids = range(vocab - 1)
        assert [sim_vocabulary.decode([one], vocab).decode("latin-1") for one in ids if one > 255] == [
            tokenizer.decode([one]) for one in ids if one > 255
        ]
        assert sim_vocabulary.encode("Zoë says: 42%".encode(), vocab) == tokenizer.encode("Zoë says: 42%", control=False)

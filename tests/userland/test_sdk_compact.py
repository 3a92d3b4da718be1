"""Conversations near their window: the hint, and compaction. After any failure the conversation is as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmasos import aio
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Kind, Limits
from llmasos.syscalls.table import Call, Decode, Feed, Records, Truncate
from llmasos.userland.sdk import compact
from llmasos.userland.sdk.system import Process, System
from llmasos.userland.sdk.turns import known_of
from tests.loops import LOOPS, run_under

pytestmark = pytest.mark.processes

SYSTEM = "You are Tiny, the small assistant of LLMasOS."
QUESTIONS = [
    "My name is Mira. " + "I like foxes. " * 60,
    "Copy this list: red, green",
    "Reverse this list: pear, fig",
    "Who are you?",
]


def talked(system: System, questions: list[str] = QUESTIONS) -> Process:
    agent = system.spawn(system=SYSTEM)
    for question in questions:
        agent.ask(question)
    return agent


def state(agent: Process) -> tuple[list[int], Any]:
    return agent.tokens(), agent.system(Records(agent.pid))


def said(agent: Process) -> list[tuple[str, str]]:
    """The conversation by its records, with the present answer."""
    there = agent.system.run(known_of(agent.pid))
    assert there.dialogue is not None
    messages = [one.message for one in there.dialogue.said]
    if there.dialogue.asked or len(there.log) > there.dialogue.end:
        messages.append(agent.language.must_chat().answered(there.dialogue, there.log).message)
    return [(message["role"], message["content"]) for message in messages]


def is_whole(agent: Process) -> None:
    """The log is, token for token, what the template makes of the conversation; nothing decodes, nothing is left over."""
    messages = [{"role": role, "content": text} for role, text in said(agent)]
    rendered = agent.language.must_chat().whole(messages, None)
    log = agent.tokens()
    assert log == rendered[: len(log)]
    rest = agent.language.decode(rendered[len(log) :], special=True)
    assert rest.strip() in ("", "<|im_end|>") or not agent.language.decode(rendered[len(log) :]).strip()
    assert not agent.info().decoding
    assert [row.name for row in agent.system.ps() if row.name == "compact"] == []


def test_older_turns_give_way_to_the_models_own_summary(cpu_system: System) -> None:
    with talked(cpu_system) as agent:
        before = said(agent)
        length = agent.compact(keep=1)
        after = said(agent)
        assert after[0] == ("system", SYSTEM)
        assert after[1] == ("user", compact.ASKED)
        assert after[2][0] == "assistant"
        assert after[2][1]
        assert after[3:] == before[-2:]
        assert length == len(agent.tokens())
        is_whole(agent)
        assert agent.ask("Copy this list: plum, lime").rstrip(".") == "plum, lime"


def test_dropped_turns_are_gone_and_the_rest_stays(cpu_system: System) -> None:
    with talked(cpu_system) as agent:
        before, length = said(agent), len(agent.tokens())
        assert agent.compact(drop=True, keep=2) < length
        assert said(agent) == [before[0], *before[-4:]]
        is_whole(agent)
        assert "Mira" not in agent.text()
    with talked(cpu_system) as agent:
        agent.compact(drop=1)
        assert said(agent) == [before[0], *before[3:]]
        is_whole(agent)


def test_a_process_can_be_left_with_its_instructions_alone(cpu_system: System) -> None:
    with talked(cpu_system) as agent:
        agent.compact(drop=True, keep=0)
        assert said(agent) == [("system", SYSTEM)]
        assert agent.ask("Copy this list: plum, lime").rstrip(".") == "plum, lime"
        is_whole(agent)
    with cpu_system.spawn() as bare:
        bare.ask("Who are you?")
        assert bare.compact(drop=True, keep=0) == 0
        assert bare.ask("Copy this list: plum, lime").rstrip(".") == "plum, lime"


def test_another_program_and_a_fork_go_on_with_what_is_left(cpu_system: System) -> None:
    with talked(cpu_system) as agent:
        agent.compact(drop=True, keep=1)
        (copy,) = agent.fork()
        there = cpu_system.process(copy.pid)
        assert there.ask("Copy this list: plum, lime").rstrip(".") == "plum, lime"
        assert said(there)[: len(said(agent))] == said(agent)


def test_a_conversation_as_long_as_its_window_goes_on(cpu_system: System) -> None:
    """Its hint came before; its summary is made in parts, since question and turns do not fit together."""
    with cpu_system.spawn(system=SYSTEM) as agent:
        window, hints = agent.model.context, list[str]()
        while (length := len(agent.tokens())) < 0.9 * window:
            answer = agent.turn("Tell me a story about a fox. " + "And a hen. " * 30, 30)
            assert bool(answer.hint) == (len(agent.tokens()) >= compact.NEAR * window)
            hints.append(answer.hint)
        assert hints[-1] == agent.hint
        assert hints[0] == ""
        assert "compact" in agent.hint
        assert f"of {window} tokens" in agent.hint
        assert agent.compact() < length
        assert agent.hint == ""
        assert said(agent)[0] == ("system", SYSTEM)
        is_whole(agent)
        assert agent.ask("Copy this list: plum, lime", 20)


class Refusing:
    """A kernel that refuses the calls of a kind from the `after`-th on, for one process or any."""

    def __init__(self, kernel: Any, kind: type[Call[Any]], error: BaseException) -> None:
        self._kernel, self._kind, self._error = kernel, kind, error
        self._armed = True

    def __call__(self, call: Call[Any], **more: Any) -> Any:
        if self._armed and isinstance(call, self._kind):
            self._armed = False
            raise self._error
        return self._kernel(call, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)


@pytest.mark.parametrize("error", [SyscallError(Errno.EDQUOT, "no"), KeyboardInterrupt()], ids=["refused", "Ctrl-C"])
@pytest.mark.parametrize("kind", [Truncate, Feed, Decode])
def test_a_failure_on_the_way_changes_nothing(
    cpu_system: System, monkeypatch: pytest.MonkeyPatch, kind: type[Call[Any]], error: BaseException
) -> None:
    with talked(cpu_system) as agent:
        before = state(agent)
        with monkeypatch.context() as patched:
            patched.setattr(cpu_system, "kernel", Refusing(cpu_system.kernel, kind, error))
            with pytest.raises(type(error)):
                agent.compact(keep=1)
        assert state(agent) == before
        assert [row for row in cpu_system.ps() if row.name == "compact" and row.kind is Kind.LLM] == []
        assert agent.compact(keep=1)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_compaction_that_is_cancelled_or_out_of_time_changes_nothing(cpu_system: System, loop: str) -> None:
    with talked(cpu_system) as agent:
        before, unchanged = state(agent), list[bool]()

        async def main() -> None:
            async with aio.System.connect(cpu_system.kernel.runtime) as system:
                there = await system.process(agent.pid)
                timeout, errors = 0.0, list[Errno]()
                while True:
                    try:
                        await there.compact(keep=1, timeout=timeout)
                        break
                    except SyscallError as error:
                        errors.append(error.errno)
                    unchanged.append(state(agent) == before)
                    timeout = 1.4 * timeout + 0.002
                assert set(errors) == {Errno.ETIME}

        run_under(loop, main)
        assert unchanged
        assert all(unchanged)
        assert said(agent)[1][1] == compact.ASKED


@pytest.mark.parametrize(
    ("act", "said_so"),
    [
        (
            lambda agent: agent.compact(keep=4),
            r"EINVAL: there is nothing to compact: the turns of the conversation are 4, and the last 4",
        ),
        (lambda agent: agent.compact(keep=-1), r"EINVAL: keep: 0 or more turns, found -1"),
        (lambda agent: agent.compact(drop=-2), r"EINVAL: drop: True, or 1 or more turns, found -2"),
        (lambda agent: agent.compact(drop="all"), r"EINVAL: compact\(\) drop: wanted True or False or a whole number"),
    ],
)
def test_what_cannot_be_compacted_is_said(cpu_system: System, act: Callable[[Process], object], said_so: str) -> None:
    with talked(cpu_system) as agent:
        before = state(agent)
        with pytest.raises(SyscallError, match=said_so):
            act(agent)
        assert state(agent) == before


def refused(agent: Process, said_so: str) -> None:
    with pytest.raises(SyscallError, match=said_so):
        agent.compact(keep=1)


def test_plain_text_and_busy_processes_are_refused(cpu_system: System) -> None:
    with cpu_system.spawn(prompt="Once upon a time") as writer:
        refused(writer, r"^EINVAL: .*holds no conversation")
    with talked(cpu_system) as agent:
        agent.stop()
        cpu_system(Feed(agent.pid, [5]))
        cpu_system(Decode(agent.pid, 500, wait=False))
        refused(agent, r"^EBUSY")


def test_a_limit_on_the_context_counts_as_its_window(cpu_system: System) -> None:
    with cpu_system.spawn(limits=Limits(context=60)) as agent:
        agent.turn("Copy this list: red, green", 10)
        answer = agent.turn("Copy this list: red, green, blue, pink", 20)
        info = agent.info()
        assert bool(answer.hint) == (info.length >= compact.NEAR * info.context)

"""What a program is told: how an answer ended, what was said, what a handle is, and what was wrong with an argument."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

import llmasos
from llmasos import Errno, Finish, Limits, SyscallError, aio
from llmasos.userland.sdk.script import ask
from llmasos.userland.sdk.system import Process, System
from tests.booted import PATIENCE, eventually
from tests.loops import LOOPS, run_under

pytestmark = pytest.mark.processes
LONG = "Tell me a long story about a fox."


@pytest.fixture
def agent(cpu_system: System) -> Iterator[Process]:
    with cpu_system.spawn(name="told") as agent:
        agent.ask("My name is Mira.")
        yield agent


# --- answers ------------------------------------------------------------------------------------------------------------


def test_an_answer_says_why_it_ended_and_what_it_took(agent: Process) -> None:
    """Against the kernel's own row and log."""
    ways: list[tuple[Finish, Callable[[], llmasos.Answer]]] = [
        (Finish.STOP, lambda: agent.turn("What is my name?")),
        (Finish.LENGTH, lambda: agent.turn(LONG, 5)),
        (Finish.STOP, lambda: agent.turn(LONG, stop="the")),
        (Finish.DEADLINE, lambda: agent.turn(LONG, 2000, deadline=0.05)),
    ]
    for finish, say in ways:
        before = agent.tokens()
        answer = say()
        log = agent.tokens()
        assert answer.finish is finish
        assert answer.prompt_tokens + answer.tokens == len(log)
        assert len(before) <= answer.prompt_tokens
        heard = agent.language.decode(log[answer.prompt_tokens :])
        assert heard.strip() == answer.text.strip()
        agent.truncate(len(before))


def test_an_answer_that_a_budget_cuts_says_so(agent: Process) -> None:
    agent.limits(Limits(tokens=agent.info().usage.decoded + 3))
    answer = agent.turn(LONG)
    assert (answer.finish, answer.tokens) == (Finish.BUDGET, 3)
    with pytest.raises(SyscallError, match=r"^EDQUOT") as caught:
        agent.turn(LONG)
    assert "Limits.tokens" in caught.value.reason
    assert "setlimits" not in caught.value.reason


def test_no_reason_of_a_limit_names_a_call_that_the_caller_may_not_have(cpu_system: System, agent: Process) -> None:
    agent.limits(Limits(context=agent.info().length + 2))
    with pytest.raises(SyscallError, match=r"^E2BIG") as long:
        agent.feed("This is a text that is longer than so few tokens.")
    cpu_system.group("spent", tokens_total=1)
    with cpu_system.spawn(group="spent") as poor, pytest.raises(SyscallError, match=r"^EDQUOT") as spent:
        [poor.ask("hi") for _ in range(3)]
    for error in (long, spent):
        assert not {"setlimits", "group_set"} & {*error.value.reason.replace("(", " ").replace(")", " ").split()}


def test_a_conversation_is_read_back_as_messages(cpu_system: System, agent: Process) -> None:
    with cpu_system.spawn(system="You are brief.") as other:
        answer = other.ask("Who are you?")
        assert [(one["role"], one["content"]) for one in other.messages()] == [
            ("system", "You are brief."),
            ("user", "Who are you?"),
            ("assistant", answer),
        ]
        again = cpu_system.spawn(prompt=other.messages())
        with again:
            assert again.messages()[:3] == other.messages()
    with cpu_system.spawn() as plain:
        plain.feed("Once upon a time")
        assert plain.messages() == []


def test_a_program_waits_for_an_agent_that_another_one_talks_to(cpu_system: System, agent: Process) -> None:
    with System.connect(cpu_system.kernel.runtime) as other:
        said: list[str] = []
        same = other.process(agent.pid)
        agent.stop()  # the answer would be there in time on a fast machine
        talking = threading.Thread(target=lambda: said.extend(agent.say(LONG, 100)))
        talking.start()
        eventually(lambda: same.info().decoding, "it is to answer")
        with pytest.raises(SyscallError, match=r"^ETIME"):
            same.idle(timeout=0)
        with pytest.raises(SyscallError, match=r"^EBUSY"):
            same.ask("What is my name?")
        agent.cont()
        same.idle(timeout=PATIENCE)
        assert same.ask("What is my name?")
    talking.join()
    assert "".join(said)


def test_a_traceback_shows_the_hint_once(cpu_system: System, agent: Process) -> None:
    with pytest.raises(SyscallError) as caught:
        agent.ask(5)  # type: ignore[arg-type]
    assert "hint: " not in str(caught.value)
    with pytest.raises(SyscallError) as raised:
        agent.wait(timeout=0.01)
    assert raised.value.__notes__ == [f"hint: {raised.value.hint}"]


# --- handles ------------------------------------------------------------------------------------------------------------


def test_what_is_printed_says_what_it_is(cpu_system: System, agent: Process) -> None:
    place = str(cpu_system.kernel.runtime)
    with System.connect(place) as system:
        assert repr(system) == f"<System of {place}, pid {system.kernel.pid}, connected>"
        assert repr(system.kernel) == f"<Client of {place}, pid {system.kernel.pid}>"
        client = llmasos.Client(place)
        image = client.load_image("tiny")
        instance = client.create_instance(image)
        assert "System of" in repr(client)
        assert repr(instance) == f"<Instance {instance.process.pid} of tiny>"
        client.close()
        assert repr(llmasos.LLM.from_pretrained("tiny", system=system)).startswith("<LLM tiny (")
        story = agent.say("hi")
        assert "for piece in" in repr(story)
        story.close()
    assert repr(system).endswith("closed>")
    assert repr(aio.System.connect(place)) == "<System, not connected>"


def test_a_closed_system_is_not_entered(cpu_system: System) -> None:
    system = System.connect(cpu_system.kernel.runtime)
    system.close()
    with pytest.raises(SyscallError, match=r"^EPIPE: .*closed; connect anew"), system:
        pass


@pytest.mark.parametrize("loop", LOOPS)
def test_a_closed_asynchronous_system_is_not_entered(cpu_system: System, loop: str) -> None:
    async def main() -> None:
        system = await aio.System.connect(cpu_system.kernel.runtime)
        await system.close()
        with pytest.raises(SyscallError, match=r"^EPIPE: .*closed; connect anew"):
            await system

    run_under(loop, main)


def test_a_notebook_shows_a_process_as_it_is(agent: Process) -> None:
    first = agent._repr_mimebundle_()["text/html"]
    assert f"{agent.info().length} of" in first
    agent.ask("Who are you?")
    assert f"{agent.info().length} of" in agent._repr_mimebundle_()["text/html"]
    agent.end()
    assert "has ended" in agent._repr_mimebundle_()["text/html"]


# --- arguments ----------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[Callable[[System, Process], object], Errno, str]] = {
    "run what is no script": (lambda s, a: s.run(5), Errno.EINVAL, r"run\(\) what: wanted a generator"),  # type: ignore[arg-type]
    "a system made by hand": (lambda s, a: System(), Errno.EINVAL, r"System\.connect\(\) makes one"),  # type: ignore[call-arg]
    "an LLM made by hand": (lambda s, a: llmasos.LLM("tiny"), Errno.EINVAL, "from_pretrained"),  # type: ignore[arg-type, call-arg]
    "a process made by hand": (lambda s, a: Process(5), Errno.EINVAL, "spawn"),  # type: ignore[arg-type, call-arg]
    "messages to ask": (lambda s, a: a.ask([{"role": "user"}]), Errno.EINVAL, "`turn` says messages"),  # type: ignore[arg-type]
    "a temperature of a question": (lambda s, a: a.ask("hi", temperature=1), Errno.EINVAL, "chosen at `spawn`"),  # type: ignore[call-arg]
    "a model by its wrong case": (lambda s, a: s.spawn("Tiny"), Errno.ENOENT, "did you mean 'tiny'"),
    "a model by half its name": (lambda s, a: s.load("tin"), Errno.ENOENT, "did you mean 'tiny'"),
    "tools where there is no place": (lambda s, a: s.spawn(tools=[{"name": "now"}]), Errno.EINVAL, "no place for tools"),
    "a lasting kernel's flag": (lambda s, a: System.connect(boot=True, flags=["--detach"]), Errno.EINVAL, "--detach"),
    "no patience": (lambda s, a: System.connect(s.kernel.runtime, reconnect=-1), Errno.EINVAL, "reconnect: wanted"),
    "no time to connect": (lambda s, a: System.connect(s.kernel.runtime, timeout=-1), Errno.EINVAL, "timeout: wanted"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_argument_says_what_is_right(cpu_system: System, agent: Process, what: str) -> None:
    act, errno, said = WRONG[what]
    with pytest.raises(SyscallError, match=said) as caught:
        act(cpu_system, agent)
    assert caught.value.errno is errno
    assert type(caught.value) is SyscallError


class Shouted(str):
    __slots__ = ()

    def __str__(self) -> str:
        return self.upper()


def test_numbers_and_texts_of_other_classes_are_taken_everywhere(cpu_system: System) -> None:
    numpy = pytest.importorskip("numpy")
    with cpu_system.spawn(seed=numpy.int64(5), temperature=numpy.float32(0.5), name=Shouted("loud")) as agent:
        assert agent.info().name == "loud"
        assert agent.ask(Shouted("hi"), numpy.int64(3), timeout=numpy.float64(1e9))
        assert len(agent.fork(numpy.int8(2))) == 2
        agent.nice(numpy.int16(3))
        assert agent.info().nice == 3


def test_an_overdue_call_is_the_one_error(cpu_system: System, agent: Process) -> None:
    with pytest.raises(SyscallError) as caught:
        agent.system(llmasos_read(agent.pid), timeout=0.01)
    assert type(caught.value) is SyscallError
    assert caught.value.errno is Errno.ETIME


def llmasos_read(pid: int) -> Any:
    from llmasos.syscalls.table import Read

    return Read(pid, -1, follow=True)


def test_a_runtime_directory_may_begin_with_a_tilde(cpu_system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(cpu_system.kernel.runtime.parent))
    with System.connect(f"~/{cpu_system.kernel.runtime.name}") as system:
        assert system.kernel.runtime == cpu_system.kernel.runtime


def test_records_become_dictionaries(agent: Process) -> None:
    row = msgspec.structs.asdict(agent.info())
    assert row["pid"] == agent.pid
    before = agent.limits()
    agent.limits(msgspec.structs.replace(before, tokens=1000))
    assert msgspec.structs.replace(agent.limits(), tokens=0) == before


def test_a_script_of_one_s_own_runs(cpu_system: System, agent: Process) -> None:
    from llmasos.syscalls.table import Getinfo

    assert cpu_system.run(ask(Getinfo(agent.pid))).name == "told"
    eventually(lambda: not agent.info().decoding, "it is idle")

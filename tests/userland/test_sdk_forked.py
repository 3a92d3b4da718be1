"""After a fork of the OS process: what the parent has made is the parent's, and says so; what the child makes works."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import trio

import llmasos
from llmasos import aio
from llmasos.userland.sdk import bounds, sandbox, tokenizer_files
from llmasos.userland.sdk.system import Process, System
from tests.booted import PATIENCE
from tests.loops import LOOPS, run_under

pytestmark = [pytest.mark.processes, pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")]


def in_child(work: Callable[[], object]) -> str:
    """What `work` returns in a fork of this process, or the error that it raises. A child that hangs is killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            try:
                said = str(work())
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            os.write(writing, said.encode()[:4000])
        finally:
            os._exit(0)
    os.close(writing)
    try:
        there, _, _ = select.select([reading], [], [], PATIENCE)
        if not there:
            os.kill(child, signal.SIGKILL)
            pytest.fail("the child hangs")
        return os.read(reading, 4096).decode()
    finally:
        os.close(reading)
        os.waitpid(child, 0)


@pytest.fixture
def agent(cpu_system: System) -> Iterator[Process]:
    """One that has answered: whatever is made at the first question has been made in the parent."""
    with cpu_system.spawn() as agent:
        agent.ask("My name is Mira.")
        yield agent


WAYS: dict[str, Callable[[Process], object]] = {
    "ask": lambda agent: agent.ask("hi", timeout=3),
    "ask without end": lambda agent: agent.ask("hi"),
    "say": lambda agent: list(agent.say("hi")),
    "turn": lambda agent: agent.turn("hi"),
    "info": lambda agent: agent.info(timeout=3),
    "end": lambda agent: agent.end(timeout=3),
    "ps": lambda agent: agent.system.ps(),
    "spawn": lambda agent: agent.system.spawn(timeout=3),
    "with": lambda agent: agent.system.__enter__(),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_connection_of_the_parent_says_so_in_the_child(agent: Process, way: str) -> None:
    said = in_child(lambda: WAYS[way](agent))
    assert said.startswith("SyscallError: EINVAL"), said
    assert "before a fork" in said
    assert "connect anew" in said
    assert agent.ask("What is my name?")


def test_a_connection_of_the_parent_says_so_also_where_another_thread_is_in_a_call(agent: Process) -> None:
    """Whatever lock that thread holds is held in the child for ever."""
    hearing = threading.Thread(target=lambda: agent.ask("Tell me a long story about a fox.", 200))
    hearing.start()
    with agent.system.kernel._lock:
        said = in_child(lambda: agent.info())
    hearing.join()
    assert said.startswith("SyscallError: EINVAL"), said


def test_what_the_child_closes_or_drops_stays_the_parents(agent: Process) -> None:
    story = agent.say("Tell me a long story about a fox.", 60)
    first = next(story)

    def leave() -> str:
        nonlocal story
        story.close()
        agent.__exit__(None, None, None)
        agent.system.close()
        del story
        gc.collect()
        return "left"

    assert in_child(leave) == "left"
    assert len(first + "".join(story)) > 20
    assert agent.ask("What is my name?")


@pytest.mark.parametrize("way", ["sys.exit", "end of the program", "exception"])
def test_a_private_kernel_outlives_a_child_that_ends_in_order(tmp_path: Path, way: str) -> None:
    """Its `atexit` functions and finalizers run in the child too."""
    program = f"""
import os, sys, llmasos
system = llmasos.System.connect(boot=True, flags=["--device", "sim:time_scale=0"])
place = system.kernel.runtime
if os.fork() == 0:
    way = {way!r}
    if way == "sys.exit":
        sys.exit(0)
    if way == "exception":
        raise SystemExit(1)
else:
    os.wait()
    assert place.is_dir(), "the child has removed the directory"
    assert system.ps(), "the child has ended the kernel"
    system.close()
    assert not place.exists()
    print("still there")
"""
    import subprocess
    import sys

    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert "still there" in ended.stdout, ended.stderr
    assert not ended.stderr


def anew(place: Path, pid: int) -> str:
    with llmasos.System.connect(place) as system:
        return system.process(pid).ask("What is my name?", timeout=PATIENCE)


def test_a_child_that_connects_anew_can_talk(agent: Process) -> None:
    assert "Mira" in in_child(lambda: anew(agent.system.kernel.runtime, agent.pid))


def test_the_workers_of_a_pool_that_forks_can_talk(cpu_system: System) -> None:
    with cpu_system.spawn() as first, cpu_system.spawn() as second:
        for agent in (first, second):
            agent.ask("My name is Mira.")
        with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
            places, pids = [cpu_system.kernel.runtime] * 2, [first.pid, second.pid]
            assert all("Mira" in said for said in pool.map(anew, places, pids))


@pytest.mark.parametrize("loop", LOOPS)
def test_a_child_that_connects_anew_can_talk_under_an_event_loop(agent: Process, loop: str) -> None:
    """Whatever threads the loops of the parent have left."""

    async def ask(question: str) -> str:
        async with aio.System.connect(agent.system.kernel.runtime) as system:
            return await (await system.process(agent.pid)).ask(question, timeout=PATIENCE)

    said: list[str] = []

    async def main() -> None:
        said.append(await ask("What is my name?"))

    def work() -> str:
        run_under(loop, main)
        return said[-1]

    assert "Mira" in work()
    assert "Mira" in in_child(work)


def test_an_asynchronous_connection_of_the_parent_says_so_in_the_child(cpu_system: System) -> None:
    async def main() -> str:
        async with aio.System.connect(cpu_system.kernel.runtime) as system:
            agent = await system.spawn()

            def work() -> object:
                coroutine = agent.ask("hi", timeout=3)
                return coroutine.send(None)  # as the loop does, of which the child has a copy

            return in_child(work)

    for said in (trio.run(main), asyncio.run(main())):
        assert said.startswith("SyscallError: EINVAL"), said
        assert "before a fork" in said


def test_a_lock_that_another_thread_held_at_the_fork_is_free_in_the_child(agent: Process) -> None:
    template = sandbox.compiled("{{ 1 + 1 }}")
    with template._lock, tokenizer_files._loading:
        assert in_child(lambda: template.render({})) == "2"
        assert "Mira" in in_child(lambda: anew(agent.system.kernel.runtime, agent.pid))


def test_a_thread_that_encodes_is_the_parents() -> None:
    assert bounds.within(lambda: "done", PATIENCE, "be done") == "done"
    assert in_child(lambda: bounds.within(lambda: "done", PATIENCE, "be done")) == "done"

"""While no kernel runs: who waits for the next one waits as long as they said, and no longer.

A program here waits an hour for the next kernel, and cleans up for an hour: whatever does not hold to its timeout, or is
not cancelled at once, never ends.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import anyio
import psutil
import pytest

from llmasos import aio
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import State
from llmasos.userland.sdk import llm, llm_async, script
from llmasos.userland.sdk.system import Process, System
from tests.booted import PATIENCE, eventually
from tests.loops import LOOPS, run_under
from tests.reborn import Reborn, reborn

pytestmark = pytest.mark.processes
HOUR = 3600.0
LONG = "Tell me a long story about a fox."


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reborn]:
    with reborn(tmp_path_factory.mktemp("outage") / "run") as kernel:
        yield kernel


@pytest.fixture(autouse=True)
def cleans_up_for_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "CLEANUP_SECONDS", HOUR)


@contextmanager
def outage(kernel: Reborn) -> Iterator[None]:
    """No kernel runs in the `with`."""
    kernel.kill()
    try:
        yield
    finally:
        kernel.boot()


def ended_by_ctrl_c(act: Callable[[], object]) -> None:
    """`act` waits, and hears Ctrl-C a moment later."""
    bell = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    ended: list[object] = []

    def ring_in_its_midst() -> None:
        bell.start()
        ended.append(act())
        time.sleep(PATIENCE)  # Ctrl-C is for this test, and not for the next one

    with pytest.raises(KeyboardInterrupt):
        ring_in_its_midst()
    bell.join()
    assert not ended, "it has not waited for anything"


BLOCKING: dict[str, Callable[[Any, float | None], Any]] = {  # what they give back is awaited of the other face's
    "ask": lambda agent, limit: agent.ask("hi", timeout=limit),
    "turn": lambda agent, limit: agent.turn("hi", timeout=limit),
    "say": lambda agent, limit: list(agent.say("hi", timeout=limit)),
    "generate": lambda agent, limit: agent.generate(5, timeout=limit),
    "stream": lambda agent, limit: list(agent.stream(5, timeout=limit)),
    "compact": lambda agent, limit: agent.compact(timeout=limit),
    "exec": lambda agent, limit: agent.exec("tiny", timeout=limit),
    "info": lambda agent, limit: agent.info(timeout=limit),
    "end": lambda agent, limit: agent.end(timeout=limit),
    "wait": lambda agent, limit: agent.wait(timeout=limit),
    "system.wait": lambda agent, limit: agent.system.wait(agent.pid, limit),
    "spawn": lambda agent, limit: agent.system.spawn(timeout=limit),
    "process": lambda agent, limit: agent.system.process(agent.pid, timeout=limit),
    "ps": lambda agent, limit: agent.system.ps(timeout=limit),
    "load": lambda agent, limit: agent.system.load("tiny", timeout=limit),
    "LLM": lambda agent, limit: llm.LLM.from_pretrained("tiny", system=agent.system, timeout=limit),
    "LLM.generate": lambda agent, limit: llm.LLM(agent.system, agent.model, owns_system=False).generate(
        ["One day", "Once"], timeout=limit
    ),
}


def test_what_blocks_ends_in_time_and_at_once_by_ctrl_c(kernel: Reborn) -> None:
    with System.connect(kernel.place, reconnect=HOUR) as system:
        agent = system.spawn()
        agent.ask("My name is Mira.")
        with outage(kernel):
            for way, act in BLOCKING.items():
                with pytest.raises(SyscallError, match=r"^ETIME") as caught:
                    act(agent, 0.05)
                assert "has been cancelled" not in caught.value.reason, (way, "by whom?")
                assert way != "ask" or "no other has come yet" in caught.value.reason
                ended_by_ctrl_c(lambda act=act: act(agent, None))  # type: ignore[misc]
        assert "Mira" in agent.ask("What is my name?", timeout=PATIENCE)
        agent.end()


def test_a_process_that_is_left_while_no_kernel_runs_is_ended_by_the_next(kernel: Reborn) -> None:
    with System.connect(kernel.place, reconnect=HOUR) as system:
        with system.spawn() as left, system.spawn() as interrupted:
            kernel.kill()
            ended_by_ctrl_c(lambda: interrupted.ask("hi"))
        kernel.boot()
        eventually(lambda: not {left.pid, interrupted.pid} & {row.pid for row in system.ps()}, "they have ended")


def test_an_answer_that_is_given_up_while_no_kernel_runs_is_interrupted_in_the_next(kernel: Reborn) -> None:
    with System.connect(kernel.place, reconnect=HOUR) as system, system.spawn() as agent:
        ways: list[Callable[[Any], object]] = [
            lambda story: story.close(),
            lambda story: ended_by_ctrl_c(lambda: list(story)),
        ]
        for leave in ways:
            story = agent.say(LONG, 1000)
            next(story)
            with outage(kernel):
                leave(story)
            eventually(lambda: agent.info().state is State.BLOCKED, "it is interrupted")
            assert agent.info().length < 1000
            assert agent.ask("Who are you?", 4, timeout=PATIENCE)
            agent.truncate(0)


ASYNC: dict[str, Callable[[aio.Process, float | None], Awaitable[object]]] = {
    **{way: act for way, act in BLOCKING.items() if way not in ("say", "stream")},
    "LLM": lambda agent, limit: llm_async.LLM.from_pretrained("tiny", system=agent.system, timeout=limit),
    "LLM.generate": lambda agent, limit: llm_async.LLM(agent.system, agent.model, owns_system=False).generate(
        ["One day", "Once"], timeout=limit
    ),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_what_is_awaited_ends_in_time_and_at_once_when_it_is_cancelled(kernel: Reborn, loop: str) -> None:
    async def main() -> None:
        async with aio.System.connect(kernel.place, reconnect=HOUR) as system:
            agent = await system.spawn()
            await agent.ask("My name is Mira.")
            left = await system.spawn()
            kernel.kill()
            for way, act in ASYNC.items():
                with pytest.raises(SyscallError, match=r"^ETIME") as caught:
                    await act(agent, 0.05)
                assert "has been cancelled" not in caught.value.reason, (way, "by whom?")
                with anyio.move_on_after(0.05) as scope:
                    await act(agent, None)
                assert scope.cancelled_caught, way
            with anyio.move_on_after(0.05):
                async with left:
                    await left.ask("hi")
            await anyio.to_thread.run_sync(kernel.boot)
            assert "Mira" in await agent.ask("What is my name?", timeout=PATIENCE)
            while left.pid in {row.pid for row in await system.ps()}:  # noqa: ASYNC110 - another process ends it
                await anyio.sleep(0.02)
            await agent.end()

    run_under(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("way", ["close", "cancel", "timeout"])
def test_a_stream_that_is_left_while_no_kernel_runs(kernel: Reborn, loop: str, way: str) -> None:
    async def main() -> None:
        async with aio.System.connect(kernel.place, reconnect=HOUR) as system, await system.spawn() as agent:
            await agent.ask("hi", 1)  # what takes long the first time
            story = agent.say(LONG, 1000, timeout=3 if way == "timeout" else None)
            await anext(story)
            kernel.kill()
            try:
                if way == "cancel":
                    with anyio.move_on_after(0.05):
                        async for _ in story:
                            pass
                elif way == "timeout":
                    with pytest.raises(SyscallError) as caught:
                        async for _ in story:
                            pass
                    assert caught.value.errno is Errno.ETIME
                await story.aclose()
            finally:
                await anyio.to_thread.run_sync(kernel.boot)
            while (await agent.info(timeout=PATIENCE)).state is not State.BLOCKED:  # noqa: ASYNC110 - as above
                await anyio.sleep(0.02)
            assert (await agent.info()).length < 1000
            assert await agent.ask("Who are you?", 4)

    run_under(loop, main)


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Process, list[psutil.Process]]]:
    """An agent that has answered, on a device whose driver hangs; the kernel ends such a driver after a minute."""
    monkeypatch.setattr(script, "CLEANUP_SECONDS", 0.1)
    with System.connect(boot=True, flags=["--device", "cpu:threads=1"]) as system, system.spawn() as agent:
        agent.ask("My name is Mira.")
        drivers = psutil.Process(system.kernel.boot.os_pid).children()
        for driver in drivers:
            driver.suspend()
        try:
            yield agent, drivers
        finally:
            for driver in drivers:
                with suppress(psutil.NoSuchProcess):
                    driver.resume()


@pytest.mark.parametrize("way", ["ask", "turn", "say", "generate", "stream"])
def test_a_driver_that_hangs_holds_nobody_longer_than_they_said(
    hung: tuple[Process, list[psutil.Process]], way: str
) -> None:
    agent, drivers = hung
    with pytest.raises(SyscallError) as caught:
        BLOCKING[way](agent, 0.2)
    assert caught.value.errno is Errno.ETIME
    assert all(driver.status() == psutil.STATUS_STOPPED for driver in drivers), "it has not waited for the driver's end"


@pytest.mark.parametrize("way", ["ask", "turn", "say", "Ctrl-C"])
def test_a_turn_that_is_given_up_before_its_answer_begins_is_taken_back(cpu_system: System, way: str) -> None:
    with cpu_system.spawn() as agent:
        agent.ask("My name is Mira.")
        before = agent.tokens()
        agent.stop()
        if way == "Ctrl-C":
            ended_by_ctrl_c(lambda: agent.ask("hi"))
        else:
            with pytest.raises(SyscallError, match=r"^ETIME"):
                BLOCKING[way](agent, 0.2)
        assert agent.tokens() == before
        agent.cont()
        assert "Mira" in agent.ask("What is my name?")


@pytest.mark.parametrize("loop", LOOPS)
def test_a_turn_that_is_cancelled_before_its_answer_begins_is_taken_back(cpu_system: System, loop: str) -> None:
    async def main() -> None:
        async with aio.System.connect(cpu_system.kernel.runtime) as system, await system.spawn() as agent:
            await agent.ask("My name is Mira.")
            before = await agent.tokens()
            await agent.stop()
            for act in (agent.ask, agent.turn):
                with anyio.move_on_after(0.2):
                    await act("hi")
                assert await agent.tokens() == before
            await agent.cont()
            assert "Mira" in await agent.ask("What is my name?")

    run_under(loop, main)

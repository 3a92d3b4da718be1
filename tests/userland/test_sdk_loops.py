"""The asynchronous face under each event loop: what is cancelled ends in the kernel, and nothing is left over."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import anyio.lowlevel
import psutil
import pytest
import trio

from llmasos import aio
from llmasos.syscalls import blocking
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Finish, ReadResult
from llmasos.syscalls.table import Getinfo, Read
from llmasos.userland.sdk.script import Script, ask
from llmasos.userland.sdk.system import System
from tests.booted import eventually, is_gone
from tests.loops import LOOPS, run_under

pytestmark = pytest.mark.processes
LONG = "Tell me a long story about a fox."


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def free(agent: aio.Process) -> None:
    """Nothing decodes any more, and the process answers."""
    assert not (await agent.info()).decoding
    assert await agent.ask("Who are you?", 4)


def test_many_talk_at_once_and_each_gets_its_own_answer(cpu_system: System, loop: str) -> None:
    said: dict[str, str] = {}

    async def main() -> None:
        async with aio.System.connect(cpu_system.kernel.runtime) as system, anyio.create_task_group() as group:

            async def ask(fruits: str) -> None:
                async with await system.spawn() as process:
                    said[fruits] = await process.ask(f"Copy this list: {fruits}")

            for fruits in ("red, green", "pear, fig, lime", "apple, plum", "mango, peach, cherry"):
                group.start_soon(ask, fruits)

    run_under(loop, main)
    assert all(fruits == answer.rstrip(".") for fruits, answer in said.items()), said
    assert len(said) == 4


WAYS: dict[str, Callable[[aio.Process], Awaitable[object]]] = {
    "ask": lambda agent: agent.ask(LONG, 2000),
    "turn": lambda agent: agent.turn(LONG, 2000),
    "generate": lambda agent: agent.generate(2000, stop="never said"),
    "decode": lambda agent: agent.generate(2000),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_cancelled_answer_ends_in_the_kernel(cpu_system: System, loop: str, way: str) -> None:
    async def main() -> None:
        async with aio.System.connect(cpu_system.kernel.runtime) as system:
            agent = await system.spawn(prompt=[{"role": "user", "content": LONG}])
            with anyio.move_on_after(0.2) as scope:
                await WAYS[way](agent)
            if scope.cancelled_caught:  # else the machine is fast
                assert (await agent.info()).finish is Finish.INTERRUPT
            await free(agent)

    run_under(loop, main)


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_past_its_timeout_ends_in_the_kernel(cpu_system: System, way: str) -> None:
    ways: dict[str, Callable[[aio.Process], Awaitable[object]]] = {
        "ask": lambda agent: agent.ask(LONG, 2000, timeout=0.05),
        "turn": lambda agent: agent.turn(LONG, 2000, timeout=0.05),
        "generate": lambda agent: agent.generate(2000, stop="never said", timeout=0.05),
        "decode": lambda agent: agent.generate(2000, timeout=0.05),
    }

    async def main() -> None:
        async with aio.System.connect(cpu_system.kernel.runtime) as system:
            agent = await system.spawn(prompt=[{"role": "user", "content": LONG}])
            await agent.stop()  # it would be done in time on a fast machine
            with pytest.raises(SyscallError, match=r"not done within 0\.05 s") as caught:
                await ways[way](agent)
            assert caught.value.errno is Errno.ETIME
            await agent.cont()
            await free(agent)

    run_under("asyncio", main)


def test_the_blocking_face_keeps_to_timeouts_too(cpu_system: System) -> None:
    with cpu_system.spawn(prompt=[{"role": "user", "content": LONG}]) as agent:
        acts: list[Callable[[], object]] = [
            lambda: agent.ask(LONG, 2000, timeout=0.05),
            lambda: agent.turn(LONG, 2000, timeout=0.05),
            lambda: list(agent.say(LONG, 2000, timeout=0.05)),
            lambda: list(agent.stream(2000, timeout=0.05)),
            lambda: agent.generate(2000, timeout=0.05),
            lambda: agent.wait(timeout=0.05),
            lambda: cpu_system.run(_never(agent.pid), timeout=0.05),
        ]
        for act in acts:
            agent.stop()  # it would be done in time on a fast machine
            with pytest.raises(SyscallError) as caught:
                act()
            assert caught.value.errno is Errno.ETIME
            assert not agent.info().decoding
            agent.cont()
        assert agent.ask("Who are you?", 4)


def _never(pid: int) -> Script[ReadResult]:
    return ask(Read(pid, -1, follow=True))


def test_a_timeout_before_anything_was_fed_changes_nothing(cpu_system: System) -> None:
    with cpu_system.spawn() as agent:
        agent.ask("My name is Mira.")
        before = agent.tokens()
        with pytest.raises(SyscallError, match=r"^ETIME"):
            agent.ask("What is my name?", timeout=0)
        assert agent.tokens() == before


def test_asyncio_a_task_that_is_cancelled_twice_still_ends_its_answer(cpu_system: System) -> None:
    async def main() -> None:
        async with aio.System.connect(cpu_system.kernel.runtime) as system:
            agent = await system.spawn()
            for _ in range(3):
                task = asyncio.create_task(agent.ask(LONG, 2000))
                while not (await agent.info()).decoding and not task.done():  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                for _ in range(5):
                    task.cancel()
                    await asyncio.sleep(0)
                with pytest.raises(asyncio.CancelledError):
                    await task
                await free(agent)
            await agent.stop()  # it would be done in time on a fast machine
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await agent.generate(2000)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(agent.turn(LONG, 2000), 0.05)
            await agent.cont()
            await free(agent)

    asyncio.run(main())


def test_who_leaves_a_stream_interrupts_it_and_can_ask_at_once(cpu_system: System, loop: str) -> None:
    async def main() -> None:
        async with aio.System.connect(cpu_system.kernel.runtime) as system:
            agent = await system.spawn()
            for act in (agent.say, agent.pieces):
                async for _ in act(LONG, 2000):
                    break
                assert await agent.ask("Who are you?", 4)
            held = agent.say(LONG, 2000)
            await anext(held)
            with pytest.raises(SyscallError, match="hear that answer to its end"):
                await agent.ask("Who are you?", 4)
            await held.aclose()
            await free(agent)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # trio's, of the generators that are left
        run_under(loop, main)
        gc.collect()


def test_a_program_that_is_cancelled_while_it_boots_leaves_no_kernel_behind(loop: str) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}

    async def main() -> None:
        for patience in (0.05, 0.4):
            with anyio.move_on_after(patience):
                async with aio.System.connect(boot=True, flags=["--device", "sim"]):
                    await anyio.sleep_forever()

    run_under(loop, main)
    left = [one for one in psutil.Process().children(recursive=True) if one.pid not in before]
    eventually(lambda: all(is_gone(one) for one in left), "its kernels are gone")


def test_a_connection_without_a_with_lives_from_one_task_to_the_next(cpu_system: System) -> None:
    """As the cells of a notebook are."""

    async def main() -> None:
        system = await asyncio.create_task(aio.System.connect(cpu_system.kernel.runtime).__aenter__())
        agent = await asyncio.create_task(system.spawn())
        assert await asyncio.create_task(agent.ask("Who are you?", 4))
        await asyncio.create_task(system.close())
        with pytest.raises(SyscallError, match="closed its connection"):
            await agent.info()

    asyncio.run(main())


def test_a_loop_that_ends_with_a_connection_open_ends_cleanly(
    cpu_system: System, loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    held: list[aio.System] = []

    async def main() -> None:
        held.append(await aio.System.connect(cpu_system.kernel.runtime))

    run_under(loop, main)
    with blocking.connect(cpu_system.kernel.runtime) as observer:
        assert observer(Getinfo(held[0].kernel.pid)).name  # its connection is up until the object goes
    held[0].kernel.close()
    assert caplog.records == []


def test_a_connection_of_another_loop_says_so(cpu_system: System) -> None:
    async def connected() -> aio.System:
        return await aio.System.connect(cpu_system.kernel.runtime)

    async def used(system: aio.System) -> None:
        await system.ps()

    for one, other in (("asyncio", "trio"), ("trio", "asyncio"), ("asyncio", "uvloop")):
        system = run_under(one, connected)
        with pytest.raises(SyscallError, match="another event loop") as caught:
            run_under(other, used, system)
        assert caught.value.errno is Errno.EINVAL
        system.kernel.close()


def test_without_an_event_loop_it_says_which_there_are() -> None:
    waiting = aio.System.connect().__aenter__()
    with pytest.raises(SyscallError, match=r"trio\.run.*asyncio\.run") as caught:
        waiting.send(None)
    assert caught.value.errno is Errno.ENOTSUP


def test_a_cancelled_spawn_or_fork_leaves_no_process_behind(cpu_system: System, loop: str) -> None:
    """Wherever it is cancelled: the kernel may have made the process, and its answer be on the way."""

    async def main() -> None:
        async with aio.System.connect(cpu_system.kernel.runtime) as system:
            agent = await system.spawn(prompt="Once upon a time")
            kept: list[aio.Process] = []

            async def spawned() -> None:
                kept.append(await system.spawn(name="left"))

            async def detached() -> None:
                kept.append(await system.spawn(name="left", prompt="Once", detached=True))

            async def forked() -> None:
                kept.extend(await agent.fork(3, name="left"))

            async def timed() -> None:
                with suppress(SyscallError):
                    kept.append(await system.spawn(name="left", timeout=0.001))

            for number in range(160):
                async with anyio.create_task_group() as group:
                    group.start_soon([spawned, detached, forked, timed][number % 4])
                    for _ in range(number % 11):
                        await anyio.lowlevel.checkpoint()
                    if number % 3:
                        await anyio.sleep(0.00005 * number)
                    group.cancel_scope.cancel()
            await spawned()  # one at least, on any machine
            pids = {one.pid for one in kept}
            with anyio.fail_after(60):
                while [row for row in await system.ps() if row.name.startswith("left") and row.pid not in pids]:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
            for one in kept:
                await one.end()

    run_under(loop, main)


def test_blocking_a_spawn_past_its_timeout_leaves_no_process_behind(cpu_system: System) -> None:
    kept: list[int] = []
    for number in (*range(60), 10**6):  # the last one in time on any machine
        with suppress(SyscallError):
            kept.append(cpu_system.spawn(name="late", prompt="Once", timeout=0.0001 * number).pid)
    assert kept

    def left() -> list[int]:
        return [row.pid for row in cpu_system.ps() if row.name == "late" and row.pid not in kept]

    eventually(lambda: left() == [], "what was made too late is gone")
    for pid in kept:
        cpu_system.process(pid).end()


def test_trio_tasks_of_a_nursery_are_cancelled_together(cpu_system: System) -> None:
    async def main() -> None:
        async with aio.System.connect(cpu_system.kernel.runtime) as system:
            agents = [await system.spawn() for _ in range(4)]
            async with trio.open_nursery() as nursery:
                for agent in agents:
                    nursery.start_soon(agent.ask, LONG, 2000)
                await trio.sleep(0.2)
                nursery.cancel_scope.cancel()
            for agent in agents:
                await free(agent)

    trio.run(main)

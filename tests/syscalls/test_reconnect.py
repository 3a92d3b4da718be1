"""Programs go on when their kernel dies and comes back: no call is lost, done twice or left waiting. The kernel is
tests/syscalls/mortal.py; a real one is killed in tests/system/test_durable.py."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trio
import trio.testing

from llmasos.syscalls import blocking, client, runtime
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import BootInfo
from llmasos.syscalls.table import Call, Decode, Feed, Null, Read
from tests import leftovers
from tests.booted import eventually
from tests.loops import LOOPS, run_under
from tests.syscalls import mortal
from tests.syscalls.mortal import PATIENCE, Mortal

pytestmark = pytest.mark.processes

WORKERS, CALLS = 6, 40
DEATHS = 25
ENDLESS: list[Call[Any]] = [Read(100, -1, follow=True), Decode(100, mortal.ENDLESS)]


def check_done(kernel: Mortal, acknowledged: dict[int, int], given_up: set[int]) -> None:
    """`acknowledged`: what was fed, and the place in the log that its answer said."""
    for token, place in acknowledged.items():
        assert kernel.fed[place - 1] == token
    assert len(set(kernel.fed)) == len(kernel.fed), "a call was done twice"
    assert set(kernel.fed) - acknowledged.keys() <= given_up


@pytest.mark.parametrize(("seed", "loop"), list(enumerate(LOOPS * 2)))
def test_async_a_kernel_that_dies_at_any_point_loses_nothing_and_does_nothing_twice(
    tmp_path: Path, seed: int, loop: str
) -> None:
    acknowledged: dict[int, int] = {}
    given_up: set[int] = set()

    async def scenario(kernel: Mortal) -> None:
        tokens = itertools.count(1)
        async with client.connect(kernel.place) as program:

            async def work(worker: int) -> None:
                chance = random.Random(f"{seed} {worker}")
                for _ in range(CALLS):
                    timeout = chance.choice((0.001, 0.02, 0.1)) if chance.random() < 0.3 else PATIENCE
                    with anyio.move_on_after(timeout) as patience:
                        match chance.randrange(4):
                            case 0:
                                assert (await program(Decode(100, 5))).tokens
                            case 1:
                                with anyio.move_on_after(0.01):
                                    await program(chance.choice(ENDLESS))
                            case _:
                                token = next(tokens)
                                given_up.add(token)
                                acknowledged[token] = await program(Feed(100, [token]))
                                given_up.discard(token)
                    assert timeout < PATIENCE or not patience.cancelled_caught, "a call is left waiting"

            async with anyio.create_task_group() as group:
                for worker in range(WORKERS):
                    group.start_soon(work, worker)
            assert len(program._calls) == 0
            await settled(program, kernel)

    async def settled(program: client.Client, kernel: Mortal) -> None:
        with anyio.fail_after(PATIENCE):
            while kernel.decoding:
                await program(Null())

    with Mortal(tmp_path, deaths=DEATHS, seed=seed).running() as kernel:
        run_under(loop, scenario, kernel)
        assert kernel.lives > DEATHS / 2
        check_done(kernel, acknowledged, given_up)
        assert kernel.fed == sorted(kernel.fed), "calls have overtaken each other"


@pytest.mark.parametrize("seed", range(6))
def test_blocking_a_kernel_that_dies_at_any_point_loses_nothing_and_does_nothing_twice(tmp_path: Path, seed: int) -> None:
    acknowledged: dict[int, int] = {}
    given_up: set[int] = set()
    failures: list[BaseException] = []

    def work(program: blocking.Client, worker: int) -> None:
        chance = random.Random(f"{seed} {worker}")
        try:
            for number in range(CALLS):
                token = 1000 * worker + number
                timeout = chance.choice((0.001, 0.02, 0.1)) if chance.random() < 0.3 else PATIENCE
                try:
                    match chance.randrange(4):
                        case 0:
                            assert program(Decode(100, 5), timeout=timeout).tokens
                        case 1:
                            timeout = 0.01
                            program(chance.choice(ENDLESS), timeout=timeout)
                        case _:
                            given_up.add(token)
                            acknowledged[token] = program(Feed(100, [token]), timeout=timeout)
                            given_up.discard(token)
                except SyscallError as error:
                    if error.errno is not Errno.ETIME or timeout == PATIENCE:
                        raise
        except BaseException as error:
            failures.append(error)

    with Mortal(tmp_path, deaths=DEATHS, seed=seed).running() as kernel:
        with blocking.connect(kernel.place) as program:
            threads = [threading.Thread(target=work, args=(program, worker)) for worker in range(WORKERS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not failures
            assert len(program._calls) == 0
            eventually(lambda: program(Null()) is None and not kernel.decoding, "decodes taken back have ended")
        assert kernel.lives > DEATHS / 2
        check_done(kernel, acknowledged, given_up)


# --- no next kernel -------------------------------------------------------------------------------------------------


def failing(place: Path, kind: str, reconnect: float, first: threading.Event, told: list[BootInfo | None]) -> str:
    """Connect, set `first`, make calls until one fails; the reason. One call always waits meanwhile."""
    if kind == "blocking":
        with blocking.connect(place, reconnect=reconnect) as program:
            program.notify = told.append
            first.set()
            with pytest.raises(SyscallError) as waiting:
                program(ENDLESS[0])
            with pytest.raises(SyscallError) as later:
                program(Null())
    else:

        async def scenario() -> None:
            nonlocal waiting, later
            async with client.connect(place, reconnect=reconnect) as program:
                program.notify = told.append
                first.set()
                with pytest.raises(SyscallError) as waiting:
                    await program(ENDLESS[0])
                with pytest.raises(SyscallError) as later:
                    await program(Null())

        run_under(kind, scenario)
    assert waiting.value.errno is later.value.errno is Errno.EPIPE
    assert waiting.value.reason.removeprefix("read: ") == later.value.reason.removeprefix("null: ")
    return waiting.value.reason


@pytest.fixture(params=["blocking", "trio", "asyncio"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def failing_beside(kernel: Mortal, kind: str, reconnect: float, what: str) -> tuple[str, list[BootInfo | None]]:
    """What `failing` says when `what` is done to the kernel once the program waits."""
    first, told, reasons = threading.Event(), list[BootInfo | None](), list[str]()
    thread = threading.Thread(target=lambda: reasons.append(failing(kernel.place, kind, reconnect, first, told)))
    thread.start()
    assert first.wait(PATIENCE)
    eventually(lambda: bool(kernel.seen["Read"]), "the call waits in the kernel")
    match what:
        case "killed for good":
            kernel.kill(back=False)
        case "forgetful":
            kernel.kill(back=False)
            kernel.tickets.clear()
            kernel.revive()
        case "confused":
            kernel.kill(back=False)
            kernel.tickets = {ticket: pid + 1 for ticket, pid in kernel.tickets.items()}
            kernel.revive()
        case "halted":
            kernel.halt()
    thread.join()
    (reason,) = reasons
    return reason, told


def test_if_no_kernel_comes_in_time_calls_fail_and_say_what_to_do(tmp_path: Path, kind: str) -> None:
    with Mortal(tmp_path).running() as kernel:
        reason, told = failing_beside(kernel, kind, 0.3, "killed for good")
    assert "within 0.3 s" in reason
    assert "llmasos boot" in reason
    assert told == [None]


def test_without_reconnecting_a_dead_kernel_is_the_end(tmp_path: Path, kind: str) -> None:
    with Mortal(tmp_path).running() as kernel:
        reason, told = failing_beside(kernel, kind, 0.0, "killed for good")
    assert "has gone" in reason
    assert told == []


def test_a_kernel_that_halts_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    """PATIENCE would be over before the program gives up."""
    with Mortal(tmp_path).running() as kernel:
        reason, told = failing_beside(kernel, kind, 10 * PATIENCE, "halted")
    assert "has halted" in reason
    assert told == []


def test_a_kernel_that_does_not_know_the_program_is_the_end(tmp_path: Path, kind: str) -> None:
    with Mortal(tmp_path).running() as kernel:
        reason, _ = failing_beside(kernel, kind, 10 * PATIENCE, "forgetful")
    assert "nobody has this ticket here" in reason
    assert "connect anew" in reason


def test_a_kernel_that_takes_it_for_another_is_the_end(tmp_path: Path, kind: str) -> None:
    with Mortal(tmp_path).running() as kernel:
        reason, _ = failing_beside(kernel, kind, 10 * PATIENCE, "confused")
    assert "pid 101" in reason


# --- while there is no kernel ---------------------------------------------------------------------------------------


def test_blocking_a_program_that_is_idle_reconnects_too_and_is_told(tmp_path: Path) -> None:
    told: list[BootInfo | None] = []
    with Mortal(tmp_path).running() as kernel, blocking.connect(tmp_path) as program:
        program.notify = told.append
        before = program.boot
        kernel.kill()
        eventually(lambda: len(told) == 2, "it is back")
        assert told == [None, program.boot]
        assert (program.boot.os_pid, program.boot.pid) == (before.os_pid + 1, program.pid)  # os_pid: the life
        program(Null())


def test_async_a_program_that_is_idle_reconnects_too_and_is_told(tmp_path: Path) -> None:
    async def scenario(kernel: Mortal) -> None:
        told: list[BootInfo | None] = []
        async with client.connect(tmp_path) as program:
            program.notify = told.append
            await trio.to_thread.run_sync(kernel.kill)
            with trio.fail_after(PATIENCE):
                while len(told) < 2:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            assert told == [None, program.boot]
            assert program.boot.os_pid == 2
            await program(Null())

    with Mortal(tmp_path).running() as kernel:
        trio.run(scenario, kernel)


def test_blocking_calls_made_while_there_is_no_kernel_wait_for_it_or_for_their_timeouts(
    tmp_path: Path,
) -> None:
    with Mortal(tmp_path).running() as kernel, blocking.connect(tmp_path) as program:
        kernel.kill(back=False)
        with pytest.raises(SyscallError) as caught:
            program(Feed(100, [1]), timeout=0.1)
        assert caught.value.errno is Errno.ETIME
        places: list[int] = []
        thread = threading.Thread(target=lambda: places.append(program(Feed(100, [2]))))
        thread.start()
        with pytest.raises(SyscallError):
            program(Decode(100, 1), timeout=0.05)
        kernel.revive()
        thread.join()
        assert places == [1]
        assert kernel.fed == [2]  # not what was taken back
        assert kernel.seen["Decode"] == 0


def test_async_calls_made_while_there_is_no_kernel_wait_for_it_or_for_their_timeouts(tmp_path: Path) -> None:
    async def scenario(kernel: Mortal) -> None:
        async with client.connect(tmp_path) as program:
            await trio.to_thread.run_sync(lambda: kernel.kill(back=False))
            with pytest.raises(SyscallError) as caught:
                await program(Feed(100, [1]), timeout=0.1)
            assert caught.value.errno is Errno.ETIME
            async with trio.open_nursery() as nursery:
                nursery.start_soon(program, Feed(100, [2]))
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(program, Feed(100, [3]))
                await trio.testing.wait_all_tasks_blocked()
                await trio.to_thread.run_sync(kernel.revive)
            assert kernel.fed == [2, 3]

    with Mortal(tmp_path).running() as kernel:
        trio.run(scenario, kernel)


@pytest.mark.usefixtures("ctrl_c")
def test_blocking_an_interrupt_takes_a_call_back_that_waits_for_the_next_kernel(tmp_path: Path) -> None:
    with Mortal(tmp_path).running() as kernel, blocking.connect(tmp_path) as program:
        kernel.kill(back=False)

        def interrupt() -> None:
            eventually(lambda: len(program._calls) == 1, "the call waits")
            time.sleep(0.05)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        other = threading.Thread(target=interrupt)
        other.start()
        with pytest.raises(KeyboardInterrupt):
            program(Feed(100, [1]))
        other.join()
        kernel.revive()
        assert program(Feed(100, [2])) == 1
        assert kernel.fed == [2]


def test_blocking_an_interrupt_anywhere_in_a_call_leaves_no_lock_and_no_call_behind(tmp_path: Path) -> None:
    """Wherever Python looks for signals in a call: where its functions begin and end, and where those of the library that
    it uses do. A lock that is left held hangs all other threads, and a call left behind is made by the next kernel."""
    left = 0

    def interrupt(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if event in ("call", "return"):
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return interrupt

    before = sys.gettrace()
    with Mortal(tmp_path).running(), blocking.connect(tmp_path) as program:
        for place in itertools.count(1):
            left = place
            try:
                sys.settrace(interrupt)
                program(Null())
                break
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(before)
            others = threading.Thread(target=program, args=(Null(),), daemon=True)
            others.start()
            others.join(PATIENCE)
            assert not others.is_alive(), f"hangs after an interrupt at place {place}"
            assert len(program._calls) == 0
        assert place > 20


def test_blocking_what_is_posted_as_the_kernel_dies_is_done_by_the_next(tmp_path: Path) -> None:
    with Mortal(tmp_path).running() as kernel, blocking.connect(tmp_path) as program:
        with program._lock:  # nobody else sees first that it has died
            kernel.kill(back=False)
            program.post(Feed(100, [1]))
        kernel.revive()
        program(Null())
        assert kernel.fed == [1]


def test_closing_while_there_is_no_kernel_is_done_at_once_and_fails_who_waits(tmp_path: Path, kind: str) -> None:
    errors: list[SyscallError] = []

    def call(program: blocking.Client) -> None:
        with pytest.raises(SyscallError) as caught:
            program(Null())
        errors.append(caught.value)

    async def scenario(kernel: Mortal) -> None:
        async with (
            client.connect(tmp_path, reconnect=10 * PATIENCE) as program,
            anyio.create_task_group() as group,
        ):

            async def wait() -> None:
                with pytest.raises(SyscallError) as caught:
                    await program(Null())
                errors.append(caught.value)

            await anyio.to_thread.run_sync(lambda: kernel.kill(back=False))
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            program.close()

    with Mortal(tmp_path).running() as kernel:
        if kind != "blocking":
            run_under(kind, scenario, kernel)
        else:
            others = leftovers.threads("llmasos-reconnect")
            program = blocking.connect(tmp_path, reconnect=10 * PATIENCE)
            kernel.kill(back=False)
            thread = threading.Thread(target=call, args=(program,))
            thread.start()
            eventually(lambda: len(program._calls) == 1, "the call waits")
            program.close()
            thread.join()
            assert not leftovers.threads("llmasos-reconnect") - others
    (error,) = errors
    assert error.errno is Errno.EPIPE
    assert "closed its connection" in error.reason


def test_a_program_without_a_journal_has_no_thread_and_ends_with_its_kernel(tmp_path: Path) -> None:
    kernel = Mortal(tmp_path)
    kernel.ticketless = True
    others = leftovers.threads("llmasos-reconnect")
    with kernel.running(), blocking.connect(tmp_path) as program:
        assert not leftovers.threads("llmasos-reconnect") - others
        kernel.kill(back=False)
        with pytest.raises(SyscallError) as caught:
            program(Null())
        assert caught.value.errno is Errno.EPIPE
        assert "has gone" in caught.value.reason


def test_a_notify_that_raises_is_reported_and_the_connection_goes_on(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(boot: BootInfo | None) -> None:
        raise ZeroDivisionError("in a hook")

    async def scenario(kernel: Mortal) -> None:
        async with client.connect(tmp_path) as program:
            program.notify = broken
            await anyio.to_thread.run_sync(kernel.kill)
            await program(Null())

    with Mortal(tmp_path).running() as kernel:
        if kind != "blocking":
            run_under(kind, scenario, kernel)
        else:
            with blocking.connect(tmp_path) as program:
                program.notify = broken
                kernel.kill()
                program(Null())
    reported = [record for record in caplog.records if record.name == "llmasos"]
    assert len(reported) == 2, "when it died, and when the next one was there"
    assert all("in a hook" in str(record.exc_info) for record in reported)


def test_a_runtime_directory_that_still_has_a_journal_or_a_lock_is_not_of_a_kernel_that_halted(
    tmp_path: Path,
) -> None:
    assert runtime.halted(tmp_path)
    (tmp_path / runtime.JOURNAL).symlink_to(tmp_path / "elsewhere")
    assert not runtime.halted(tmp_path)
    os.unlink(tmp_path / runtime.JOURNAL)
    with Mortal(tmp_path).running():
        os.unlink(tmp_path / runtime.JOURNAL)
        assert not runtime.halted(tmp_path)  # a kernel that boots may have put a damaged one aside
        (tmp_path / runtime.JOURNAL).touch()

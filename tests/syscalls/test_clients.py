"""Both clients against a real kernel: many calls at once, cancelling, deadlines, and a kernel that is not there."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from llmasos.syscalls import blocking, calls, client, limits, runtime
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Kind, LogRecord, RecordsResult, Right
from llmasos.syscalls.table import (
    Attach,
    BootInfoCall,
    Decode,
    Exit,
    Feed,
    Getinfo,
    Null,
    Ps,
    Read,
    Records,
    Shutdown,
    Spawn,
    StatsCall,
    Truncate,
    Wait,
)
from tests.booted import PATIENCE, Booted, booted, eventually

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def kernel() -> Iterator[Booted]:
    with booted() as running:
        yield running


MODEL = "sim:1b"


def endless(program: blocking.Client) -> Read:
    """A call that is never answered by itself: reading on from the end of an idle process's log."""
    return Read(program(Spawn(MODEL, [1]), timeout=PATIENCE), -1, follow=True)


def parked(kernel: Booted, pid: int) -> int:
    """Calls of program `pid` that wait in the kernel."""
    with kernel.connect("observer", rights=Right.QUERY) as observer:
        return observer(Getinfo(pid)).parked


# --- what both do ---------------------------------------------------------------------------------------------------


def test_a_program_is_a_process_of_the_kernel_with_its_os_pid(kernel: Booted) -> None:
    with kernel.connect("me") as program:
        info = program(Getinfo())
        assert (info.pid, info.kind, info.name, info.os_pid) == (program.pid, Kind.PROGRAM, "me", os.getpid())
        assert program.boot.os_pid == kernel.pid
        assert Path(program.boot.runtime) == kernel.place


def test_a_program_is_never_shown_under_a_name_that_moves_the_cursor(
    kernel: Booted, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SyscallError) as caught:
        kernel.connect("me\x1b[2J")
    assert caught.value.errno is Errno.EINVAL
    assert "without control characters" in caught.value.reason
    monkeypatch.setattr(sys, "argv", ["/tmp/a\x1b[2J\n\udcffb.py"])
    assert calls.default_name() == "a?[2J??b"
    with blocking.connect(kernel.place) as program:
        assert program(Getinfo()).name == "a?[2J??b"
        with pytest.raises(SyscallError) as caught:
            program(Spawn(MODEL, [1], name="\x9b2J"))
        assert caught.value.errno is Errno.EINVAL


def test_a_program_is_gone_when_it_has_closed_its_connection(kernel: Booted) -> None:
    with kernel.connect() as observer:
        with kernel.connect() as program:
            pid = program.pid
            assert pid in [row.pid for row in observer(Ps())]
        eventually(lambda: pid not in [row.pid for row in observer(Ps())], "the program is reaped")
        with pytest.raises(SyscallError) as caught:
            observer(Getinfo(pid))
        assert caught.value.errno is Errno.ESRCH


def test_an_endpoint_names_a_kernel_too(kernel: Booted) -> None:
    with blocking.connect(runtime.endpoint(kernel.place)) as program:
        assert program.boot.os_pid == kernel.pid


def test_rights_given_up_at_attaching_are_gone(kernel: Booted) -> None:
    with kernel.connect(rights=Right.QUERY) as program:
        program(StatsCall())
        with pytest.raises(SyscallError) as caught:
            program(Shutdown())
        assert caught.value.errno is Errno.EPERM
        program(Attach(rights=0))
        with pytest.raises(SyscallError) as caught:
            program(StatsCall())
        assert caught.value.errno is Errno.EPERM


def test_a_tenant_is_apart_from_its_user_who_has_every_right_over_it(kernel: Booted) -> None:
    with kernel.connect("own") as own, kernel.connect("acme", tenant="acme") as acme:
        mine, theirs = own(Spawn(MODEL, [1])), acme(Spawn(MODEL, [2]))
        seen = {row.pid for row in acme(Ps())}
        assert {acme.pid, theirs} <= seen
        assert not {own.pid, mine} & seen
        with pytest.raises(SyscallError) as caught:
            acme(Read(mine))
        assert caught.value.errno is Errno.ESRCH
        assert own(Read(theirs)).tokens == [2]
        assert own(Getinfo(theirs)).group == f"{own(Getinfo()).group.rpartition('/')[0]}/acme/session-{acme.pid}"


def test_where_no_kernel_runs_connecting_is_refused_at_once_and_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SyscallError) as caught:
        blocking.connect(tmp_path / "nowhere")
    assert caught.value.errno is Errno.ECONNREFUSED
    assert str(tmp_path / "nowhere") in caught.value.reason
    assert "llmasos boot" in caught.value.reason

    async def connect() -> None:
        async with client.connect(tmp_path):
            pass

    with pytest.raises(SyscallError) as caught:
        trio.run(connect)
    assert caught.value.errno is Errno.ECONNREFUSED


def test_a_path_too_long_for_a_socket_is_refused_readably(tmp_path: Path) -> None:
    with pytest.raises(SyscallError) as caught:
        blocking.connect(tmp_path / ("x" * 110))
    assert caught.value.errno is Errno.EINVAL
    assert "at most 107" in caught.value.reason


def test_too_long_a_request_is_refused_and_the_connection_stays_usable(kernel: Booted) -> None:
    with kernel.connect() as program:
        with pytest.raises(SyscallError) as caught:
            program(Feed(1, [limits.MAX_TOKEN] * 2_200_000))
        assert caught.value.errno is Errno.EMSGSIZE
        program(Null())


def test_a_long_context_goes_in_and_comes_out_whole(kernel: Booted) -> None:
    tokens = [n % 30_000 for n in range(200_000)]
    with kernel.connect() as program:
        pid = program(Spawn("sim:1b,context=300000,block_bytes=64", tokens), timeout=PATIENCE)
        found: list[int] = []
        while len(found) < len(tokens):  # in pieces
            piece = program(Read(pid, len(found))).tokens
            assert piece
            found += piece
        assert found == tokens


# --- the blocking client --------------------------------------------------------------------------------------------


def test_what_one_program_has_put_down_beside_the_log_another_goes_on_with(kernel: Booted) -> None:
    long = os.urandom(limits.MAX_RECORD_BYTES - 4)
    with kernel.connect("first") as first, kernel.connect("second") as second:
        pid = first(Spawn(MODEL, [1, 2], detached=True, records=[long]), timeout=PATIENCE)
        first(Feed(pid, [3], [b"user"]))
        with pytest.raises(SyscallError) as caught:
            first(Feed(pid, [4], [b"more"]))
        assert caught.value.errno is Errno.E2BIG
        found = second(Records(pid))
        assert found == RecordsResult([LogRecord(0, long), LogRecord(2, b"user")], 3)
        second(Truncate(pid, 2))
        assert first(Records(pid, 1)) == RecordsResult([], 2)
        second(Exit(pid))


def test_blocking_a_call_past_its_timeout_is_taken_back(kernel: Booted) -> None:
    with kernel.connect() as program:
        with pytest.raises(SyscallError) as caught:
            program(endless(program), timeout=0.1)
        assert caught.value.errno is Errno.ETIME
        eventually(lambda: parked(kernel, program.pid) == 0, "the kernel has forgotten the call")
        program(Null())


@pytest.mark.usefixtures("ctrl_c")
def test_blocking_an_interrupt_takes_the_call_back_and_the_connection_stays_usable(kernel: Booted) -> None:
    with kernel.connect() as program:
        waits = endless(program)

        def interrupt_when_parked() -> None:
            eventually(lambda: parked(kernel, program.pid) == 1, "the call waits in the kernel")
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        other = threading.Thread(target=interrupt_when_parked)
        other.start()
        with pytest.raises(KeyboardInterrupt):
            program(waits)
        other.join()
        eventually(lambda: parked(kernel, program.pid) == 0, "the kernel has forgotten the call")
        program(Null())


def test_blocking_threads_share_a_connection_and_each_gets_its_own_answers(kernel: Booted) -> None:
    with kernel.connect() as program:
        failures: list[BaseException] = []

        def work(tokens: list[int]) -> None:
            try:
                pid = program(Spawn(MODEL, tokens), timeout=PATIENCE)
                for _ in range(100):
                    assert program(Read(pid)).tokens == tokens
                    program(Null())
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=([n] * (n + 1),)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures


def test_blocking_a_waiting_thread_does_not_hold_up_the_others(kernel: Booted) -> None:
    with kernel.connect() as program:
        errors: list[SyscallError] = []
        waits = endless(program)

        def wait() -> None:
            try:
                program(waits)
            except SyscallError as error:
                errors.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        eventually(lambda: parked(kernel, program.pid) == 1, "the call waits in the kernel")
        for _ in range(100):
            program(Null())
        assert not errors
        program.close()
        thread.join()
        assert [error.errno for error in errors] == [Errno.EPIPE]


def test_blocking_a_closed_connection_says_so(kernel: Booted) -> None:
    program = kernel.connect()
    program.close()
    program.close()
    with pytest.raises(SyscallError) as caught:
        program(Null())
    assert caught.value.errno is Errno.EPIPE


# --- the asynchronous client ----------------------------------------------------------------------------------------


def test_async_many_calls_are_in_flight_at_once_and_each_finds_its_caller(kernel: Booted) -> None:
    async def scenario() -> None:
        async with client.connect(kernel.place) as program:

            async def work(tokens: list[int]) -> None:
                pid = await program(Spawn(MODEL, tokens))
                for _ in range(20):
                    assert (await program(Read(pid))).tokens == tokens

            with trio.fail_after(PATIENCE):
                async with trio.open_nursery() as nursery:
                    for n in range(50):
                        nursery.start_soon(work, [n] * (n + 1))

    trio.run(scenario)


def test_async_cancelling_a_call_cancels_it_in_the_kernel_and_drops_its_answer(kernel: Booted) -> None:
    async def scenario() -> None:
        async with client.connect(kernel.place) as program:
            waits = Read(await program(Spawn(MODEL, [1])), -1, follow=True)
            for _ in range(20):
                with trio.move_on_after(0.01) as scope:
                    await program(waits)
                assert scope.cancelled_caught
                await program(Null())
            info = await program(Getinfo())
            assert info.parked == 0

    trio.run(scenario)


def test_async_cancelling_a_decode_interrupts_it(kernel: Booted) -> None:
    async def scenario() -> None:
        async with client.connect(kernel.place) as program:
            pid = await program(Spawn(MODEL, [1, 2, 3]))
            with trio.move_on_after(0.05):
                await program(Decode(pid, 4000))
            with trio.fail_after(PATIENCE):
                while (await program(Getinfo(pid))).decoding:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                assert await program(Feed(pid, [5])) > 3  # idle again, so it can be fed

    trio.run(scenario)


def test_async_a_call_past_its_timeout_is_taken_back(kernel: Booted) -> None:
    async def scenario() -> None:
        async with client.connect(kernel.place) as program:
            waits = Read(await program(Spawn(MODEL, [1])), -1, follow=True)
            with pytest.raises(SyscallError) as caught:
                await program(waits, timeout=0.05)
            assert caught.value.errno is Errno.ETIME
            assert (await program(Getinfo())).parked == 0

    trio.run(scenario)


def test_async_what_the_body_raises_comes_out_as_it_is(kernel: Booted) -> None:
    async def scenario() -> None:
        async with client.connect(kernel.place) as program:
            await program(Wait())  # there are no children

    with pytest.raises(SyscallError) as caught:
        trio.run(scenario)
    assert caught.value.errno is Errno.ECHILD


def test_async_an_error_names_what_is_wrong(kernel: Booted) -> None:
    async def scenario() -> None:
        async with client.connect(kernel.place) as program:
            with pytest.raises(SyscallError) as caught:
                await program(Getinfo(123_456))
            assert caught.value.errno is Errno.ESRCH
            assert "123456" in caught.value.reason.replace(",", "")

    trio.run(scenario)


def test_async_after_closing_calls_fail(kernel: Booted) -> None:
    async def scenario() -> None:
        async with client.connect(kernel.place) as program:
            pass
        with pytest.raises(SyscallError) as caught:
            await program(BootInfoCall())
        assert caught.value.errno is Errno.EPIPE

    trio.run(scenario)


# --- a kernel that goes away ----------------------------------------------------------------------------------------


def test_when_the_kernel_is_killed_every_waiting_call_fails_with_epipe() -> None:
    with booted() as kernel:
        errors: list[SyscallError] = []

        def wait(program: blocking.Client, waits: Read) -> None:
            try:
                program(waits)
            except SyscallError as error:
                errors.append(error)

        async def scenario() -> None:
            async with client.connect(kernel.place) as program:
                waits = Read(await program(Spawn(MODEL, [1])), -1, follow=True)

                async def call() -> None:
                    with pytest.raises(SyscallError) as caught:
                        await program(waits)
                    errors.append(caught.value)

                with trio.fail_after(PATIENCE):
                    async with trio.open_nursery() as nursery:
                        for _ in range(5):
                            nursery.start_soon(call)
                        while (await program(Getinfo())).parked < 5:  # noqa: ASYNC110
                            await trio.sleep(0.01)
                        os.kill(kernel.pid, signal.SIGKILL)
                with pytest.raises(SyscallError) as caught:
                    await program(Null())
                assert caught.value.errno is Errno.EPIPE

        with kernel.connect() as program:
            threads = [threading.Thread(target=wait, args=(program, endless(program))) for _ in range(3)]
            for thread in threads:
                thread.start()
            eventually(lambda: parked(kernel, program.pid) == 3, "the calls wait in the kernel")
            trio.run(scenario)
            for thread in threads:
                thread.join()
            with pytest.raises(SyscallError) as caught:
                program(Null())
            assert caught.value.errno is Errno.EPIPE
        assert [error.errno for error in errors] == [Errno.EPIPE] * 8
        assert all("has gone" in error.reason for error in errors)


def test_a_program_that_was_idle_when_the_kernel_was_killed_is_told_by_every_later_call() -> None:
    with booted() as kernel, kernel.connect() as program:
        program(Null())
        os.kill(kernel.pid, signal.SIGKILL)
        kernel.wait()
        for _ in range(5):
            with pytest.raises(SyscallError) as caught:
                program(Null(), timeout=PATIENCE)
            assert caught.value.errno is Errno.EPIPE
            assert "has gone" in caught.value.reason


def test_async_a_program_that_was_idle_when_the_kernel_was_killed_is_told_by_every_later_call() -> None:
    async def scenario(kernel: Booted) -> None:
        async with client.connect(kernel.place) as program:
            await program(Null())
            os.kill(kernel.pid, signal.SIGKILL)
            kernel.wait()  # without letting trio run, so that the first call comes before the news
            for _ in range(5):
                with pytest.raises(SyscallError) as caught:
                    await program(Null(), timeout=PATIENCE)
                assert caught.value.errno is Errno.EPIPE
                assert "has gone" in caught.value.reason

    with booted() as kernel:
        trio.run(scenario, kernel)


def test_when_the_kernel_halts_waiting_calls_are_told_and_later_ones_refused() -> None:
    with booted() as kernel, kernel.connect() as program, kernel.connect() as other:
        errors: list[SyscallError] = []
        waits = endless(other)

        def wait() -> None:
            try:
                other(waits)
            except SyscallError as error:
                errors.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        eventually(lambda: parked(kernel, other.pid) == 1, "the call waits in the kernel")
        program(Shutdown())
        thread.join()
        assert [error.errno for error in errors] == [Errno.EPIPE]
        assert "halt" in errors[0].reason
        assert kernel.wait() == 0
        with pytest.raises(SyscallError) as caught:
            kernel.connect()
        assert caught.value.errno is Errno.ECONNREFUSED

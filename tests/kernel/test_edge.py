"""The edge around a core that does what a test says: time, signals, and what happens when the core itself is wrong."""

from __future__ import annotations

import math
import os
import signal
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from llmasos.drivers.protocol import Hello
from llmasos.kernel.clock import MILLISECOND, SECOND
from llmasos.kernel.edge import lock
from llmasos.kernel.edge.place import Place
from llmasos.kernel.edge.server import Server
from llmasos.kernel.events import (
    Action,
    DeviceConfig,
    Disconnected,
    DriverExited,
    DriverPrinted,
    Event,
    FromDevice,
    Halt,
    HaltRequest,
    KillDriver,
    Log,
    Reply,
    SignalProgram,
    StartDriver,
    Syscall,
    Tick,
    WakeAt,
)
from llmasos.kernel.journal.state import State
from llmasos.syscalls import client
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import BootInfo, Signal
from llmasos.syscalls.table import Attach, Null
from tests.booted import PATIENCE

Handler = Callable[[Event, int], list[Action]]


class Core:
    """Answers Attach, halts on request, notes every event; the rest is the test's."""

    def __init__(self, handler: Handler | None = None, first: list[Action] | None = None) -> None:
        self.events: list[Event] = []
        self._handler = handler or (lambda event, now: [])
        self._first = first or []

    def boot(self, now: int, saved: object = None, notes: Sequence[tuple[str, str]] = ()) -> list[Action]:
        assert (saved, notes) == (None, ())
        return self._first

    def snapshot(self) -> State:
        raise AssertionError("no journal is kept of it")

    def handle(self, event: Event, now: int) -> list[Action]:
        self.events.append(event)
        match event:
            case Syscall(call=Attach()):
                value = BootInfo("1", 1, "", os.getpid(), 0.0, event.peer, "", "", [], [])
                return [Reply(event.peer, event.seq, Errno.OK, value)]
            case HaltRequest():
                return [Halt(event.reason)]
        return self._handler(event, now)

    def seen(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


def serve(
    core: Core,
    scenario: Callable[[Path, Server], Awaitable[None]],
    devices: list[DeviceConfig] | None = None,
    lines: list[Log] | None = None,
    clock: trio.abc.Clock | None = None,
) -> None:
    """Run a server in this process, a scenario against it, and halt."""

    async def run(place: Path) -> None:
        server = Server(core, devices or [], Place(place, lock.hold(place)), (lines if lines is not None else []).append)
        with trio.fail_after(PATIENCE if clock is None else math.inf):
            async with trio.open_nursery() as nursery:
                await nursery.start(server.run)
                await scenario(place, server)
                os.kill(os.getpid(), signal.SIGTERM)

    with tempfile.TemporaryDirectory(prefix="llmasos-") as base:
        trio.run(run, Path(base), clock=clock)


def jumping() -> MockClock:
    """A clock that goes on when nothing else does: for scenarios without programs, as it waits for no socket."""
    return MockClock(autojump_threshold=0.001)


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.01)


def test_an_error_in_the_core_ends_the_kernel_with_its_traceback() -> None:
    def broken(event: Event, now: int) -> list[Action]:
        if isinstance(event, Syscall):
            raise ZeroDivisionError("a bug")
        return []

    async def scenario(place: Path, server: Server) -> None:
        async with client.connect(place) as program:
            with pytest.raises(SyscallError) as caught:
                await program(Null())
            assert caught.value.errno is Errno.EPIPE

    with pytest.raises(BaseExceptionGroup) as caught:
        serve(Core(broken), scenario)
    assert caught.group_contains(ZeroDivisionError, match="a bug")


def test_a_tick_comes_at_the_wanted_moment_and_no_earlier() -> None:
    ticks: list[tuple[int, int]] = []
    wanted = [50 * MILLISECOND, 100 * MILLISECOND, 100 * MILLISECOND + 1, 4 * SECOND]

    def handler(event: Event, now: int) -> list[Action]:
        if isinstance(event, Tick):
            ticks.append((wanted.pop(0), now))
            return [WakeAt(wanted[0] if wanted else None)]
        return []

    async def scenario(place: Path, server: Server) -> None:
        await trio.sleep(5.0)

    serve(Core(handler, [WakeAt(9 * SECOND), WakeAt(wanted[0])]), scenario, clock=jumping())
    assert len(ticks) == 4
    assert all(moment <= now <= moment + 1000 for moment, now in ticks)


def test_a_wish_taken_back_brings_no_tick() -> None:
    core = Core(first=[WakeAt(50 * MILLISECOND), WakeAt(None)])

    async def scenario(place: Path, server: Server) -> None:
        await trio.sleep(5.0)

    serve(core, scenario, clock=jumping())
    assert not core.seen(Tick)


def test_time_never_goes_back() -> None:
    times: list[int] = []

    def handler(event: Event, now: int) -> list[Action]:
        times.append(now)
        if isinstance(event, Syscall):
            return [WakeAt(now + 1000), Reply(event.peer, event.seq, Errno.OK)]
        return []

    async def scenario(place: Path, server: Server) -> None:
        async with client.connect(place) as program:
            for _ in range(200):
                await program(Null())

    serve(Core(handler), scenario)
    assert times == sorted(times)


def test_a_program_that_leaves_is_disconnected_once_and_late_replies_are_dropped_and_counted() -> None:
    late: list[Reply] = []

    def handler(event: Event, now: int) -> list[Action]:
        match event:
            case Syscall():
                late.append(Reply(event.peer, event.seq, Errno.OK))
            case Disconnected():
                return [*late]
        return []

    core = Core(handler)

    async def scenario(place: Path, server: Server) -> None:
        async with client.connect(place) as program, trio.open_nursery() as nursery:
            nursery.start_soon(program, Null())
            await until(lambda: late)
            nursery.cancel_scope.cancel()
        await until(lambda: core.seen(Disconnected))
        assert server.lost_replies == 1

    serve(core, scenario)
    assert len(core.seen(Disconnected)) == 1


def test_signals_go_to_the_process_of_a_connection_and_nowhere_else() -> None:
    received: list[int] = []

    def handler(event: Event, now: int) -> list[Action]:
        match event:
            case Syscall():
                return [
                    SignalProgram(event.peer + 1, Signal.KILL),  # would end the test run
                    SignalProgram(0, Signal.KILL),
                    SignalProgram(event.peer, Signal.CONT),
                    Reply(event.peer, event.seq, Errno.OK),
                ]
        return []

    async def scenario(place: Path, server: Server) -> None:
        with trio.open_signal_receiver(signal.SIGCONT) as signals:
            async with client.connect(place) as program:
                await program(Null())
                async for number in signals:
                    received.append(number)
                    break

    serve(Core(handler), scenario)
    assert received == [signal.SIGCONT]


@pytest.mark.processes
def test_a_driver_of_unknown_kind_is_reported_as_exited_with_its_words() -> None:
    core = Core(first=[StartDriver("d", 1)])

    async def scenario(place: Path, server: Server) -> None:
        await until(lambda: core.seen(DriverExited))

    serve(core, scenario, [DeviceConfig("d", "nonesuch")])
    exited = core.seen(DriverExited)[0]
    printed = core.seen(DriverPrinted)
    assert isinstance(exited, DriverExited)
    assert (exited.device, exited.incarnation) == ("d", 1)
    assert "exit status" in exited.reason
    assert "nonesuch" in exited.reason
    assert printed


@pytest.mark.processes
def test_a_driver_killed_while_it_starts_is_reported_with_the_reason() -> None:
    core = Core(first=[StartDriver("d", 1), KillDriver("d", 1, "just because")])

    async def scenario(place: Path, server: Server) -> None:
        await until(lambda: core.seen(DriverExited))

    serve(core, scenario, [DeviceConfig("d", "sim")])
    exited = core.seen(DriverExited)[0]
    assert isinstance(exited, DriverExited)
    assert exited.reason == "killed by the kernel: just because"
    assert not exited.outside


@pytest.mark.processes
@pytest.mark.parametrize(("number", "outside"), [(signal.SIGKILL, True), (signal.SIGTERM, True), (signal.SIGSEGV, False)])
def test_a_driver_killed_from_outside_is_reported_so_and_one_that_has_crashed_is_not(
    number: signal.Signals, outside: bool
) -> None:
    core = Core(first=[StartDriver("d", 1)])

    async def scenario(place: Path, server: Server) -> None:
        await until(lambda: core.seen(FromDevice))  # its hello
        told = core.seen(FromDevice)[0]
        assert isinstance(told, FromDevice)
        assert isinstance(told.message, Hello)
        os.kill(told.message.os_pid, number)
        await until(lambda: core.seen(DriverExited))

    serve(core, scenario, [DeviceConfig("d", "sim")])
    exited = core.seen(DriverExited)[0]
    assert isinstance(exited, DriverExited)
    assert exited.outside is outside


@pytest.mark.processes
def test_a_halt_during_a_start_leaves_no_driver() -> None:
    core = Core(first=[StartDriver("d", 1)])

    async def scenario(place: Path, server: Server) -> None:
        await trio.lowlevel.checkpoint()

    serve(core, scenario, [DeviceConfig("d", "sim")])  # returns only when the driver has ended
    assert len(core.seen(DriverExited)) == 1

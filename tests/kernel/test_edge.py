"""The edge around a core that does what a test says: time, signals, and what happens when the core itself is wrong."""

from __future__ import annotations

import ast
import math
import os
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from llmasos.drivers.protocol import Hello
from llmasos.kernel.clock import MILLISECOND, SECOND
from llmasos.kernel.edge import lock
from llmasos.kernel.edge.peers import unmapped_uid
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
from llmasos.syscalls import client, zeromq
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import BootInfo, Signal
from llmasos.syscalls.table import Attach, Null, Spawn
from tests.booted import PATIENCE

Handler = Callable[[Event, int], list[Action]]


class Core:
    """Answers Attach, halts on request, notes every event; the rest is the test's."""

    def __init__(self, handler: Handler | None = None, first: list[Action] | None = None) -> None:
        self.events: list[Event] = []
        self._handler = handler or (lambda event, now: [])
        self._first = first or []

    def boot(
        self,
        now: int,
        saved: object = None,
        notes: Sequence[tuple[str, str]] = (),
        wall: int = 0,
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> list[Action]:
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


@pytest.mark.parametrize("hour", [3600.0, -3600.0], ids=["forwards", "backwards"])
def test_a_clock_on_the_wall_that_jumps_moves_no_deadline(monkeypatch: pytest.MonkeyPatch, hour: float) -> None:
    ticks: list[int] = []
    wall = time.time

    def handler(event: Event, now: int) -> list[Action]:
        if isinstance(event, Tick):
            ticks.append(now)
        return []

    async def scenario(place: Path, server: Server) -> None:
        await trio.sleep(1.0)
        monkeypatch.setattr(time, "time", lambda: wall() + hour)
        await trio.sleep(4.0)
        assert not ticks
        await trio.sleep(2.0)

    serve(Core(handler, [WakeAt(6 * SECOND)]), scenario, clock=jumping())
    assert len(ticks) == 1
    assert 6 * SECOND <= ticks[0] < 6.1 * SECOND


def test_time_in_which_the_kernel_did_not_run_is_counted_for_no_deadline() -> None:
    """A paused machine's clock that no wall moves jumps too, when it goes on."""
    ticks: list[tuple[int, int]] = []
    wanted = [1 * SECOND, 3 * SECOND, 6 * SECOND]

    def handler(event: Event, now: int) -> list[Action]:
        if isinstance(event, Tick):
            ticks.append((wanted.pop(0), now))
            return [WakeAt(wanted[0] if wanted else None)]
        return []

    clock = MockClock()

    async def scenario(place: Path, server: Server) -> None:
        for _ in range(5):
            clock.jump(86_400.0)  # once for each deadline that is due then
            for _ in range(20):
                clock.jump(0.1)
                await trio.testing.wait_all_tasks_blocked()
        while wanted:
            clock.jump(0.1)
            await trio.testing.wait_all_tasks_blocked()

    serve(Core(handler, [WakeAt(wanted[0])]), scenario, clock=clock)
    assert [moment for moment, _ in ticks] == [1 * SECOND, 3 * SECOND, 6 * SECOND]
    assert all(moment <= now <= moment + SECOND for moment, now in ticks), ticks


WALL = {  # what may ask what time it is, and why
    "kernel/edge/lock.py": "tells people since when a kernel runs",
    "kernel/edge/standing.py": "tells people when a policy was taken out",
    "kernel/edge/copies.py": "removes the copies that nobody has used for the longest time, by their dates",
    "kernel/edge/wall_clock.py": "ends permissions",
    "drivers/cpu/native/installed.py": "throws out files that nobody has used for days, by their dates",
}


def test_nothing_that_waits_asks_the_clock_on_the_wall() -> None:
    """It may be set, forwards and backwards. Only what ends a permission goes by it."""
    root = Path(__file__).resolve().parents[2]
    asks = {
        os.fspath(path.relative_to(root))
        for folder in ("kernel", "drivers", "syscalls")
        for path in (root / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and (
            (isinstance(node.value, ast.Name) and node.value.id == "time" and node.attr in ("time", "time_ns"))
            or node.attr in ("CLOCK_REALTIME", "utcnow", "today")
        )
    }
    assert asks == WALL.keys()


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
        assert server.programs.lost_replies == 1

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


def answered(event: Event, now: int) -> list[Action]:
    return [Reply(event.peer, event.seq, Errno.OK)] if isinstance(event, Syscall) else []


# --- who is at the other end ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("uid", "taken"), [(1234, True), (unmapped_uid(), False)])
def test_a_program_is_whose_the_operating_system_says_and_the_unmapped_are_refused(
    monkeypatch: pytest.MonkeyPatch, uid: int, taken: bool
) -> None:
    found = zeromq.credentials
    monkeypatch.setattr(zeromq, "credentials", lambda fd: found(fd)._replace(uid=uid))
    core = Core(answered)

    async def scenario(place: Path, server: Server) -> None:
        if taken:
            async with client.connect(place) as program:
                await program(Null())
            return
        with pytest.raises(SyscallError, match="nobody's program") as caught:
            async with client.connect(place):
                pass
        assert caught.value.errno is Errno.EPERM

    serve(core, scenario)
    calls = [event for event in core.seen(Syscall) if isinstance(event, Syscall)]
    assert {event.uid for event in calls} == ({uid} if taken else set())


def test_random_bits_come_with_the_calls_that_ask_for_them_and_with_no_others() -> None:
    core = Core(answered)

    async def scenario(place: Path, server: Server) -> None:
        async with client.connect(place) as program:
            await program(Null())
            with pytest.raises(SyscallError):  # this core makes none
                await program(Spawn("sim"))

    serve(core, scenario)
    drawn = {event.call.__class__.__name__: event.drawn for event in core.seen(Syscall) if isinstance(event, Syscall)}
    assert drawn["Null"] == 0
    assert 0 < drawn["Attach"] != drawn["Spawn"] > 0

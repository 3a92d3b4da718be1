"""The kernel core in virtual time: programs, simulated drivers and a clock around `Kernel.handle`, in one thread.

FoundationDB's simulation is the model: everything that could happen in any order happens here in one that is chosen,
so that a run can be repeated to the last bit. Devices are drivers.sim's, whose frames verify what the kernel does
with them: a wrong block table ends the run at the step it happens in. With `checked` all invariants of the kernel are
recounted after every single event, and every message and reply goes through its wire encoding.
"""

from __future__ import annotations

import copy
import heapq
import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import msgspec

from llmasos.drivers.protocol import (
    Step,
)
from llmasos.drivers.sim import tokens
from llmasos.drivers.sim.spec import ModelSpec, model
from llmasos.kernel.clock import nanoseconds, seconds
from llmasos.kernel.core import Kernel
from llmasos.kernel.events import (
    Action,
    Append,
    Audit,
    Audited,
    AuditLine,
    CloseSandbox,
    CutOff,
    Event,
    Forget,
    Forgotten,
    Halt,
    KernelConfig,
    KillDriver,
    Log,
    OpenSandbox,
    Reply,
    SandboxOpened,
    Send,
    SignalProgram,
    StartDriver,
    Tick,
    WakeAt,
    Wall,
    WallAt,
)
from llmasos.kernel.journal import records
from llmasos.kernel.journal.state import State as Saved
from llmasos.kernel.objects.process import LLMProcess
from llmasos.modelfiles import sim_vocabulary as vocabulary
from llmasos.simulator import invariants
from llmasos.simulator.border import a, function, number, wants, whole
from llmasos.simulator.driver import Driver
from llmasos.simulator.policies import Classes
from llmasos.simulator.program import LIMIT_SECONDS, Prog
from llmasos.simulator.rows import KILLED, STATE
from llmasos.simulator.small import small_config
from llmasos.syscalls import trace_events
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import BootInfo, Right, Sampler, TraceEvent
from llmasos.syscalls.table import BY_RECORD, COMMON, Attach

START_SECONDS = 0.05  # from StartDriver to Hello
_EPOCH = nanoseconds(1_700_000_000.0)  # of the wall clock, when the simulation begins
_MOST_STEPS = 100_000  # that are kept, at least


class KernelKilled(Exception):
    """The kernel has just been killed, as `die_at` says."""


class Simulation:
    """A booted kernel with its devices and programs, in virtual time."""

    def __init__(
        self,
        config: KernelConfig,
        *,
        checked: bool = True,
        journal: bool = True,
        core: type[Kernel] = Kernel,
        policies: Classes | None = None,
        record: bool = False,
    ) -> None:
        self.core = core
        self.policies = policies or Classes()
        self.recorded: list[TraceEvent] | None = [] if record else None  # all trace events, for chart.py
        self._states: dict[int, str] = {}  # pid -> state, as last recorded
        self.clock = 0  # the kernel's, in nanoseconds
        self.ahead = 0.0  # seconds by which the wall clock is ahead of where it would be
        self.sandboxes: set[int] = set()  # that have an endpoint
        self.checked = checked
        self.file = config
        self._boots = itertools.count(1)
        self.saved = Saved(b"key of the simulated kernel") if journal else None  # what the journal adds up to
        if self.saved is not None:
            self.saved.boot = next(self._boots)
        self.frames = 0  # written to it
        self.die_at = -1  # frames after which the kernel is killed; `die_before`: before this one is written
        self.die_before = False
        self.peers: dict[int, Prog] = {}
        self.kernel = core(copy.deepcopy(config))
        self.kernel.sources = self.policies
        self.config = {device.name: device for device in config.devices}
        self.drivers: dict[str, Driver] = {}
        self.programs: list[Prog] = []
        self.log: list[Log] = []
        self.audited: list[AuditLine] = []
        self.audit_trouble = ""  # why no line of the audit log can be written
        self.signals: list[SignalProgram] = []
        self.steps: list[Step] = []  # done by any device, latest last
        self.halted = ""
        self.failed = False  # the kernel raised, or broke an invariant: nothing after it means anything
        self.events = 0
        self._heap: list[tuple[int, int, bool, Callable[[], None]]] = []
        self._count = itertools.count()
        self._peers = itertools.count(1)
        self._idle_entries = 0  # entries of the heap that go on for ever: heartbeats, the kernel's own deadlines
        self._wake = 0
        self._wall_at: int | None = None
        self._read = 0  # events of the kernel's trace that are recorded
        self._born = 0.0  # when this kernel booted: it counts its own time from there
        self._act(self.kernel.boot(self.clock, copy.deepcopy(self.saved), wall=self.wall))

    # --- the kernel ---

    def event(self, event: Event) -> None:
        """Hand the kernel an event, and do what it asks for."""
        if self.halted:
            return
        if self._wall_at is not None and self.wall >= self._wall_at and not isinstance(event, Wall):
            self.event(Wall(self.wall))
        self.events += 1
        self.failed = True
        if self.recorded is not None:
            self.kernel.trace.listen(self.kernel.uptime)
        actions = self.kernel.handle(event, self.clock)
        if self.recorded is not None:
            self._record(self.recorded)
        if self.checked:
            invariants.check(self.kernel)
        self.failed = False
        self._act(actions)

    def _record(self, events: list[TraceEvent]) -> None:
        """Take over what the event that was handled has left in the trace, and the states that have changed. The trace
        does not tell states; here they are events of their own, with the state or the reason of waiting as detail."""
        found = self.kernel.trace.read(self._read, self.kernel.config.trace_events).events
        if self.checked and (wrong := next(filter(None, map(trace_events.undeclared, found)), "")):
            raise AssertionError(wrong)
        events += [msgspec.structs.replace(event, at=event.at + self._born) for event in found] if self._born else found
        self._read = self.kernel.trace.end
        at = self.now
        for process in self.kernel.table:
            if isinstance(process, LLMProcess):
                state = process.wait.value or process.state.value
                if self._states.get(process.pid) != state:
                    self._states[process.pid] = state
                    events.append(TraceEvent(-1, at, STATE, process.pid, process.device.name, 0, state))

    def did(self, step: Step) -> None:
        """A device has done a step. The latest 100,000 are kept, at least."""
        self.steps.append(step)
        if len(self.steps) > 2 * _MOST_STEPS:
            del self.steps[:-_MOST_STEPS]

    def die_in(self, event: Event, actions: int) -> None:
        """Hand the kernel an event, do the first `actions` of its actions, then kill it."""
        if not self.halted:
            self._act(self.kernel.handle(event, self.clock)[:actions], whole=False)
            self.kill()

    def kill(self) -> None:
        """The kernel's process is killed: its drivers end, connections are cut, and what is left is the journal."""
        if self.recorded is not None and not self.halted:
            self.recorded += [TraceEvent(-1, self.now, KILLED, 0, name) for name in self.drivers]
            self._states.clear()
        self.failed = False
        for driver in self.drivers.values():
            driver.end()
        self.peers.clear()
        self._wake += 1  # nobody is there to be woken
        self._wall_at = None
        self.halted = "killed"

    def boot_again(self, saved: Saved | None = None) -> None:
        """The next kernel, from the journal (or from what is said to be it). Programs are not connected."""
        self.halted, self._read, self._born = "", 0, self.now
        self.saved = copy.deepcopy(self.saved if saved is None else saved)
        if self.saved is not None:
            self.saved.boot = next(self._boots)
        self.kernel = self.core(copy.deepcopy(self.file))
        self.kernel.sources = self.policies
        self._act(self.kernel.boot(self.clock, copy.deepcopy(self.saved), wall=self.wall))

    def _append(self, append: Append) -> None:
        assert self.saved is not None
        self.frames += 1
        if self.frames != self.die_at or not self.die_before:
            self.saved.apply(records.decode(records.encode(append.frame)))
        if self.frames == self.die_at:
            raise KernelKilled

    def _check_journal(self) -> None:
        """The records so far add up to the live state."""
        if self.saved is not None and self.kernel.journal.on:
            live = self.kernel.recorded()
            assert not (found := self.saved.difference(live)), f"the journal's {found} (live)"

    def _act(self, actions: list[Action], *, whole: bool = True) -> None:
        first = next((action for action in actions if not isinstance(action, Audit)), None)
        if isinstance(first, Append):
            self._append(first)
        if self.checked and whole:
            self._check_journal()
        for action in actions:
            match action:
                case Append():
                    assert action is first, "records come before whatever they make true"
                case Audit():
                    self._audit(action)
                case Reply():
                    self._reply(action)
                case Send():
                    driver = self.drivers.get(action.device)
                    if driver is not None and driver.incarnation == action.incarnation:
                        driver.receive(action.message)
                case Forget():
                    self.at(self.now, partial(self.event, Forgotten(action.ref, ["its key"], [], sure=True)))
                case StartDriver():
                    old = self.drivers.get(action.device)
                    assert old is None or not old.alive, f"{action.device} is started twice"
                    driver = Driver(self, self.config[action.device], action.incarnation)
                    self.drivers[action.device] = driver
                    self.at(self.now + START_SECONDS, driver.hello)
                case KillDriver():
                    driver = self.drivers[action.device]
                    if driver.incarnation == action.incarnation:
                        driver.die(action.reason)
                case WakeAt():
                    self._wake += 1
                    if action.at is not None:
                        self._at(max(self.clock, action.at), partial(self._tick, self._wake), idle=True)
                case WallAt():
                    self._wall_at = action.at
                    if action.at is not None:
                        moment = max(self.clock, self.clock + action.at - self.wall)
                        self._at(moment, partial(self._look_at_wall, action.at), idle=True)
                case OpenSandbox():
                    self.sandboxes.add(action.number)
                    told = SandboxOpened(action.number, f"/sandboxes/{action.number}")
                    self.at(self.now, partial(self.event, told))
                case CloseSandbox():
                    self.sandboxes.discard(action.number)
                    for one in list(self.peers.values()):
                        if one.sandbox == action.number and one.connected:
                            self.at(self.now, partial(self.cut, one))
                case CutOff():
                    one = self.peers.pop(action.peer)
                    if one.peer == action.peer:
                        one.connected = False
                case Log():
                    self.log.append(msgspec.structs.replace(action, at=action.at + self._born))
                case SignalProgram():
                    self.signals.append(action)
                case Halt():
                    self.halted = action.reason or "halted"
                    for driver in self.drivers.values():
                        driver.alive = False

    def _audit(self, audit: Audit) -> None:
        """Write a line of the audit log, and tell a call that waits for it. `audit_trouble`: it cannot be written."""
        if not self.audit_trouble:
            self.audited.append(audit.line)
        if audit.ref:
            self.at(self.now, lambda: self.event(Audited(audit.ref, self.audit_trouble)))

    @property
    def wall(self) -> int:
        """What the wall clock shows, in nanoseconds. It goes on while no kernel runs; `ahead` sets it."""
        return _EPOCH + self.clock + nanoseconds(self.ahead)

    def _look_at_wall(self, at: int) -> None:
        if self._wall_at == at and self.wall >= at:
            self.event(Wall(self.wall))

    def cut(self, program: Prog) -> None:
        """The edge ends a connection."""
        if self.peers.get(program.peer) is program and program.connected:
            program.disconnect()

    def _tick(self, number: int) -> None:
        if number == self._wake:
            self.event(Tick())

    def _reply(self, reply: Reply) -> None:
        program = self.peers[reply.peer]
        assert program.connected, f"an answer to a program that has gone: {reply}"
        future = program.futures.get(reply.seq)
        assert future is not None, f"an answer to a call nobody made: {reply}"
        assert future.reply is None, f"a second answer to {future.call}: {reply}"
        if self.checked:
            entry = BY_RECORD[type(future.call)]
            if reply.errno is Errno.OK:
                again = msgspec.msgpack.decode(msgspec.msgpack.encode(reply.value), type=entry.result)
                assert again == reply.value, f"{entry.name}: {reply.value!r} came back as {again!r}"
            else:
                assert reply.reason, f"{entry.name} failed with {reply.errno.name} and no reason"
                declared = reply.errno in entry.errors + COMMON
                assert declared, f"{entry.name} does not declare {reply.errno.name}: {reply.reason}"
        if reply.told and self.saved is not None:
            program.seen = self.saved.position
        future.answer(reply, self.now)

    # --- time ---

    @property
    def now(self) -> float:
        """In seconds."""
        return seconds(self.clock)

    @wants(moment=number(0), action=function)
    def at(self, moment: float, action: Callable[[], None], *, idle: bool = False) -> None:
        """Do something later, at a time in seconds. `idle`: it is no work, only a beat of the clock."""
        self._at(nanoseconds(moment), action, idle=idle)

    def _at(self, moment: int, action: Callable[[], None], *, idle: bool) -> None:
        heapq.heappush(self._heap, (moment, next(self._count), idle, action))
        self._idle_entries += idle

    def step(self) -> None:
        """Let the next thing happen."""
        moment, _, idle, action = heapq.heappop(self._heap)
        self._idle_entries -= idle
        self.clock = max(self.clock, moment)
        action()

    @wants(done=function, limit=number(0))
    def run_until(self, done: Callable[[], bool], limit: float = LIMIT_SECONDS, what: str = "it") -> None:
        """Let things happen until `done()`; AssertionError if that takes more than `limit` virtual seconds."""
        end = nanoseconds(self.now + limit)
        while not done():
            if not self._heap or self._heap[0][0] > end:
                raise AssertionError(f"{what} has not come by {self.now:.3f} s:\n{self.describe()}")
            self.step()

    @wants(duration=number(0))
    def run_for(self, duration: float) -> None:
        """Let `duration` seconds of virtual time pass."""
        end = nanoseconds(self.now + duration)
        while self._heap and self._heap[0][0] <= end:
            self.step()
        self.clock = max(self.clock, end)

    @wants(limit=number(0))
    def run_idle(self, limit: float = LIMIT_SECONDS) -> None:
        """Run until no driver works and nothing is on its way; deadlines and restarts may still be pending."""
        self.run_until(lambda: len(self._heap) == self._idle_entries and not self.kernel.pieces, limit, "idleness")

    # --- programs and devices ---

    @wants(name=a(str, "text"), rights=a(int, "rights, as Right.SPAWN | Right.QUERY"))
    def program(
        self,
        name: str = "test",
        rights: Right = Right.ALL,
        *,
        uid: int | None = None,
        tenant: str = "",
        chance: int | None = None,
    ) -> Prog:
        """A new program, attached; of another user than the kernel's with a `uid`, of one of his tenants with a `tenant`.
        What is random in its calls follows from `chance`; None: from how many there were before it."""
        program = self.connection(uid, chance)
        info: BootInfo = program.call(Attach(name, int(rights), tenant=tenant, seen=0))
        program.pid, program.ticket = info.pid, info.ticket
        return program

    def connection(self, uid: int | None = None, chance: int | None = None) -> Prog:
        """A connection that has not attached."""
        program = Prog(self, 0, uid, chance)
        self.programs.append(program)
        self.connect(program)
        return program

    def connect(self, program: Prog) -> None:
        """Give a program a new connection."""
        program.peer = next(self._peers)
        self.peers[program.peer] = program

    @wants(name=a(str, "the name of a device"))
    def driver(self, name: str = "") -> Driver:
        if name and name not in self.drivers:
            raise Errno.ENODEV(f"no device {name!r}; there are: {', '.join(self.drivers)}")
        return self.drivers[name or next(iter(self.config))]

    @wants(outside=a(bool, "True or False"))
    def crash(self, name: str = "", *, outside: bool = False) -> None:
        """A driver's process dies; `outside`: by a signal that its work cannot have caused."""
        self.driver(name).die("SIGKILL", outside=outside)

    @wants(mute=a(bool, "True or False"))
    def hang(self, name: str = "", *, mute: bool = False) -> None:
        """Let a driver get on no more; with `mute` it is not even heard."""
        driver = self.driver(name)
        driver.hung, driver.mute = True, mute

    def model(self, name: str = "sim", dtype: str = "", device: str = "") -> ModelSpec:
        """What a model name means to a device."""
        path = self.kernel.config.models.get(name, name)
        return model(path, dtype, self.driver(device).device.models)

    @wants(count=whole(0))
    def continuation(
        self,
        log: list[int],
        count: int,
        sampler: Sampler | None = None,
        stop_ids: tuple[int, ...] = (),
        name: str = "sim",
    ) -> list[int]:
        """What a decode must give, from the definition of the simulated model alone."""
        return tokens.continuation(self.model(name), log, sampler or Sampler(), count, stop_ids)

    def tokens(self, text: str, name: str = "sim") -> list[int]:
        """The tokens of a text, as a simulated model reads them: one a byte. Raises SyscallError EINVAL for what a small
        vocabulary does not have."""
        try:
            return vocabulary.encode(text.encode(), self.model(name).vocab)
        except ValueError as error:
            raise Errno.EINVAL(f"{error}; simulate(options={{'vocab': '1000'}})") from None

    def text(self, ids: Iterable[int], name: str = "sim") -> str:
        """The text of tokens of a simulated model."""
        return vocabulary.decode(ids, self.model(name).vocab).decode(errors="replace")

    def describe(self) -> str:
        """The process table and the drivers, for failing tests."""
        rows = []
        for p in self.kernel.table:
            rows.append(f"  {p.pid} {p.kind.value} {p.name} {p.state.value}({p.wait.value})")
            if isinstance(p, LLMProcess):
                rows[-1] += (
                    f" {p.traits.sched_class.value} log={len(p.log)} cached={p.table.cached} todo={p.todo}"
                    f" frames={p.table.frames} key={p.key} decoding={p.decoding is not None}"
                )
        drivers = [
            f"  {d.name}.{d.incarnation} alive={d.alive} busy={d.busy} hung={d.hung} inbox={len(d.inbox)}"
            for d in self.drivers.values()
        ]
        log = [f"  {line.at:.3f} {line.level} {line.text}" for line in self.log[-12:]]
        return "\n".join(["processes:", *rows, "drivers:", *drivers, "log:", *log])


_TRUTH = a(bool, "True or False")


@wants(frames=whole(1), checked=_TRUTH, journal=_TRUTH, forgiving=_TRUTH, record=_TRUTH)
def simulate(
    frames: int = 64,
    *,
    checked: bool = True,
    journal: bool = True,
    core: type[Kernel] = Kernel,
    forgiving: bool = False,
    record: bool = False,
    **more: Any,
) -> Simulation:
    """A booted simulation of `small_config(frames, **more)` whose drivers are up. `policy`, `victims` and `evictions` may
    also be classes of one's own, or files of them (policies.py); `forgiving`: a faulty one is taken out and does not end
    the simulation. `record`: so that its schedule can be drawn (chart.py). Raises EINVAL, which names the argument."""
    policies = Classes(forgiving=forgiving)
    config = small_config(frames, **policies.named(more))
    sim = Simulation(config, checked=checked, journal=journal, core=core, policies=policies, record=record)
    sim.run_until(lambda: all(d.state == "up" for d in sim.kernel.devices.values()), what="every driver")
    return sim

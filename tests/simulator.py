"""The kernel core in virtual time: programs, simulated drivers and a clock around `Kernel.handle`, in one thread.

FoundationDB's simulation is the model: everything that could happen in any order happens here in one that is chosen,
so that a run can be repeated to the last bit. Devices are drivers.sim's, whose frames verify what the kernel does
with them: a wrong block table ends the test at the step it happens in. With `checked` all invariants of the kernel are
recounted after every single event, and every message and reply goes through its wire encoding.
"""

from __future__ import annotations

import copy
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, NoReturn, TypeVar

import msgspec

from llmasos.drivers import parcel, protocol
from llmasos.drivers.protocol import (
    HEARTBEAT_SECONDS,
    Abandon,
    Done,
    Drop,
    Export,
    Exported,
    Failed,
    FromDriver,
    Heartbeat,
    Import,
    Inspect,
    Load,
    Loaded,
    Probe,
    Progress,
    Quit,
    Release,
    Shed,
    Step,
    ToDriver,
    Unload,
)
from llmasos.drivers.sim import tokens
from llmasos.drivers.sim.device import SimDevice
from llmasos.drivers.sim.fate import Fate
from llmasos.drivers.sim.spec import ModelSpec, model, parse
from llmasos.kernel.clock import nanoseconds, seconds
from llmasos.kernel.core import Kernel
from llmasos.kernel.events import (
    Action,
    Append,
    Cancel,
    DeviceConfig,
    Disconnected,
    DriverExited,
    Event,
    FromDevice,
    Halt,
    KernelConfig,
    KillDriver,
    Log,
    Reply,
    Send,
    SignalProgram,
    StartDriver,
    Syscall,
    Tick,
    WakeAt,
)
from llmasos.kernel.journal import records
from llmasos.kernel.journal.state import State as Saved
from llmasos.kernel.objects.process import LLMProcess
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import BootInfo, Right, Sampler
from llmasos.syscalls.table import BY_RECORD, COMMON, Attach, Call

R = TypeVar("R")

START_SECONDS = 0.05  # from StartDriver to Hello
DISK_SECONDS = 0.003  # for the file of a process image
EXIT_SECONDS = 0.001  # from a driver's death to DriverExited
LIMIT_SECONDS = 10_000.0  # virtual time after which a call that is not answered is taken for forgotten

SMALL = {  # a device whose steps take about a millisecond, and models of a few kilobytes
    "params": "1e6",
    "layers": "2",
    "kv_dim": "4",
    "vocab": "1000",
    "context": "512",
    "overhead": "0.001",
    "memory": "1g",
    "time_scale": "0",
}
FRAME_BYTES = 16 * 2 * 2 * 4 * 2  # of SMALL
DEVICE_FIELDS = ("policy", "victims", "evictions", "max_runs", "step_tokens", "weight_bytes")


def slots(count: int) -> str:
    """Room for so many frames below, as an option of the simulated device: an image gets half of what is there."""
    return str(2 * count * FRAME_BYTES)


class KernelKilled(Exception):
    """The kernel has just been killed, as `die_at` says."""


class _Died(Exception):
    pass


class _Hung(Exception):
    pass


class _VirtualFate(Fate):
    def die(self) -> NoReturn:
        raise _Died

    def hang(self) -> NoReturn:
        raise _Hung

    def sleep(self, seconds: float) -> None:
        raise AssertionError("a simulated device must not sleep: give it time_scale=0")


class Future(Generic[R]):
    """The answer to a call, once there is one."""

    def __init__(self, program: Prog, seq: int, call: Call[R]) -> None:
        self.program, self.seq, self.call = program, seq, call
        self.reply: Reply | None = None
        self.at = 0.0

    @property
    def done(self) -> bool:
        return self.reply is not None

    @property
    def errno(self) -> Errno | None:
        """None while it waits."""
        return None if self.reply is None else self.reply.errno

    @property
    def value(self) -> R:
        """The result; raises SyscallError if that is what the answer was, AssertionError if there is none yet."""
        assert self.reply is not None, f"{self.call} has no answer yet"
        if self.reply.errno is not Errno.OK:
            raise SyscallError(self.reply.errno, self.reply.reason)
        result: R = self.reply.value
        return result

    def cancel(self) -> None:
        self.program.sim.event(Cancel(self.program.peer, self.seq))


class Prog:
    """A program attached to the simulated kernel."""

    def __init__(self, sim: Simulation, peer: int) -> None:
        self.sim, self.peer = sim, peer
        self.connected = True
        self.pid = 0
        self.ticket = b""
        self._seq = itertools.count(1)
        self.futures: dict[int, Future[Any]] = {}

    def start(self, call: Call[R]) -> Future[R]:
        """Make a call and do not wait for its answer."""
        future = self.prepare(call)
        self.sim.event(self.event(future))
        return future

    def prepare(self, call: Call[R]) -> Future[R]:
        """A call that is yet to be made, by `event`."""
        future = Future(self, next(self._seq), call)
        self.futures[future.seq] = future
        return future

    def event(self, future: Future[Any]) -> Syscall:
        return Syscall(self.peer, future.seq, future.call, os_pid=1000 + self.peer)

    def call(self, call: Call[R], limit: float = LIMIT_SECONDS) -> R:
        """Make a call and run the system until it is answered. Raises SyscallError."""
        future = self.start(call)
        self.sim.run_until(lambda: future.done, limit, what=repr(call)[:200])
        return future.value

    def disconnect(self) -> None:
        self.sim.event(Disconnected(self.peer))  # what was due before it may still be answered
        self.connected = False

    def come_back(self) -> None:
        """Take up where the program was with the kernel before this one; call again what has no answer."""
        unanswered = [future for future in self.futures.values() if not future.done]
        self.sim.connect(self)
        info: BootInfo = self.call(Attach(ticket=self.ticket))
        assert (info.pid, info.ticket) == (self.pid, self.ticket)
        for future in unanswered:
            if not future.done:
                self.sim.event(self.event(future))


class _Driver:
    """A driver process: one message at a time, in order; beside them, likewise, probes and loads; and heartbeats."""

    def __init__(self, sim: Simulation, config: DeviceConfig, incarnation: int) -> None:
        self.sim, self.name, self.incarnation = sim, config.name, incarnation
        self.kernel = sim.kernel
        self.kind = config.kind
        self.device = SimDevice(*parse({**config.options, "time_scale": "0"}), _VirtualFate())
        self.inbox: deque[ToDriver] = deque()
        self.loads: deque[ToDriver] = deque()  # come to their turn in the inbox
        self.loading = False
        self.alive = True
        self.mute = False  # its message loop hangs, too: no heartbeats
        self.hung = False
        self.busy = False
        self.progress = 0
        self.parcels: set[str] = set()
        self.unwanted: set[int] = set()  # refs

    def say(self, message: FromDriver, after: float = 0.0) -> None:
        """Let the kernel have a message, unless this driver dies before."""
        if self.sim.checked:
            message = protocol.decode_from_driver(protocol.encode(message))
        self.sim.at(self.sim.now + after, lambda: self._deliver(message))

    def _deliver(self, message: FromDriver) -> None:
        if self.hung and not isinstance(message, Heartbeat):
            self.busy = True  # with what it did not come to say
        elif self.alive and not self.mute:
            self.sim.event(FromDevice(self.name, self.incarnation, message))

    def hello(self) -> None:
        if self.alive and not self.hung:
            hello = self.device.hello()
            if self.kind != "sim":  # it stands for a device of another kind
                hello = msgspec.structs.replace(hello, kind=self.kind)
            self._deliver(hello)
            self.heartbeat()

    def heartbeat(self) -> None:
        if self.alive:
            busy = self.busy or self.loading
            if busy and not self.hung:
                self.progress += 1
            self._deliver(Heartbeat(self.progress, busy))
            self.sim.at(self.sim.now + HEARTBEAT_SECONDS, self.heartbeat, idle=True)

    def receive(self, message: ToDriver) -> None:
        if not self.alive:
            return
        if self.sim.checked:
            message = protocol.decode_to_driver(protocol.encode(message))
        if isinstance(message, Quit):
            self.die("quit")
        elif isinstance(message, Release):
            self._let_go(message.path)
        elif isinstance(message, Abandon):
            self.unwanted.add(message.ref)
        elif isinstance(message, Inspect):
            self._aside(message, lambda: self.device.inspect(message))
        else:
            self.inbox.append(message)
            self._next()

    def _next(self) -> None:
        if self.hung:
            self.busy = self.busy or bool(self.inbox)
        elif self.alive and not self.busy and self.inbox and isinstance(self.inbox[0], Probe | Load):
            self.loads.append(self.inbox.popleft())
            self._next_load()
            self._next()
        elif self.alive and not self.busy and self.inbox:
            self.busy = True
            self._begin(self.inbox.popleft(), self._idle)

    def _begin(self, message: ToDriver, then: Callable[[], None]) -> None:
        try:
            seconds = self._work(message)
        except _Died:
            self.die("SIGKILL")
        except _Hung:
            self.hung = True
        else:
            self.sim.at(self.sim.now + seconds, then)

    def _idle(self) -> None:
        if not self.hung:
            self.busy = False
            self.progress += 1
            self._next()

    def _next_load(self) -> None:
        if self.alive and not self.hung and not self.loading and self.loads:
            self.loading = True
            self._begin(self.loads.popleft(), self._loaded)

    def _loaded(self) -> None:
        if not self.hung:
            self.loading = False
            self.progress += 1
            self._next_load()

    def _work(self, message: ToDriver) -> float:
        """Do one message and announce its answer; returns how long it takes."""
        d = self.device
        try:
            match message:
                case Probe():
                    self.say(d.probe(message))
                case Load():
                    bring_in, seconds = d.fetch(message, lambda _: None), d.load_seconds(message)
                    self.say(Progress(message.ref, 0.5), seconds / 2)
                    self.sim.at(self.sim.now + seconds, lambda: self._bring_in(message, bring_in))
                    return seconds
                case Shed():
                    d.shed(message.image)
                    self.say(Done(message.ref))
                case Unload():
                    d.unload(message.image)
                    self.say(Done(message.ref))
                case Drop():
                    d.drop(message.ctxs)
                case Export():
                    self._aside(message, d.export(message))
                    self._check_faults(message)
                case Import():
                    self.say(d.import_(message), DISK_SECONDS)
                    return DISK_SECONDS
                case Step():
                    done = d.step(message)
                    self.sim.steps.append(message)
                    self.say(done, done.seconds)
                    self._check_faults(message)
                    return done.seconds
                case _:
                    raise AssertionError(f"not a driver's work: {message}")
        except SyscallError as error:
            ref: int = getattr(message, "ref", 0)
            self.say(Failed(ref, error.errno, error.reason))
        return 0.0

    def _bring_in(self, message: Load, act: Callable[[], Loaded]) -> None:
        """What nobody wants any more is given up, unless it had been read by then."""
        if message.ref in self.unwanted and message.ref % 2:
            self.say(Failed(message.ref, Errno.EINTR, "nobody waits for it any more"))
        else:
            self.say(act())

    def _check_faults(self, message: ToDriver) -> None:
        if self.device.faults:
            raise AssertionError(f"the device found the kernel wrong: {self.device.faults}\nin {message}")

    def _aside(self, message: Inspect | Export, work: Callable[[], FromDriver]) -> None:
        """What the disk's thread of a driver does: it takes its time, and steps go on."""
        answer: FromDriver
        try:
            answer = work()
        except SyscallError as error:
            answer = Failed(message.ref, error.errno, error.reason)
        if isinstance(answer, Exported) and answer.path:
            self.parcels.add(answer.path)
        self.say(answer, DISK_SECONDS)

    def _let_go(self, path: str) -> None:
        self.parcels.discard(path)
        parcel.release(path)

    def end(self) -> None:
        self.alive = False
        for path in list(self.parcels):  # files in memory do not outlive their process
            self._let_go(path)

    def die(self, reason: str, *, outside: bool = False) -> None:
        if self.alive:
            self.end()
            exited = DriverExited(self.name, self.incarnation, reason, outside)
            self.sim.at(self.sim.now + EXIT_SECONDS, lambda: self._report(exited))

    def _report(self, event: Event) -> None:
        if self.sim.kernel is self.kernel:
            self.sim.event(event)


class Simulation:
    """A booted kernel with its devices and programs, in virtual time."""

    def __init__(
        self, config: KernelConfig, *, checked: bool = True, journal: bool = True, core: type[Kernel] = Kernel
    ) -> None:
        self.core = core
        self.clock = 0  # the kernel's, in nanoseconds
        self.checked = checked
        self.file = config
        self.saved = Saved(b"key of the simulated kernel") if journal else None  # what the journal adds up to
        self.frames = 0  # written to it
        self.die_at = -1  # frames after which the kernel is killed; `die_before`: before this one is written
        self.die_before = False
        self.peers: dict[int, Prog] = {}
        self.kernel = core(copy.deepcopy(config))
        self.config = {device.name: device for device in config.devices}
        self.drivers: dict[str, _Driver] = {}
        self.programs: list[Prog] = []
        self.log: list[Log] = []
        self.signals: list[SignalProgram] = []
        self.steps: deque[Step] = deque(maxlen=100_000)  # done by any device, latest last
        self.halted = ""
        self.failed = False  # the kernel raised, or broke an invariant: nothing after it means anything
        self.events = 0
        self._heap: list[tuple[int, int, bool, Callable[[], None]]] = []
        self._count = itertools.count()
        self._peers = itertools.count(1)
        self._idle_entries = 0  # entries of the heap that go on for ever: heartbeats, the kernel's own deadlines
        self._wake = 0
        self._act(self.kernel.boot(self.clock, copy.deepcopy(self.saved)))

    # --- the kernel ---

    def event(self, event: Event) -> None:
        """Hand the kernel an event, and do what it asks for."""
        if self.halted:
            return
        self.events += 1
        self.failed = True
        actions = self.kernel.handle(event, self.clock)
        if self.checked:
            self.kernel.check()
        self.failed = False
        self._act(actions)

    def die_in(self, event: Event, actions: int) -> None:
        """Hand the kernel an event, and kill it when it has done so many of the actions that come of it."""
        if not self.halted:
            self._act(self.kernel.handle(event, self.clock)[:actions], whole=False)
            self.kill()

    def kill(self) -> None:
        """The kernel's process is killed: its drivers end, connections are cut, and what is left is the journal."""
        self.failed = False
        for driver in self.drivers.values():
            driver.end()
        self.peers.clear()
        self._wake += 1  # nobody is there to be woken
        self.halted = "killed"

    def boot_again(self, saved: Saved | None = None) -> None:
        """The next kernel, from the journal (or from what is said to be it). Programs are not connected."""
        self.halted = ""
        self.saved = copy.deepcopy(self.saved if saved is None else saved)
        self.kernel = self.core(copy.deepcopy(self.file))
        self._act(self.kernel.boot(self.clock, copy.deepcopy(self.saved)))

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
        for action in actions[:1]:
            if isinstance(action, Append):
                self._append(action)
        if self.checked and whole:
            self._check_journal()
        for action in actions:
            match action:
                case Append():
                    assert action is actions[0], "records come before whatever they make true"
                case Reply():
                    self._reply(action)
                case Send():
                    driver = self.drivers.get(action.device)
                    if driver is not None and driver.incarnation == action.incarnation:
                        driver.receive(action.message)
                case StartDriver():
                    old = self.drivers.get(action.device)
                    assert old is None or not old.alive, f"{action.device} is started twice"
                    driver = _Driver(self, self.config[action.device], action.incarnation)
                    self.drivers[action.device] = driver
                    self.at(self.now + START_SECONDS, driver.hello)
                case KillDriver():
                    driver = self.drivers[action.device]
                    if driver.incarnation == action.incarnation:
                        driver.die(action.reason)
                case WakeAt():
                    self._wake += 1
                    if action.at is not None:
                        self._at(max(self.clock, action.at), lambda n=self._wake: self._tick(n), idle=True)  # type: ignore[misc]
                case Log():
                    self.log.append(action)
                case SignalProgram():
                    self.signals.append(action)
                case Halt():
                    self.halted = action.reason or "halted"
                    for driver in self.drivers.values():
                        driver.alive = False

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
        future.reply, future.at = reply, self.now

    # --- time ---

    @property
    def now(self) -> float:
        """In seconds."""
        return seconds(self.clock)

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

    def run_until(self, done: Callable[[], bool], limit: float = LIMIT_SECONDS, what: str = "it") -> None:
        """Let things happen until `done()`; AssertionError if that takes more than `limit` virtual seconds."""
        end = nanoseconds(self.now + limit)
        while not done():
            if not self._heap or self._heap[0][0] > end:
                raise AssertionError(f"{what} has not come by {self.now:.3f} s:\n{self.describe()}")
            self.step()

    def run_for(self, duration: float) -> None:
        """Let so many seconds of virtual time pass."""
        end = nanoseconds(self.now + duration)
        while self._heap and self._heap[0][0] <= end:
            self.step()
        self.clock = max(self.clock, end)

    def run_idle(self, limit: float = LIMIT_SECONDS) -> None:
        """Run until no driver works and nothing is on its way; deadlines and restarts may still be pending."""
        self.run_until(lambda: len(self._heap) == self._idle_entries, limit, "idleness")

    # --- programs and devices ---

    def program(self, name: str = "test", rights: Right = Right.ALL) -> Prog:
        """A new program, attached."""
        program = self.connection()
        info: BootInfo = program.call(Attach(name, int(rights)))
        program.pid, program.ticket = info.pid, info.ticket
        return program

    def connection(self) -> Prog:
        """A connection that has not attached."""
        program = Prog(self, 0)
        self.programs.append(program)
        self.connect(program)
        return program

    def connect(self, program: Prog) -> None:
        """Give a program a new connection."""
        program.peer = next(self._peers)
        self.peers[program.peer] = program

    def driver(self, name: str = "") -> _Driver:
        return self.drivers[name or next(iter(self.config))]

    def crash(self, name: str = "", *, outside: bool = False) -> None:
        """A driver's process dies; `outside`: by a signal that its work cannot have caused."""
        self.driver(name).die("SIGKILL", outside=outside)

    def hang(self, name: str = "", *, mute: bool = False) -> None:
        """Let a driver get on no more; with `mute` it is not even heard."""
        driver = self.driver(name)
        driver.hung, driver.mute = True, mute

    def model(self, name: str = "sim", dtype: str = "", device: str = "") -> ModelSpec:
        """What a model name means to a device."""
        path = self.kernel.config.models.get(name, name)
        return model(path, dtype, self.driver(device).device.models)

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


def small_config(
    frames: int = 64,
    *,
    options: dict[str, str] | None = None,
    others: dict[str, str] | None = None,
    devices: int = 1,
    **config: Any,
) -> KernelConfig:
    """A kernel with small simulated devices sim0, sim1, ... whose models get `frames` frames each. `others` are options
    of all but the first.

    `config` are fields of DeviceConfig (policy, max_runs, step_tokens) or of KernelConfig.
    """
    device = {k: config.pop(k) for k in DEVICE_FIELDS if k in config}
    return KernelConfig(
        devices=[
            DeviceConfig(
                f"sim{i}",
                "sim",
                kv_bytes=16 * frames * FRAME_BYTES,
                image_kv_bytes=frames * FRAME_BYTES,
                options={**SMALL, **(options or {}), **((others or {}) if i else {})},
                **device,
            )
            for i in range(devices)
        ],
        models={"tiny": "sim"},
        version="test",
        **config,
    )


def simulate(
    frames: int = 64, *, checked: bool = True, journal: bool = True, core: type[Kernel] = Kernel, **more: Any
) -> Simulation:
    """A booted simulation of `small_config(frames, **more)` whose drivers are up."""
    sim = Simulation(small_config(frames, **more), checked=checked, journal=journal, core=core)
    sim.run_until(lambda: all(d.state == "up" for d in sim.kernel.devices.values()), what="every driver")
    return sim

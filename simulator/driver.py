"""A simulated driver process in virtual time: drivers.sim's device behind the driver's protocol.

It does one message at a time, in order; beside them, likewise, probes and loads; and beats its heart. It can die, hang or
fall silent at any moment. Its device verifies frames: a wrong block table ends the run at the step it happens in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

import msgspec

from llmasos.drivers import parcel, protocol
from llmasos.drivers.protocol import (
    HEARTBEAT_SECONDS,
    Abandon,
    Done,
    Drop,
    DropWeights,
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
    Step,
    ToDriver,
    Unload,
    Wipe,
)
from llmasos.drivers.sim.device import SimDevice
from llmasos.drivers.sim.fate import Fate
from llmasos.drivers.sim.spec import parse
from llmasos.kernel.events import (
    DeviceConfig,
    DriverExited,
    Event,
    FromDevice,
)
from llmasos.syscalls.errno import Errno, SyscallError

if TYPE_CHECKING:
    from llmasos.simulator.simulation import Simulation

DISK_SECONDS = 0.003  # for the file of a process image
EXIT_SECONDS = 0.001  # from a driver's death to DriverExited


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


class Driver:
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
            if busy:
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
                case DropWeights():
                    d.drop_weights(message.image)
                    self.say(Done(message.ref))
                case Unload():
                    d.unload(message.image)
                    self.say(Done(message.ref))
                case Drop():
                    d.drop(message.ctxs)
                case Wipe():
                    d.wipe(message)
                    self.say(Done(message.ref))
                case Export():
                    self._aside(message, d.export(message))
                    self._check_faults(message)
                case Import():
                    self.say(d.import_(message), DISK_SECONDS)
                    return DISK_SECONDS
                case Step():
                    done = d.step(message)
                    self.sim.did(message)
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
        """Announce the model, or that the load was abandoned: nobody wants it any more, and it had not been read yet."""
        if message.ref in self.unwanted and message.ref % 2:
            self.say(Failed(message.ref, Errno.EINTR, "nobody waits for it any more"))
        else:
            self.say(act())

    def _check_faults(self, message: ToDriver) -> None:
        if self.device.faults:
            raise AssertionError(f"the device found the kernel wrong: {self.device.faults}\nin {message}")

    def _aside(self, message: Inspect | Export, work: Callable[[], FromDriver]) -> None:
        """Answer as a driver's disk thread does: later, while steps go on."""
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

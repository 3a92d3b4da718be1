"""A kernel under the shim, booted again whenever it ends, and a program whose every answer is checked.

The simulated device verifies its KV at each step, and its tokens are a function of the log: so what the program gets is
compared with what it must get, token by token. A call that fails may have been done or not, whole or not at all; a call
that is answered has been done, once.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from llmasos.drivers.sim import spec, tokens
from llmasos.syscalls import blocking, runtime
from llmasos.syscalls.calls import Overdue
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Sampler, Signal
from llmasos.syscalls.table import (
    BootInfoCall,
    Call,
    Checkpoint,
    Decode,
    Dmesg,
    Feed,
    Kill,
    Null,
    Read,
    Restore,
    Spawn,
    StatsCall,
    Truncate,
)
from tests.booted import command
from tests.faults.shim import Shim

R = TypeVar("R")
Say = Callable[[list[int], int], list[int]]
"""What a model says after a log: so many tokens."""

HANG_SECONDS = 15.0  # of a driver
SECONDS = 60.0  # until something that hangs is called so: the machine may be busy
MODEL = "sim:1k,context=4096"
SIM = "sim:time_scale=0"
LONGEST = 400  # tokens of the log that goes on through everything
STOPS = (signal.SIGTERM, signal.SIGKILL)
SAMPLER = Sampler(temperature=1.0, seed=7)


class Broken(AssertionError):
    """Something that must hold whatever fails does not."""


def form_of(line: str) -> str:
    """A line of the kernel's log without its time and figures."""
    return re.sub(r"\d+", "#", re.sub(r"^\[ *\d+\.\d+\] ", "", line))


def continuation(log: list[int], count: int, sampler: Sampler = SAMPLER) -> list[int]:
    return tokens.continuation(spec.model(MODEL, "", spec.ModelSpec()), log, sampler, count)


@dataclass
class Target:
    """The kernel in `base`, with the drivers of `devices`. `shim` None: nothing fails."""

    base: Path
    shim: Shim | None
    devices: tuple[str, ...] = (SIM,)
    fsync: str = "interval"
    ended: list[str] = field(default_factory=list)  # why kernels have ended that were not told to, as their logs say
    errors: list[str] = field(default_factory=list)  # what calls have failed with
    acknowledged: int = 0
    boots: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _wanted: bool = False  # it is to run
    _turn: threading.Lock = field(default_factory=threading.Lock)
    standing: frozenset[str] | None = None  # warnings that it gives when nothing fails (by `form_of`)
    _read: int = 0  # how much of its log was looked at,
    _began: int = 0  # and was there when the kernel was booted

    def __post_init__(self) -> None:
        # Drivers that have died often are to be there again at once: each death is another case.
        patience = f"hang_seconds = {HANG_SECONDS}\nstart_seconds = {HANG_SECONDS}\n"
        again = "restart_max = 0.1\nrestart_forgiven = 0.01\n"
        # As much as it comes to keep, soon.
        lines, audit = "log_lines = 512\n", "[audit]\nkeep = 2\n"
        (self.base / "kernel.toml").write_text(
            f'[kernel]\n{patience}{again}{lines}[journal]\nfsync = "{self.fsync}"\n{audit}'
        )
        (self.base / "log").touch()

    # --- the kernel ---

    @property
    def place(self) -> Path:
        return self.base / "run"

    @property
    def log(self) -> str:
        return (self.base / "log").read_text(errors="replace")

    @property
    def environment(self) -> dict[str, str]:
        """Its keys, settings and models are its own: what fails must not be the user's."""
        found = self.shim.environment if self.shim is not None else dict(os.environ)
        homes = ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
        return {**found, **{home: os.fspath(self.base / "home" / home) for home in homes}}

    def news(self) -> str:
        """What has been logged since the last look."""
        text = self.log
        found, self._read = text[self._read :], len(text)
        return found

    def calm(self) -> None:
        """Nothing has failed yet: what its log says now tells of no fault later either."""
        if self.standing is None:
            self.standing = frozenset(map(form_of, self.log.splitlines()))

    @contextlib.contextmanager
    def running(self) -> Iterator[Target]:
        """Boot it, and keep it up: one that ends is booted again, with nothing failing."""
        self._wanted = True
        self.boot()
        keeper = threading.Thread(target=self._keep_up, daemon=True)
        keeper.start()
        try:
            yield self
        finally:
            self._wanted = False
            keeper.join()
            if self.shim is not None:
                self.shim.disarm()
            self._end()

    def boot(self) -> bool:
        """Boot it unless it runs. False: it has ended before it answered; its log says why."""
        with self._turn:
            return self._boot()

    def _boot(self) -> bool:
        if self._process is not None and self._process.poll() is None:
            return True
        self.boots += 1
        self._began = len(self.log)
        devices = [word for device in self.devices for word in ("--device", device)]
        config = os.fspath(self.base / "kernel.toml")
        words = [*command(self.place, *devices, "--journal", os.fspath(self.base / "journal"), "--config", config)]
        with (self.base / "log").open("ab") as log:
            process = self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )
        deadline = time.monotonic() + SECONDS
        while process.poll() is None and not self._listens():
            if time.monotonic() > deadline:
                raise Broken(f"a kernel does not answer {SECONDS:g} s after its boot:\n{self.log[-2000:]}")
            time.sleep(0.01)
        return process.poll() is None

    def _listens(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return runtime.listening(self.place)
        return False

    def kill(self, *, driver: bool = False) -> None:
        """SIGKILL to the kernel, or to one of its drivers. Whoever keeps it up boots the next one."""
        process = self._process
        assert process is not None
        if not driver:
            process.kill()
            return
        with contextlib.suppress(psutil.Error, StopIteration):
            children = psutil.Process(process.pid).children()
            next(child for child in children if child.status() != psutil.STATUS_ZOMBIE).kill()

    def halt(self) -> None:
        """SIGTERM: it ends in good order, and its journal is kept. The next one is booted."""
        with self._turn:
            process = self._process
            assert process is not None
            process.terminate()
            process.wait(SECONDS)
            if process.returncode == 0 and "as the kernel halts: " in self.log[self._began :]:
                raise Broken("what came last is not on the disk, and the kernel's exit status does not say so")
            self._buried(process)
            self._boot()

    def reboot(self, arm: Callable[[], None], *, first: bool = False) -> None:
        """SIGKILL, and a boot with what `arm` lets fail in the way; if that one ends with a reason, another. `first`: of
        a user who has no keys and no journal yet."""
        with self._turn:
            process = self._process
            assert process is not None
            process.kill()
            process.wait(SECONDS)
            for made in ("home", "journal") if first else ():
                shutil.rmtree(self.base / made)
            arm()
            if not self._boot():
                self._buried(process=self._process or process)
                self._boot()

    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def _keep_up(self) -> None:
        while self._wanted:
            with self._turn:
                process = self._process
                if process is not None and process.poll() is not None and self._wanted:
                    self._buried(process)
                    self._boot()
            time.sleep(0.02)

    def _buried(self, process: subprocess.Popen[bytes]) -> None:
        if self.shim is not None:
            self.shim.disarm()
        if re.search(r"^[ |+]*Traceback ", self.log[self._began :], re.MULTILINE):
            self.ended.append("")  # that is no line for those who want to know what to do
        elif process.returncode not in (0, -signal.SIGKILL):
            lines = [line for line in self.log[-4000:].splitlines() if line.strip()]
            said = [line for line in lines[-6:] if not re.match(r"\[ *\d+\.\d+\] (?!warning: |error: )", line)]
            self.ended.append(f"status {process.returncode}: {' | '.join(said[-3:])}" if said else "")

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        family = psutil.Process(process.pid).children(recursive=True)
        for stop in STOPS:
            process.send_signal(stop)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS / 3)
                break
        for one in family:
            with contextlib.suppress(psutil.Error):
                one.wait(SECONDS)

    # --- its program ---

    def connect(self, **more: Any) -> blocking.Client:
        """A program that waits for the next kernel as long as that may take."""
        return self.patient(lambda: blocking.connect(self.place, timeout=SECONDS, reconnect=SECONDS, **more))

    def patient(self, make: Callable[[], R]) -> R:
        """What `make` makes, as soon as a kernel is there to make it with."""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                return make()
            except SyscallError as error:
                if error.errno not in (Errno.ECONNREFUSED, Errno.EPIPE, Errno.EAGAIN) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


@dataclass
class Agent:
    """A program and its process, whose log is known."""

    target: Target
    client: blocking.Client
    pid: int = 0
    log: list[int] = field(default_factory=list)
    unique: int = 0
    done: int = 0
    model: str = MODEL
    say: Say = continuation
    words: int = 30_000  # tokens that it feeds are below

    @classmethod
    def born(cls, target: Target, say: Say | None = None) -> Agent:
        """`say`: what the embedded model says; None: it talks with a simulated one."""
        agent = cls(target, target.connect(name="agent"))
        if say is not None:
            agent.model, agent.say, agent.words = "tiny", say, 200
        agent.renew()
        target.calm()
        return agent

    def renew(self) -> None:
        """Begin with a new process: the old one's log is long."""
        self.log = [1, 2, 3]
        self.pid = self.client(Spawn(self.model, self.log, SAMPLER, detached=True), timeout=SECONDS)

    def begin_anew(self) -> None:
        """With a kernel that knows nothing of it."""
        self.client.close()
        self.client = self.target.connect(name="agent")
        try:
            self.renew()
        except SyscallError as error:
            self.target.errors.append(f"Spawn: {error}")
            self.renew()

    def call(self, call: Call[R]) -> R | None:
        """The answer; None if the call failed, for which there is a reason. Raises Broken: it has none."""
        try:
            found = self.client(call, timeout=SECONDS)
        except SyscallError as error:
            text = f"{type(call).__name__}: {error}"
            if isinstance(error, Overdue):
                raise Broken(f"a call is not answered within {SECONDS:g} s: {text}\n{self.target.log[-2000:]}") from None
            if error.errno is Errno.ESTALE:
                raise Broken(f"something acknowledged is lost: {text}") from None
            self.target.errors.append(text)
            if error.errno is Errno.EPIPE:  # its connection broke; the process is detached
                self.client.close()
                self.client = self.target.connect(name="agent")
            return None
        self.target.acknowledged += 1
        return found

    def turn(self, decode: int = 3) -> None:
        """Feed tokens that nobody else feeds, decode, read all of it."""
        fed = [10 + self.unique % self.words, 11]
        self.unique += 1
        self._settle(self.call(Feed(self.pid, fed)), [*self.log, *fed])
        wanted = self.say(self.log, decode)
        said = self.call(Decode(self.pid, decode))
        if said is not None and said.tokens != wanted:
            raise Broken(f"a wrong token: {said.tokens} instead of {wanted}")
        if said is not None:
            self.log += wanted
        else:
            self._read([[*self.log, *wanted[:count]] for count in range(decode + 1)])
        self.done += 1
        self._read([self.log])

    def _settle(self, length: int | None, then: list[int]) -> None:
        if length is None:
            self._read([self.log, then])
        elif length != len(then):
            raise Broken(f"a feed says {length} tokens, {len(then)} there must be")
        else:
            self.log = then

    def _read(self, allowed: list[list[int]]) -> None:
        """Compare with the log as it is; that is known from here on. A call that failed may go on to its end."""
        deadline = time.monotonic() + SECONDS
        while (found := self.call(Read(self.pid))) is None or found.decoding:
            if time.monotonic() > deadline:
                raise Broken(f"the log of process {self.pid} cannot be read: {self.target.errors[-1:]}")
            time.sleep(0.02)
        if found.tokens not in allowed:
            raise Broken(f"the log is {found.tokens[-12:]}, and should end as one of {[log[-12:] for log in allowed]}")
        self.log = found.tokens

    def images(self) -> None:
        """A child is spawned, decodes, is written to a file, and restored from it; both say the same."""
        image = os.fspath(self.target.base / "image")
        log = [5, 6, self.unique % self.words]
        child = self.call(Spawn(self.model, log, SAMPLER, "child", detached=True))
        if child is None:
            return
        if self.call(Decode(child, 1)) is None:
            self.call(Kill(child, Signal.KILL))
            return
        self.call(Kill(child, Signal.STOP))  # its pages go to a lower tier, if there is one, with the next step
        self.turn(1)
        self.call(Kill(child, Signal.CONT))
        twin = self.call(Restore(image)) if self.call(Checkpoint(child, image)) is not None else None
        said = [self.call(Decode(pid, 4)) for pid in (child, twin) if pid is not None]
        wanted = self.say([*log, *self.say(log, 1)], 4)
        if wrong := [one.tokens for one in said if one is not None and one.tokens != wanted]:
            raise Broken(f"a child says {wrong} instead of {wanted}")
        for pid in (child, twin):
            if pid is not None:
                self.call(Truncate(pid, 1))
                self.call(Kill(pid, Signal.KILL))

    def company(self) -> None:
        """Another program comes and goes."""
        try:
            with self.target.connect(name="guest") as guest:
                guest(Null(), timeout=SECONDS)
                guest(Dmesg(), timeout=SECONDS)
        except SyscallError as error:
            if error.errno is Errno.ETIME:
                raise Broken(f"a program that connects gets no answer: {error}") from None
            self.target.errors.append(f"guest: {error}")

    def works(self) -> None:
        """The system goes on: its device comes up, its journal is kept, tokens are decoded."""
        deadline = time.monotonic() + SECONDS
        while True:
            boot = self.call(BootInfoCall())
            if boot is not None and all(device.state == "up" for device in boot.devices):
                break
            if time.monotonic() > deadline:
                states = [f"{device.name}: {device.state} {device.error}" for device in boot.devices] if boot else "?"
                raise Broken(f"the devices do not come up again: {states}")
            time.sleep(0.02)
        while (stats := self.call(StatsCall())) is None or stats.journal != "kept":
            if time.monotonic() > deadline:
                raise Broken(f"the journal is not kept again: {stats.journal if stats else '?'}")
            time.sleep(0.05)
        errors = len(self.target.errors)
        if len(self.log) > LONGEST:
            self.renew()
        self.turn()
        if len(self.target.errors) > errors:
            raise Broken(f"it does not go on, though nothing fails any more: {self.target.errors[errors:]}")

"""The kernel core alone, driven by hand: no sockets, no driver; a device that answers every request at once.

What is timed is `Kernel.handle`, nothing else.
"""

from __future__ import annotations

import itertools
from typing import Any

from llmasos.drivers.protocol import SIZES, VERSION, Hello, Load, Loaded, Probe, Probed, RunResult, Step, StepDone
from llmasos.kernel.clock import MILLISECOND
from llmasos.kernel.core import Kernel
from llmasos.kernel.events import Action, DeviceConfig, FromDevice, KernelConfig, Reply, Send, Syscall
from llmasos.kernel.journal.state import State
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import Tier
from llmasos.syscalls.table import Attach, Call

BLOCK_BYTES = 1 << 16


class Core:
    """A booted core with one program attached and one device `d` of `frames` frames."""

    def __init__(self, frames: int, max_runs: int, step_tokens: int, context: int, *, journal: bool = False) -> None:
        kv = frames * BLOCK_BYTES
        device = DeviceConfig("d", "sim", kv, kv, max_runs=max_runs, step_tokens=step_tokens)
        self.kernel = Kernel(KernelConfig([device], session_processes=200_000))
        self.context = context
        self.now = 0  # nanoseconds
        self.step: Step | None = None  # the one on the device
        self._replies: dict[int, Reply] = {}
        self._seq = itertools.count(1)
        self._take(self.kernel.boot(0, State(b"key") if journal else None))
        hello = Hello(VERSION, "sim", 1, "", [Tier("ram", 1 << 50, 1.0)], ["sim"], ["bf16"], [], SIZES)
        self.from_device(hello)
        self.call(Attach("benchmark"))

    def _take(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Reply):
                self._replies[action.seq] = action
            elif isinstance(action, Send):
                self._send(action.message)

    def _send(self, message: object) -> None:
        match message:
            case Probe():
                self.from_device(Probed(message.ref, "sim", "bf16", 1, 1, 32_000, self.context, 1, BLOCK_BYTES, []))
            case Load():
                self.from_device(Loaded(message.ref, 1))
            case Step():
                self.step = message

    def from_device(self, message: Any) -> None:
        self._take(self.kernel.handle(FromDevice("d", 1, message), self.now))

    def syscall(self, call: Call[Any]) -> Syscall:
        """The event of a new call."""
        return Syscall(1, next(self._seq), call)

    def call(self, call: Call[Any]) -> Any:
        """Make a call that is answered at once."""
        event = self.syscall(call)
        self._take(self.kernel.handle(event, self.now))
        reply = self._replies.pop(event.seq)
        if reply.errno is not Errno.OK:
            raise RuntimeError(reply.reason)
        return reply.value

    def results(self) -> FromDevice:
        """The event that ends the step on the device; every run that asks for a token gets token 1."""
        assert self.step is not None
        done = [RunResult(r.ctx, 1 if r.sample and r.sample.append else -1) for r in self.step.runs]
        event = FromDevice("d", 1, StepDone(self.step.ref, done, 0.001))
        self.step = None
        self.now += MILLISECOND
        return event

    def take(self, actions: list[Action]) -> None:
        """Do what a timed `handle` asked for."""
        self._take(actions)

    def run(self, steps: int) -> None:
        """Let the device do up to so many steps."""
        for _ in range(steps):
            if self.step is None:
                return
            self._take(self.kernel.handle(self.results(), self.now))

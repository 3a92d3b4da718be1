"""A program of the simulation: calls made one by one, and their answers once there are any."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from llmasos.kernel.events import (
    Cancel,
    Disconnected,
    Reply,
    Syscall,
    Wall,
)
from llmasos.kernel.seeds import mix
from llmasos.syscalls import wire
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import BootInfo
from llmasos.syscalls.table import BY_RECORD, Attach, Call

if TYPE_CHECKING:
    from llmasos.simulator.simulation import Simulation

R = TypeVar("R")

LIMIT_SECONDS = 10_000.0  # virtual time after which a call that is not answered is taken for forgotten


class Future(Generic[R]):
    """The answer to a call, once there is one."""

    def __init__(self, program: Prog, seq: int, call: Call[R]) -> None:
        self.program, self.seq, self.call = program, seq, call
        self.reply: Reply | None = None
        self._at = 0.0

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

    @property
    def at(self) -> float:
        """When it was answered, in seconds of the simulation; AssertionError if it has not been."""
        assert self.reply is not None, f"{self.call} has no answer yet"
        return self._at

    def answer(self, reply: Reply, at: float) -> None:
        self.reply, self._at = reply, at

    def cancel(self) -> None:
        self.program.sim.event(Cancel(self.program.peer, self.seq))


class Prog:
    """A program attached to the simulated kernel."""

    def __init__(self, sim: Simulation, peer: int, uid: int | None = None, chance: int | None = None) -> None:
        """`uid` is that of its OS process; None: the kernel's own. `chance`: the seed of what is drawn for calls."""
        self.sim, self.peer, self.uid = sim, peer, uid
        self._chance = len(sim.programs) if chance is None else chance
        self.sandbox = 0  # by whose endpoint it comes
        self.key = b""  # by which it comes from another machine
        self.connected = True
        self.pid = 0
        self.ticket = b""
        self.seen = 0  # the position of the journal that its latest answer told
        self._seq = itertools.count(1)
        self.futures: dict[int, Future[Any]] = {}

    def start(self, call: Call[R]) -> Future[R]:
        """Make a call and do not wait for its answer. Raises SyscallError: EPIPE where no kernel would hear it."""
        self._check_connected()
        future = self.prepare(call)
        dated = BY_RECORD[type(call)].dated
        if dated and getattr(call, dated):
            self.sim.event(Wall(self.sim.wall))
        self.sim.event(self.event(future))
        return future

    def prepare(self, call: Call[R]) -> Future[R]:
        """A call that is yet to be made, by `event`. Its arguments are those that come out of its wire encoding, as a
        booted kernel gets them. Raises SyscallError for a call that is refused there, and never comes to the kernel."""
        taken: Call[R] = wire.taken(call)
        future = Future(self, next(self._seq), taken)
        self.futures[future.seq] = future
        return future

    def event(self, future: Future[Any]) -> Syscall:
        drawn = mix(self._chance, future.seq) >> 1 if BY_RECORD[type(future.call)].draws else 0
        size = len(wire.encode_request(future.seq, future.call))
        who = 0 if self.key else 1000 + self.peer, self.uid, drawn, size
        return Syscall(self.peer, future.seq, future.call, *who, sandbox=self.sandbox, key=self.key)

    def call(self, call: Call[R], limit: float = LIMIT_SECONDS) -> R:
        """Make a call and run the system until it is answered. Raises SyscallError."""
        future = self.start(call)
        self.sim.run_until(lambda: future.done, limit, what=repr(call)[:200])
        return future.value

    def _check_connected(self) -> None:
        sim = self.sim
        if not self.connected:
            raise Errno.EPIPE(f"program {self.pid} has disconnected; sim.program() is a new one")
        if sim.halted:
            raise Errno.EPIPE(f"the kernel has ended ({sim.halted}); sim.boot_again() boots the next one")
        if sim.peers.get(self.peer) is not self:
            raise Errno.EPIPE(
                f"program {self.pid} was connected to the kernel before this one; program.come_back() first"
            )

    def disconnect(self, *, cut: bool = False) -> None:
        """Its connection ends; `cut`: on its way from another machine."""
        self.sim.event(Disconnected(self.peer, cut))  # what was due before it may still be answered
        self.connected = False

    def come_back(self) -> None:
        """Take up where the program was with the kernel before this one, or before its connection was cut; call again
        what has no answer. Raises SyscallError: EINVAL if it is connected, ESTALE if it was told what the journal
        lacks."""
        if self.connected and self.sim.peers.get(self.peer) is self:
            raise Errno.EINVAL(f"program {self.pid} is connected; it comes back after kill() and boot_again()")
        unanswered = [future for future in self.futures.values() if not future.done]
        self.sim.connect(self)
        self.connected = True
        try:
            info: BootInfo = self.call(Attach(ticket=self.ticket, seen=self.seen))
        except SyscallError:
            del self.sim.peers[self.peer]
            raise
        assert (info.pid, info.ticket) == (self.pid, self.ticket)
        for future in unanswered:
            if not future.done:
                self.sim.event(self.event(future))

"""What one owner can tell another by what both share: covert channels, in bits a second.

A sender and a receiver are programs of two owners, and take turns symbol by symbol. The sender sends random bits; the
receiver looks at one number (how long a call of its own took, or what a call says) and holds it against the middle
between the means for zeros and ones of a preamble that it knows. From the part of its bits that are wrong follows the
rate: the capacity of the binary symmetric channel, 1 - H(error), times symbols a second. Both know when a symbol begins,
no third program disturbs them, and in virtual time there is no noise: real ones do worse. A rate of 0: no better than a
guess.

Where a device carries it the device is a simulated one in virtual time, whose steps take a millisecond: rates go with
steps a second. What only the kernel carries is measured with a booted one, in bits a system call: that does not depend on
the machine nor on what else it does, and goes with the calls that two programs can make a second (`null_call`).
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.null_call import kernel
from benchmarks.report import Figure
from llmasos.kernel.events import Partition
from llmasos.simulator import Prog, Simulation, simulate
from llmasos.syscalls import blocking
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Signal
from llmasos.syscalls.table import Decode, Feed, Kill, Pagein, Spawn, StatsCall, Truncate, Wait

BITS = 400
PREAMBLE = 40  # of a random half each
CHANCE = 3.0  # standard deviations from one half that an error must have to be no guess
SLOTS = (0.0012, 0.0015, 0.002, 0.0025, 0.003, 0.004, 0.01, 0.04, 0.05)  # seconds of a symbol: the best is told
TURN = 0.01  # of the partition
MOST = 64  # processes of the booted kernel
SENDER, RECEIVER = 1001, 1002
OWNERS = 2
Symbol = Callable[[int], float]  # the sender does what the bit says; what the receiver sees then


@dataclass(frozen=True, slots=True)
class Rate:
    """Of a channel."""

    error: float  # part of the bits
    symbols: float  # a second, or a call

    @property
    def bits(self) -> float:
        """A second, or a call."""
        return capacity(self.error) * self.symbols


def capacity(error: float) -> float:
    """Bits that a symbol of the binary symmetric channel carries."""
    if error in (0.0, 1.0):
        return 1.0
    return 1.0 + error * math.log2(error) + (1 - error) * math.log2(1 - error)


def measured(symbol: Symbol, clock: Callable[[], float]) -> Rate:
    """Send a preamble and random bits."""
    pick, bits = random.Random(1), BITS
    known = [0, 1] * (PREAMBLE // 2)
    pick.shuffle(known)
    seen: tuple[list[float], list[float]] = [], []
    for bit in known:
        seen[bit].append(symbol(bit))
    zero, one = map(statistics.fmean, seen)
    middle = (zero + one) / 2
    began, wrong = clock(), 0
    for _ in range(bits):
        bit = pick.randrange(2)
        told = int((symbol(bit) > middle) == (one > zero))
        wrong += told != bit
    error = wrong / bits
    if abs(error - 0.5) < CHANCE * 0.5 / math.sqrt(bits) or zero == one:
        error = 0.5
    return Rate(error, bits / (clock() - began))


# --- devices, in virtual time ---------------------------------------------------------------------------------------


class World:
    """Two owners' programs on a simulated device. What they do begins with the slots of a clock that both have: when one
    of them is done is not what the next symbol begins with."""

    def __init__(
        self, slot: float, parted: bool, frames: int, models: tuple[str, str] = ("sim", "sim"), **more: Any
    ) -> None:
        owners = [str(SENDER), str(RECEIVER)] if parted else []
        self.sim: Simulation = simulate(
            frames * (len(owners) + 1), checked=False, journal=False, partition=Partition(owners, TURN), **more
        )
        operator = self.sim.program("operator")
        for model in dict.fromkeys(models):
            operator.call(Pagein(model))
        self.sender, self.receiver = (self.sim.program(uid=uid) for uid in (SENDER, RECEIVER))
        self.slot, self.count = slot, math.ceil(self.sim.now / slot)
        self.length = 2  # tokens of the receiver's context
        self.pids = [program.call(Spawn(model, [1, 2])) for program, model in zip(self.programs, models, strict=True)]

    @property
    def programs(self) -> tuple[Prog, Prog]:
        return self.sender, self.receiver

    def now(self) -> float:
        return self.sim.now

    def next_slot(self) -> float:
        """Wait for it; when it began."""
        self.count = max(self.count + 1, math.ceil(self.sim.now / self.slot))
        begins = self.count * self.slot
        self.sim.run_for(begins - self.sim.now)
        return begins

    def decoded(self, began: float) -> float:
        """Seconds from a moment on until the receiver has decoded a token; at most as long as its slot."""
        future = self.receiver.start(Decode(self.pids[1], 1))
        self.sim.run_for(max(0.0, began + self.slot * 0.98 - self.sim.now))
        if not future.done:
            return self.slot
        self.receiver.start(Truncate(self.pids[1], self.length))
        return future.at - began


def queueing(slot: float, parted: bool) -> Rate:
    """A step that has the sender in it takes longer."""
    world = World(slot, parted, 16)

    def symbol(bit: int) -> float:
        began = world.next_slot()
        if bit:
            world.sender.start(Decode(world.pids[0], 1))
        return world.decoded(began)

    return measured(symbol, world.now)


def frames(slot: float, parted: bool) -> Rate:
    """The sender's context takes the frames of the receiver's, which is computed again."""
    world = World(slot, parted, 10)
    mine, theirs = world.pids
    world.length = 80
    world.receiver.call(Feed(theirs, [3] * (world.length - 2)))
    world.receiver.call(Decode(theirs, 0))

    def symbol(bit: int) -> float:
        began = world.next_slot()
        if bit:
            world.sender.start(Feed(mine, [5] * 140))
            world.sender.start(Decode(mine, 1))
        world.sim.run_for(slot / 2)
        took = world.decoded(began)
        world.sender.start(Truncate(mine, 2))
        return took

    return measured(symbol, world.now)


def residency(slot: float, parted: bool) -> Rate:
    """There is room for one model: the sender's goes in, the receiver's comes back."""
    models = ("sim", "sim:context=256")
    world = World(slot, parted, 16, models, weight_bytes=0 if parted else 3_000_000)

    def symbol(bit: int) -> float:
        began = world.next_slot()
        if bit:
            world.sender.start(Decode(world.pids[0], 1))
        world.sim.run_for(slot / 2)
        return world.decoded(began)

    return measured(symbol, world.now)


DEVICE = {"queueing": queueing, "frames": frames, "residency of models": residency}


def best(channel: Callable[[float, bool], Rate], parted: bool) -> Rate:
    """By the length of its symbols that serves it best; with turns, of those in which the receiver has one."""
    slots = [slot for slot in SLOTS if not parted or slot > (OWNERS + 1) * TURN]
    return max((channel(slot, parted) for slot in slots), key=lambda rate: rate.bits)


# --- the kernel, by the call ----------------------------------------------------------------------------------------


class Caller:
    """A client that counts its calls."""

    def __init__(self, client: blocking.Client) -> None:
        self._client, self.calls = client, 0

    def __call__(self, call: Any) -> Any:
        self.calls += 1
        return self._client(call)


def calls_of(*callers: Caller) -> Callable[[], float]:
    """A clock that goes by the calls that they make."""
    return lambda: float(sum(caller.calls for caller in callers))


@contextlib.contextmanager
def booted(parted: bool) -> Iterator[tuple[Caller, Caller]]:
    """A kernel, and the programs of two tenants."""
    with tempfile.TemporaryDirectory(prefix="llmasos-") as place:
        config = Path(place) / "kernel.toml"
        uid = os.getuid()
        partition = f'[partition]\nowners = ["{uid}/ann", "{uid}/ben"]\nturn_seconds = {TURN}\n' if parted else ""
        config.write_text(f"[kernel]\nmax_processes = {MOST}\n{partition}")
        with kernel(Path(place) / "run", "--config", os.fspath(config)) as process:
            clients = [connected(Path(place) / "run", process.poll, tenant) for tenant in ("", "ann", "ben")]
            with contextlib.ExitStack() as stack:
                operator, ann, ben = (stack.enter_context(one) for one in clients)
                operator(Pagein("sim"))
                yield Caller(ann), Caller(ben)


def connected(place: Path, ended: Callable[[], int | None], tenant: str) -> blocking.Client:
    while True:
        try:
            return blocking.connect(place, name=tenant or "operator", tenant=tenant)
        except SyscallError as error:
            if error.errno is not Errno.ECONNREFUSED or ended() is not None:
                raise
            time.sleep(0.02)


def statistics_read(sender: Caller, receiver: Caller) -> Rate:
    """The sender makes a call or does not; `stats` counts the calls of all."""
    before = receiver(StatsCall()).calls

    def symbol(bit: int) -> float:
        nonlocal before
        if bit:
            sender(StatsCall())
        last, before = before, receiver(StatsCall()).calls
        return before - last

    return measured(symbol, calls_of(sender, receiver))


def end(client: Caller, pid: int) -> None:
    client(Kill(pid, Signal.KILL))
    client(Wait(pid))


def full_table(sender: Caller, receiver: Caller) -> Rate:
    """The last place of the process table that the receiver may have is taken, or not."""
    taken = []
    with contextlib.suppress(SyscallError):
        while True:
            taken.append(sender(Spawn("sim", [1])))
    full = len(taken)

    def symbol(bit: int) -> float:
        if bit and len(taken) < full:
            taken.append(sender(Spawn("sim", [1])))
        elif not bit and len(taken) == full:
            end(sender, taken.pop())
        try:
            end(receiver, receiver(Spawn("sim", [1])))
        except SyscallError:
            return 1.0
        return 0.0

    found = measured(symbol, calls_of(sender, receiver))
    for pid in taken:
        end(sender, pid)
    return found


def pids(sender: Caller, receiver: Caller) -> Rate:
    """The sender starts a process or does not; the receiver looks at the number of its own next one. Tenants of one user
    share their numbers; those of two users are another's in nothing (tests/kernel/test_owners.py)."""
    before = 0

    def symbol(bit: int) -> float:
        nonlocal before
        if bit:
            end(sender, sender(Spawn("sim", [1])))
        last, before = before, receiver(Spawn("sim", [1]))
        end(receiver, before)
        return min(before - last, 2)

    return measured(symbol, calls_of(sender, receiver))


KERNEL = {"statistics": statistics_read, "a full process table": full_table, "pids, of two tenants of a user": pids}


def run() -> list[Figure]:
    found: dict[str, dict[bool, Rate]] = {}
    for parted in (False, True):
        for name, channel in DEVICE.items():
            found.setdefault(name, {})[parted] = best(channel, parted)
        with booted(parted) as (sender, receiver):
            for name, shared in KERNEL.items():
                found.setdefault(name, {})[parted] = shared(sender, receiver)
    return [_figure(name, parted, rate) for name, rates in found.items() for parted, rate in rates.items()]


def _figure(name: str, parted: bool, rate: Rate) -> Figure:
    where = f"{name}{', with [partition]' if parted else ''}"
    if name in KERNEL:
        return Figure(f"{where}: {1 / rate.symbols:.1f} calls a symbol, {rate.error:.0%} wrong", rate.bits, "bits a call")
    told = f"{where}: {1e3 / rate.symbols:.2f} ms a symbol, {rate.error:.0%} wrong"
    return Figure(told, rate.bits, "bits/s", target=0.0 if parted else None)

"""Clients work on common processes while kernels, drivers and clients die and the disk fails:
`python -m tests.faults.history --seconds 600 --seed 1`.

The history of their calls is held against the sequential specification (linear.py). Each token that is fed is fed once in
the whole run. When nothing fails any more, every client must get an answer within a bound.
"""

from __future__ import annotations

import argparse
import errno
import random
import re
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmasos.drivers.sim import spec, tokens
from llmasos.syscalls import blocking
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Sampler
from llmasos.syscalls.table import Decode, Feed, Read, Shred, Spawn, Wait
from tests.faults import linear
from tests.faults.linear import Op
from tests.faults.shim import KERNEL, Shim, build, unavailable
from tests.faults.target import SECONDS, Broken, Target

MODEL = "sim:1k,context=100000,vocab=1000000"
SAMPLER = Sampler(temperature=1.0, seed=3)
NOT_DONE = (Errno.EBUSY, Errno.EAGAIN, Errno.EDQUOT, Errno.E2BIG)  # such a call has changed nothing
DISK = (errno.ENOSPC, errno.EIO)


def say(log: list[int], count: int) -> list[int]:
    return tokens.continuation(spec.model(MODEL, "", spec.ModelSpec()), log, SAMPLER, count)


@dataclass
class Worker:
    """A client in a thread."""

    number: int
    target: Target
    pids: list[int]
    unique: Any  # counts tokens
    random: random.Random
    history: list[Op] = field(default_factory=list)
    client: blocking.Client | None = None
    over: bool = False
    deaths: int = 0
    stale: int = 0
    shredded: int = 0
    zombies: list[int] = field(default_factory=list)  # shredded, not waited for yet
    failure: BaseException | None = None

    def run(self) -> None:
        try:
            self.client = self.target.connect(name=f"worker {self.number}")
            while not self.over:
                self.act()
        except BaseException as error:
            self.failure = error

    def act(self) -> None:
        kind = self.random.choice(("feed", "feed", "decode", "read", "feed", "feed", "decode", "read", "shred", "wait"))
        if kind in ("shred", "wait"):
            self._shred(kind)
            return
        pid = self.random.choice(self.pids)
        op = Op(self.number, pid, kind, began=time.monotonic())  # type: ignore[arg-type]
        if kind == "feed":
            op.tokens = [next(self.unique) for _ in range(self.random.choice((1, 3)))]
        op.count = self.random.choice((1, 4)) if kind == "decode" else 0
        client, boots = self.client, self.target.boots
        assert client is not None
        self.history.append(op)
        try:
            self._call(client, op)
            op.ended = time.monotonic()
        except SyscallError as error:
            if error.errno in NOT_DONE or kind == "read":
                self.history.remove(op)
            self._after(error, kind, client, boots)

    def _call(self, client: blocking.Client, op: Op) -> None:
        if op.kind == "feed":
            op.at = client(Feed(op.pid, op.tokens), timeout=SECONDS) - len(op.tokens)
        elif op.kind == "decode":
            said = client(Decode(op.pid, op.count), timeout=SECONDS)
            op.tokens, op.at = said.tokens, said.position
        else:
            found = client(Read(op.pid), timeout=SECONDS)
            op.tokens, op.at = found.tokens, found.length

    def _shred(self, kind: str) -> None:
        """A process of this client's own comes and is destroyed, or one that was is waited for. Each shred has the
        journal written anew; neither may lose anything of the others."""
        client, boots = self.client, self.target.boots
        assert client is not None
        try:
            if kind == "wait":
                if self.zombies:
                    client(Wait(self.zombies.pop()), timeout=SECONDS)
                return
            pid = client(Spawn(MODEL, [next(self.unique)], SAMPLER), timeout=SECONDS)
            client(Feed(pid, [next(self.unique)]), timeout=SECONDS)
            client(Shred(pid), timeout=SECONDS)
            self.zombies.append(pid)
            self.shredded += 1
        except SyscallError as error:
            self._after(error, kind, client, boots)

    def _after(self, error: SyscallError, kind: str, client: blocking.Client, boots: int) -> None:
        if error.errno is Errno.ETIME:
            raise Broken(f"no answer within {SECONDS:g} s: {kind}: {error}\n{self.target.log[-2000:]}") from None
        if error.errno in (Errno.EPIPE, Errno.ESTALE):
            self._again(client, error.errno, boots)

    def _again(self, client: blocking.Client, why: Errno, boots: int) -> None:
        """The connection has ended. What was read of a kernel whose journal failed has not happened: ESTALE says so."""
        if why is Errno.ESTALE:
            self.stale += 1
            self.history = [op for op in self.history if op.kind != "read"]
        client.close()
        self.zombies.clear()
        if not self.over:
            self.client = self.target.connect(name=f"worker {self.number}")

    def leave(self) -> None:
        if self.client is not None:
            self.client.close()

    def die(self) -> None:
        """From another thread: the program goes in the middle of whatever it does."""
        self.deaths += 1
        self.leave()


@dataclass
class Counter:
    """Numbers, each once, for several threads."""

    value: int = 1000
    turn: threading.Lock = field(default_factory=threading.Lock)

    def __next__(self) -> int:
        with self.turn:
            self.value += 1
            return self.value


@dataclass
class Told:
    calls: int
    placed: int
    kernels: int
    drivers: int
    clients: int
    disks: int
    stale: int
    shredded: int


def history(base: Path, seed: int, seconds: float, *, library: Path | None = None, clients: int = 4) -> Told:
    """One run. Raises Broken or linear.Wrong."""
    pick = random.Random(seed)
    shim = Shim(library, base) if library is not None else None
    with Target(base, shim, fsync="always").running() as target:
        with target.connect(name="keeper") as keeper:
            pids = [keeper(Spawn(MODEL, [1, 2, 3 + n], SAMPLER, detached=True), timeout=SECONDS) for n in range(3)]
            first = {pid: [1, 2, 3 + n] for n, pid in enumerate(pids)}
            unique = Counter()
            workers = [Worker(n, target, pids, unique, random.Random(f"{seed} {n}")) for n in range(clients)]
            threads = [threading.Thread(target=worker.run, daemon=True) for worker in workers]
            for thread in threads:
                thread.start()
            done = _faults(target, shim, workers, pick, seconds)
            _goes_on(target, workers)
            for worker in workers:
                worker.over = True
            for thread in threads:
                thread.join(SECONDS)
            for worker in workers:
                worker.leave()
            if failures := [worker.failure for worker in workers if worker.failure is not None]:
                raise failures[0]
        with target.connect(name="reader") as reader:
            logs = {pid: _settled(reader, pid) for pid in pids}
    calls = [op for worker in workers for op in worker.history]
    placed = linear.check(calls, logs, first, say)
    return Told(
        len(calls), placed, *done, sum(worker.stale for worker in workers), sum(worker.shredded for worker in workers)
    )


def _faults(
    target: Target, shim: Shim | None, workers: list[Worker], pick: random.Random, seconds: float
) -> tuple[int, int, int, int]:
    kernels = drivers = clients = disks = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(pick.uniform(0.05, 0.6))
        match pick.randrange(5):
            case 0:
                kernels += 1
                target.kill()
            case 1:
                drivers += 1
                target.kill(driver=True)
            case 2:
                clients += 1
                pick.choice(workers).die()
            case _ if shim is not None:
                writes = [
                    site
                    for site in shim.sites()
                    if site.role == KERNEL and re.search(r"edge/journal_|_threads", site.stack)
                ]
                writes = [site for site in writes if site.call in ("write", "fdatasync", "fsync")]
                if writes:
                    disks += 1
                    shim.arm(pick.choice(DISK), role=KERNEL, site=pick.choice(writes).number, times=pick.choice((1, 3)))
    if shim is not None:
        shim.disarm()
    return kernels, drivers, clients, disks


def _goes_on(target: Target, workers: list[Worker]) -> None:
    """Liveness: when nothing fails any more, every client gets answers again."""
    then = [sum(op.ended < float("inf") for op in worker.history) for worker in workers]
    deadline = time.monotonic() + SECONDS
    while waiting := [
        worker.number
        for worker, before in zip(workers, then, strict=True)
        if worker.failure is None and sum(op.ended < float("inf") for op in list(worker.history)) <= before + 1
    ]:
        if time.monotonic() > deadline:
            raise Broken(f"clients {waiting} get no answers {SECONDS:g} s after the last fault\n{target.log[-2000:]}")
        time.sleep(0.05)


def _settled(reader: blocking.Client, pid: int) -> list[int]:
    deadline = time.monotonic() + SECONDS
    while (found := reader(Read(pid), timeout=SECONDS)).decoding:
        if time.monotonic() > deadline:
            raise Broken(f"process {pid} decodes for ever")
        time.sleep(0.02)
    return found.tokens


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.history", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each run")
    parser.add_argument("--seed", type=int, default=1, help="of the first run")
    parser.add_argument("--runs", type=int, default=1)
    chosen = parser.parse_args(arguments)
    for seed in range(chosen.seed, chosen.seed + chosen.runs):
        with tempfile.TemporaryDirectory(prefix="llmasos-history-") as place:
            library = None if unavailable() else build(Path(place))
            print(f"seed {seed}: {history(Path(place), seed, chosen.seconds, library=library)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

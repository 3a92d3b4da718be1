"""Does anything grow? `python -m tests.faults.soak --minutes 60`: mixed load with faults, and figures before and after.

One kernel with a simulated device and the embedded model on the CPU; programs come, work and go, processes are spawned,
fed, decoded, forked, written to images and restored, killed; the simulated device's driver dies, programs die while they
wait for answers, and the journal cannot be written now and then. After a sixth of the time and at the end the load rests.
What the kernel and the embedded model's driver have then (memory, descriptors, threads), and the files of both, must be
within 2 %.

Memory goes up and down: the kernel compacts its journal now and then, which takes memory, and gives back to the system
what that and all before it have left. So it is looked at in two ways, and both must be within 2 %: at rest, just after a
compaction; and under load, as the median of the last minute of it, in which there are several.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import re
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from llmasos.syscalls import blocking
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Sampler, Signal
from llmasos.syscalls.table import (
    Checkpoint,
    Decode,
    Feed,
    Fork,
    GroupCreate,
    GroupMove,
    GroupRemove,
    Kill,
    Ps,
    Read,
    Restore,
    Spawn,
    StatsCall,
    Truncate,
    Wait,
)
from tests.faults.shim import FAULTS, KERNEL, Shim, Site, build, unavailable
from tests.faults.table import UNREAL
from tests.faults.target import SECONDS, Broken, Target

CPU, SIM = "cpu:threads=1,image_kv_bytes=4194304", "sim:time_scale=0"  # so little KV that all of it is soon in use
SIM_MODEL = "sim:1k,context=4096"
ALLOWED = 0.02  # of what a figure was, or
GRAIN = {"descriptors": 2, "threads": 1, "files": 2}  # so many: 2 % of ten is nothing
SAMPLES = 5
IMAGES = (4, 6, 8)  # of a process: so that soon there are all names of keys that the kernel keeps
MINUTE = 60  # of the load: seconds before a rest in which memory is looked at once a second
RECORDS = [bytes(1 << 14)] * 4  # that make the journal long


@dataclass(slots=True)
class Figures:
    """What is held at a quiet moment, by name."""

    at: float  # seconds since the load began
    values: dict[str, float]


@dataclass(slots=True)
class Load:
    """One program of the load, in a thread. While `paused` it does nothing, and has nothing."""

    number: int
    target: Target
    models: tuple[tuple[str, str], ...]  # model, device
    random: random.Random
    paused: threading.Event
    over: bool = False
    idle: bool = True
    done: int = 0
    refused: int = 0
    client: blocking.Client | None = None
    failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.over:
                if self.paused.is_set():
                    self.idle = True
                    time.sleep(0.05)
                else:
                    self.idle = False
                    self.visit()
        except BaseException as error:
            self.failure = error
        self.idle = True

    def visit(self) -> None:
        """A program connects, works a while, and goes."""
        try:
            with self.target.connect(name=f"load {self.number}") as self.client:
                for _ in range(self.random.randrange(1, 6)):
                    self.work(self.client)
        except SyscallError as error:
            if error.errno is Errno.ETIME:
                raise Broken(f"a call of the load has no answer: {error}") from None
            self.refused += 1

    def work(self, kernel: blocking.Client) -> None:
        pick = self.random
        model, device = pick.choice(self.models)
        sampler = Sampler(temperature=1.0, seed=pick.randrange(1 << 30))
        group = f"/load-{self.number}"
        with suppress(SyscallError):
            kernel(GroupCreate(group), timeout=SECONDS)
        prompt = [pick.randrange(200) for _ in range(pick.choice((3, 40, 100)))]
        pid = kernel(Spawn(model, prompt, sampler, device=device), timeout=SECONDS)
        kernel(Feed(pid, [5, 6]), timeout=SECONDS)
        kernel(Decode(pid, pick.choice((1, 8, 16))), timeout=SECONDS)
        kernel(Read(pid), timeout=SECONDS)
        kernel(GroupMove(pid, group), timeout=SECONDS)
        born = [pid, *kernel(Fork(pid, 2), timeout=SECONDS)]
        image = os.fspath(self.target.base / f"image-{self.number}")
        for _ in range(pick.choice(IMAGES)):
            kernel(Checkpoint(pid, image), timeout=SECONDS)
            born.append(kernel(Restore(image), timeout=SECONDS))
        kernel(Decode(born[-1], 2), timeout=SECONDS)
        kernel(Truncate(pid, 2), timeout=SECONDS)
        kernel(Ps(), timeout=SECONDS)
        for one in born:
            kernel(Kill(one, Signal.KILL), timeout=SECONDS)
            kernel(Wait(one), timeout=SECONDS)
        kernel(GroupRemove(group), timeout=SECONDS)
        self.done += 1

    def die(self) -> None:
        if self.client is not None:
            self.client.close()


def fills_the_disk(site: Site) -> bool:
    """Whether there may be no space left for the journal at this place."""
    possible = errno.ENOSPC in FAULTS.get(site.call, ()) and not re.search(UNREAL, site.stack)
    return possible and site.role == KERNEL and "edge/journal_keeper" in site.stack


@dataclass(slots=True)
class Soak:
    target: Target
    shim: Shim | None
    loads: list[Load]
    paused: threading.Event
    began: float = field(default_factory=time.monotonic)
    faults: dict[str, int] = field(default_factory=dict)
    settle: float = 1.5  # seconds of rest before the figures are taken, and as many while they are
    memory: deque[dict[str, float]] = field(default_factory=lambda: deque(maxlen=MINUTE))  # under load, MB by process

    def disturb(self, seconds: float, pick: random.Random) -> None:
        """Let the load run for a while, with faults."""
        self.paused.clear()
        self.memory.clear()
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._watch(min(left, pick.uniform(0.5, 4.0)))
            if failures := [load.failure for load in self.loads if load.failure is not None]:
                raise failures[0]
            match pick.choice(("driver", "client", "disk")):
                case "driver":
                    self.kill_driver()
                case "client":
                    pick.choice(self.loads).die()
                    self._count("clients died")
                case _ if self.shim is not None:
                    if writes := [site for site in self.shim.sites() if fills_the_disk(site)]:
                        self.shim.arm(errno.ENOSPC, role=KERNEL, site=pick.choice(writes).number)
                        self._count("full disks")

    def _watch(self, seconds: float) -> None:
        """Look at the memory once a second for so long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 1.0))
            self.memory.append({name: one.memory_info().rss / 1e6 for name, one in self._processes()})

    def kill_driver(self) -> None:
        for child in psutil.Process(self.target.pid()).children():
            with suppress(psutil.Error):
                if "sim" in child.cmdline():
                    child.kill()
                    self._count("drivers died")

    def _count(self, what: str) -> None:
        self.faults[what] = self.faults.get(what, 0) + 1

    def quiet(self) -> Figures:
        """Pause the load, wait until the system has nothing to do, and look."""
        self.paused.set()
        if self.shim is not None:
            self.shim.disarm()
        deadline = time.monotonic() + 2 * SECONDS
        while not all(load.idle for load in self.loads):
            if time.monotonic() > deadline:
                raise Broken(f"the load does not come to rest\n{self.target.log[-2000:]}")
            time.sleep(0.05)
        with self.target.connect(name="quiet") as kernel:
            while kernel(StatsCall(), timeout=SECONDS).journal != "kept":
                if time.monotonic() > deadline:
                    raise Broken("the journal does not become whole again")
                time.sleep(0.1)
            self._compact(kernel, deadline)
        time.sleep(self.settle)
        taken = []
        for _ in range(SAMPLES):
            taken.append(self._sample())
            time.sleep(self.settle / SAMPLES)
        return Figures(
            time.monotonic() - self.began,
            {name: statistics.median(one[name] for one in taken) for name in taken[0]}
            | {
                f"{name}: memory under load, MB": statistics.median(one[name] for one in self.memory if name in one)
                for name in (self.memory[-1] if self.memory else {})
            },
        )

    def _compact(self, kernel: blocking.Client, deadline: float) -> None:
        """Have the journal compacted, so that the figures are always of the same moment."""
        journal = self.target.base / "journal" / "kernel.journal"
        before = journal.stat().st_ino
        pid = kernel(Spawn(SIM_MODEL, [1, 2]), timeout=SECONDS)
        while journal.stat().st_ino == before:
            if time.monotonic() > deadline:
                raise Broken("the journal is not compacted")
            kernel(Feed(pid, [3], RECORDS), timeout=SECONDS)
            kernel(Truncate(pid, 2), timeout=SECONDS)
        kernel(Kill(pid, Signal.KILL), timeout=SECONDS)
        kernel(Wait(pid), timeout=SECONDS)

    def _processes(self) -> list[tuple[str, psutil.Process]]:
        """Those that are looked at. None: they have just ended."""
        kernel = psutil.Process(self.target.pid())
        drivers = [child for child in kernel.children() if "cpu" in child.cmdline()]
        return [("kernel", kernel), *(("driver of the embedded model", one) for one in drivers)]

    def _sample(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for name, process in self._processes():
            with process.oneshot():
                values[f"{name}: memory, MB"] = process.memory_info().rss / 1e6
                values[f"{name}: descriptors"] = process.num_fds()
                values[f"{name}: threads"] = process.num_threads()
        values["files"] = sum(len(files) for _, _, files in os.walk(self.target.base))
        return values


def grown(before: Figures, after: Figures) -> list[str]:
    """The figures that are not within what is allowed."""
    found = []
    for name, was in before.values.items():
        now = after.values.get(name, 0.0)
        grain = next((most for kind, most in GRAIN.items() if kind in name), 0)
        if now - was > max(ALLOWED * was, grain):
            found.append(f"{name}: {was:.1f}, then {now:.1f}")
    return found


def table(figures: list[Figures]) -> str:
    width = max(map(len, figures[0].values))
    rows = [f"{'':{width}}" + "".join(f"{one.at / 60:9.1f} min" for one in figures) + f"{'change':>10}"]
    first, last = figures[1] if len(figures) > 1 else figures[0], figures[-1]
    for name in first.values:
        change = last.values.get(name, 0.0) / first.values[name] - 1 if first.values[name] else 0.0
        rows.append(
            f"{name:{width}}" + "".join(f"{one.values.get(name, 0.0):13.1f}" for one in figures) + f"{change:+10.1%}"
        )
    return "\n".join(rows)


def soak(
    base: Path, seconds: float, *, cpu: bool = True, clients: int = 3, seed: int = 1, settle: float = 1.5
) -> tuple[list[Figures], Soak]:
    """The figures at the beginning, after a sixth, at the half and at the end. Raises Broken."""
    shim = None if unavailable() else Shim(build(base), base)
    devices = (SIM, CPU) if cpu else (SIM,)
    models = ((SIM_MODEL, "sim0"), *((("tiny", "cpu0"),) if cpu else ()))
    pick, paused = random.Random(seed), threading.Event()
    paused.set()
    with Target(base, shim, devices).running() as target:
        loads = [Load(n, target, models, random.Random(f"{seed} {n}"), paused) for n in range(clients)]
        threads = [threading.Thread(target=load.run, daemon=True) for load in loads]
        for thread in threads:
            thread.start()
        run = Soak(target, shim, loads, paused, settle=settle)
        kernel = target.pid()
        figures = [run.quiet()]
        for part in (1 / 6, 1 / 3, 1 / 2):
            run.disturb(part * seconds, pick)
            figures.append(run.quiet())
            print(table(figures[-1:]), flush=True)
        for load in loads:
            load.over = True
        for thread in threads:
            thread.join(SECONDS)
        if target.pid() != kernel:
            raise Broken(f"the kernel has ended meanwhile: {target.ended}")
    return figures, run


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-cpu", action="store_true", help="without the embedded model")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="llmasos-soak-") as place:
        figures, run = soak(
            Path(place), 60 * chosen.minutes, cpu=not chosen.no_cpu, clients=chosen.clients, seed=chosen.seed
        )
    print(table(figures))
    told = ", ".join(f"{count} {what}" for what, count in sorted(run.faults.items()))
    done, refused = sum(load.done for load in run.loads), sum(load.refused for load in run.loads)
    print(f"{done:,} rounds of work, {refused} cut off; {told}")
    found = grown(figures[1], figures[-1])
    for line in found:
        print(f"grown by more than {ALLOWED:.0%}: {line}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

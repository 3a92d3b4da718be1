"""Random chaos in virtual time: `python -m tests.kernel.chaos --processes 10000 --seconds 3600`.

Two simulated devices with swap that loses and refuses places, programs that come and go, thousands of processes that
are fed, decode, fork, stop, exec, move between devices and groups and are killed, groups whose limits change, drivers
that die. Where there are several models they may not fit together (`config`), and page-ins may fail (`options`). The
devices end the run at the first token whose context is not in the frames it should be. Every ten seconds all invariants
of the kernel are recounted (the ledger among them), and nobody may have waited longer than ageing allows. At the end
nothing may be left.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llmasos.drivers import parcel
from llmasos.kernel.clock import seconds
from llmasos.kernel.objects.process import LLMProcess
from llmasos.simulator import FRAME_BYTES, Future, Prog, Simulation, invariants, simulate
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import (
    Advice,
    GroupSettings,
    KvAction,
    Sampler,
    SchedClass,
    Signal,
    State,
    WaitFor,
)
from llmasos.syscalls.table import (
    Advise,
    Decode,
    Evict,
    Exec,
    Exit,
    Feed,
    Fork,
    GroupCreate,
    GroupMove,
    GroupSet,
    Kill,
    Pagein,
    Setsched,
    Spawn,
    StatsCall,
    Truncate,
    Wait,
)

PROGRAMS = 8
FRAMES = 400
MAX_RUNS = 32
STEP_SECONDS = 0.02
AGING = 2.0
LOOK_SECONDS = 10.0
TOTALS = ("steps", "tokens_decoded", "moved_out", "moved_in", "preemptions", "driver_restarts", "spawned")
GROUPS = ["/a", "/b", "/a/x", "/a/y", "/b/z"]


@dataclass
class Chaos:
    """One run."""

    seed: int
    processes: int
    models: Sequence[str] = ("sim",)
    options: dict[str, str] = field(default_factory=dict)  # of the devices
    config: dict[str, Any] = field(default_factory=dict)
    deaths: float = 0.0  # of a driver, beside the rare ones, for each thing that happens
    sim: Simulation = field(init=False)
    random: random.Random = field(init=False)
    programs: list[Prog] = field(default_factory=list)
    born: list[Future[int]] = field(default_factory=list)  # processes whose model is not there yet
    pids: list[int] = field(default_factory=list)
    worst: float = 0.0  # longest wait that was seen, of those who could run
    longest: float = 0.0  # likewise, for weights
    done: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        options = {"swap": str(4 * FRAMES * FRAME_BYTES), "lose_every": "97", "unwritten_every": "89"}
        self.sim = simulate(
            frames=FRAMES,
            devices=2,
            options={"overhead": str(STEP_SECONDS), **options, **self.options},
            max_runs=MAX_RUNS,
            step_tokens=512,
            aging_seconds=AGING,
            max_crashes=1_000_000,
            pagein_seconds=1e9,
            checked=False,
            **self.config,
        )
        self.programs = [self.sim.program() for _ in range(PROGRAMS)]
        for path in GROUPS:
            self.programs[0].call(GroupCreate(path))

    def run(self, seconds: float, report: float = 60.0) -> None:
        """Let it go on for so much virtual time. AssertionError if anything that must hold does not."""
        sim, began = self.sim, time.monotonic()
        end, look, told = sim.now + seconds, sim.now + LOOK_SECONDS, sim.now + report
        while sim.now < end:
            self.count_births()
            self.unpin()
            for _ in range(self.random.randrange(150)):
                self.act()
            sim.run_for(self.random.random() * 0.2)
            if sim.now >= look:
                look = sim.now + LOOK_SECONDS
                self.look()
            if sim.now >= told:
                told = sim.now + report
                steps = sum(device.steps for device in sim.kernel.devices.values())
                print(
                    f"{sim.now:7.0f} s of {end:.0f} ({time.monotonic() - began:.0f} s real): {len(self.pids)} processes, "
                    f"{steps} steps, longest wait {self.worst:.1f} s",
                    file=sys.stderr,
                    flush=True,
                )

    # --- what happens ---

    def act(self) -> None:
        pick = self.random
        program = pick.choice(self.programs)
        if len(self.pids) < self.processes and pick.random() < 0.9:
            for _ in range(40):
                self.birth(program)
            return
        kinds = (
            ["decode"] * 12
            + ["feed"] * 4
            + ["fork", "kill", "stop", "cont", "cont", "truncate", "exec", "move", "sched", "migrate"]
        )
        if len(self.models) > 1:
            kinds += ["pagein", "evict", "advise"]
        what = pick.choice([*kinds, "spawn", "spawn"])
        rare = pick.random()
        if rare < 0.00065:  # of some 750 things a second
            what = "group" if rare < 0.0005 else "program" if rare < 0.00063 else "driver"
        elif rare > 1.0 - self.deaths:
            what = "driver"
        self.done[what] = self.done.get(what, 0) + 1
        getattr(self, f"do_{what}")(program, self.random.choice(self.pids) if self.pids else 1)

    def birth(self, program: Prog) -> None:
        pick = self.random
        self.start(
            program,
            Spawn(
                pick.choice(self.models),
                tokens=[pick.randrange(900) for _ in range(pick.choice([1, 9, 16, 40, 120]))],
                sampler=Sampler(temperature=pick.choice([0.0, 1.0]), seed=pick.randrange(1 << 30)),
                sched_class=pick.choice(list(SchedClass)),
                nice=pick.randrange(-5, 6),
                device=pick.choice(["sim0", "sim1"]),
                group=pick.choice(["", *GROUPS]),
                detached=pick.random() < 0.3,
            ),
        )

    def start(self, program: Prog, call: Any) -> None:
        future = program.start(call)
        if isinstance(call, Spawn):
            self.born.append(future)
            self.count_births()

    def count_births(self) -> None:
        waiting: list[Future[int]] = []
        for future in self.born:
            if future.done and future.errno is Errno.OK:
                self.pids.append(future.value)
            elif not future.done and future.program.connected:
                waiting.append(future)
        self.born = waiting

    def do_spawn(self, program: Prog, pid: int) -> None:
        self.birth(program)

    def do_decode(self, program: Prog, pid: int) -> None:
        pick = self.random
        deadline = pick.choice([None, None, 1.0])
        self.start(program, Decode(pid, pick.choice([1, 4, 30]), [999], None, 0, deadline, wait=False))

    def do_feed(self, program: Prog, pid: int) -> None:
        self.start(program, Feed(pid, [self.random.randrange(900) for _ in range(self.random.randrange(30))]))

    def do_fork(self, program: Prog, pid: int) -> None:
        if len(self.pids) < self.processes * 1.02:
            future = program.start(Fork(pid, 2, detached=True))
            if future.done and future.reply is not None and not future.reply.errno:
                self.pids += future.value

    def do_kill(self, program: Prog, pid: int) -> None:
        self.start(program, Kill(pid, self.random.choice([Signal.KILL, Signal.TERM, Signal.INT])))

    def do_stop(self, program: Prog, pid: int) -> None:
        self.start(program, Kill(pid, Signal.STOP))

    def do_cont(self, program: Prog, pid: int) -> None:
        self.start(program, Kill(pid, Signal.CONT))

    def do_truncate(self, program: Prog, pid: int) -> None:
        self.start(program, Truncate(pid, self.random.randrange(40)))

    def do_exec(self, program: Prog, pid: int) -> None:
        self.start(program, Exec(pid, self.random.choice(self.models)))

    def do_move(self, program: Prog, pid: int) -> None:
        self.start(program, GroupMove(pid, self.random.choice(["", *GROUPS])))

    def do_sched(self, program: Prog, pid: int) -> None:
        self.start(program, Setsched(pid, self.random.randrange(-5, 6), self.random.choice(list(SchedClass))))

    def do_migrate(self, program: Prog, pid: int) -> None:
        future = program.start(Setsched(pid, device=self.random.choice(["sim0", "sim1"])))
        if self.random.random() < 0.1:
            self.sim.at(self.sim.now + self.random.random() * 0.2, lambda: self.take_back(future))

    def take_back(self, future: Future[None]) -> None:
        if not future.done and future.program.connected:
            future.cancel()

    def do_group(self, program: Prog, pid: int) -> None:
        pick = self.random
        settings = GroupSettings(
            kv_max=pick.choice([0, 0, 60, 120]) * FRAME_BYTES,
            swap_max=pick.choice([0, 0, 40]) * FRAME_BYTES,
            tokens_max=pick.choice([0.0, 0.0, 200.0]),
            cpu_weight=pick.choice([10, 100, 500]),
            kv_action=pick.choice([KvAction.SPILL, KvAction.SPILL, KvAction.FAIL]),
            weights_max=pick.choice([0, 0, 4_000_000]) if len(self.models) > 1 else 0,
        )
        if pick.random() < 0.2:
            settings = GroupSettings(kv_high=80 * FRAME_BYTES)
        self.start(program, GroupSet(pick.choice(GROUPS), settings))

    def do_pagein(self, program: Prog, pid: int) -> None:
        self.start(program, Pagein(*self.model_somewhere()))

    def do_evict(self, program: Prog, pid: int) -> None:
        self.start(program, Evict(*self.model_somewhere(), force=self.random.random() < 0.5))

    def do_advise(self, program: Prog, pid: int) -> None:
        model, device = self.model_somewhere()
        self.start(program, Advise(model, self.random.choice(list(Advice)), device))

    def model_somewhere(self) -> tuple[str, str]:
        return self.random.choice(list(self.models)), self.random.choice(["sim0", "sim1"])

    def unpin(self) -> None:
        """Nothing stays pinned for long, or others would wait for ever."""
        for device in self.sim.kernel.devices.values():
            for image in device.images.values():
                if image.pinned and self.random.random() < 0.1:
                    self.start(self.programs[0], Advise(image.path, Advice.NORMAL, device.name))

    def do_program(self, program: Prog, pid: int) -> None:
        program.disconnect()
        self.programs[self.programs.index(program)] = self.sim.program()

    def do_driver(self, program: Prog, pid: int) -> None:
        self.sim.crash(self.random.choice(["sim0", "sim1"]))

    # --- what must hold ---

    def look(self) -> None:
        kernel = self.sim.kernel
        invariants.check(kernel)
        alive: list[int] = []
        for pid in self.pids:
            row = kernel.table.find(pid)
            if not isinstance(row, LLMProcess) or row.state is State.ZOMBIE:
                continue
            alive.append(pid)
        self.pids = alive
        for program in self.programs:  # zombies of programs that do not wait for them
            program.futures = {seq: future for seq, future in program.futures.items() if not future.done}
        processes = [p for p in kernel.table if isinstance(p, LLMProcess)]
        for process in processes:
            if process.wait is WaitFor.WEIGHTS and process.state is State.BLOCKED:
                self.longest = max(self.longest, self.waited(process))
        assert self.longest <= 8 * AGING, f"a process has waited {self.longest:.1f} s for weights"
        waiting = [p for p in processes if self.could_run(p)]
        for process in waiting:
            waited = self.waited(process)
            self.worst = max(self.worst, waited)
            bound = AGING + 8 * (len(waiting) + MAX_RUNS) * STEP_SECONDS
            assert waited <= bound, (
                f"process {process.pid} ({process.traits.sched_class}, {process.state} {process.wait}) has waited "
                f"{waited:.1f} s, beside {len(waiting)} others: more than {bound:.1f} s\n"
                f"{self.sim.describe()[-3000:]}"
            )

    def waited(self, process: LLMProcess) -> float:
        """Seconds that it has been in its state."""
        return seconds(self.sim.clock - process.since)

    @staticmethod
    def could_run(process: LLMProcess) -> bool:
        ready = process.state is State.READY
        return ready or (process.state is State.BLOCKED and process.wait is WaitFor.PAGEIN)

    def end(self) -> None:
        """All programs go, and with them everything."""
        sim = self.sim
        program = sim.program()
        sim.run_for(5.0)  # spawns that still waited for a model are answered
        for row in list(sim.kernel.table):
            if isinstance(row, LLMProcess) and row.state is not State.ZOMBIE:
                program.start(Exit(row.pid))
        for leaving in self.programs:
            leaving.disconnect()
        sim.run_for(60.0)
        sim.run_idle()
        for row in list(sim.kernel.table):  # the detached, whose statuses init would keep for an hour
            if isinstance(row, LLMProcess):
                program.start(Wait(row.pid, 0.0))
        program.disconnect()
        sim.run_idle()
        kernel = sim.kernel
        invariants.check(kernel)
        assert len(kernel.table) == 1 + len(kernel.devices), sim.describe()[:3000]
        for device in kernel.devices.values():
            for image in device.images.values():
                assert image.pool.available == image.pool.count
                assert image.swap.free == image.swap.total
                assert not image.imports
        root = kernel.groups.root
        assert (root.kv, root.swap, root.weights, root.pids) == (0, 0, 0, len(kernel.table))
        assert not kernel.groups.users.children
        assert not parcel.held()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kernel.chaos", description=__doc__)
    parser.add_argument("--processes", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=3600.0, help="of virtual time")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(arguments)
    chaos = Chaos(chosen.seed, chosen.processes)
    chaos.run(chosen.seconds)
    chaos.end()
    totals = chaos.sim.program().call(StatsCall())
    told = ", ".join(f"{name} {getattr(totals, name)}" for name in TOTALS)
    print(
        f"{chosen.seconds:.0f} s with {chosen.processes} processes, seed {chosen.seed}: nothing lost, longest wait "
        f"{chaos.worst:.1f} s; {told}; done: {chaos.done}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

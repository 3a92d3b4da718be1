"""The state machine of the kernel on two devices, with processes that move between them."""

from __future__ import annotations

import sys

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from llmasos.drivers import parcel
from llmasos.kernel.objects.process import LLMProcess
from llmasos.simulator import Future, slots
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.table import (
    Ps,
    Sched,
    Setsched,
)
from tests.kernel.machines.core import Core, Proc, which


class Moves(Core):
    """The state machine of the whole kernel on two devices, with processes that move between them."""

    options = {"context": "128", "swap": slots(40)}
    config = {"devices": 2}

    def __init__(self) -> None:
        super().__init__()
        self.moving: list[tuple[Future[None], Proc, str]] = []
        self.lived: dict[int, str] = {}  # where each was moved to last

    @precondition(lambda self: self.procs)
    @rule(
        i=which,
        who=which,
        device=st.sampled_from(["sim0", "sim1", "sim1"]),
        nice=st.integers(-5, 5) | st.none(),
    )
    def move(self, i: int, who: int, device: str, nice: int | None) -> None:
        proc = self.proc(who)
        future = self.prog(i).start(Setsched(proc.pid, nice, None, device))
        self.moving.append((future, proc, device))
        self.futures.append(future)

    @precondition(lambda self: self.procs)
    @rule(i=which, who=which)
    def move_away(self, i: int, who: int) -> None:
        info = next((r for r in self.prog(i).call(Ps()) if r.pid == self.proc(who).pid), None)
        self.move(i, who, "sim0" if info is not None and info.device == "sim1" else "sim1", None)

    @rule(name=st.sampled_from(["sim0", "sim1"]), how=st.sampled_from(["dies", "dies", "hangs", "is silent"]))
    def either_driver(self, name: str, how: str) -> None:
        if how == "dies":
            self.sim.crash(name)
        else:
            self.sim.hang(name, mute=how == "is silent")

    @rule(policy=st.sampled_from(["fair", "fcfs", "round_robin", "mlfq", "lottery"]))
    def policy_there(self, policy: str) -> None:
        self.programs[0].call(Sched("sim1", policy))

    @rule(seconds=st.sampled_from([0.0007, 0.0031, 0.0045, 0.007]))
    def pass_a_move(self, seconds: float) -> None:
        self.sim.run_for(seconds)

    @invariant()
    def moves_have_happened_or_not(self) -> None:
        for future, proc, device in list(self.moving):
            if not future.done:
                continue
            self.moving.remove((future, proc, device))
            if future.errno is Errno.OK:
                self.lived[proc.pid] = device
            else:
                allowed = (Errno.ESRCH, Errno.EBUSY, Errno.EINTR, Errno.ERESTART, Errno.E2BIG, Errno.ENODEV)
                assert future.errno in (*allowed, Errno.ENOMEM, Errno.EAGAIN), future.reply

        for pid, device in self.lived.items():
            process = self.sim.kernel.table.find(pid)
            if isinstance(process, LLMProcess) and not any(p.pid == pid for _, p, _ in self.moving):
                assert process.device.name == device, "it moves only when it is told to"

    def teardown(self) -> None:
        if self.sim.failed or sys.exc_info()[0] is not None:
            for path in parcel.held():  # of an example that was broken off
                parcel.release(path)
            return
        super().teardown()
        assert parcel.held() == []
        for device in self.sim.kernel.devices.values():
            assert not device.swapped_out
            assert not device.asked
            assert not any(image.imports for image in device.images.values())


class MovesByLog(Moves):
    config = {"devices": 2, "others": {"arithmetic": "other", "lose_every": "7"}}

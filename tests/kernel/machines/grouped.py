"""The kernel's state machine in control groups whose limits come and go."""

from __future__ import annotations

import sys

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from llmasos.kernel.objects.process import LLMProcess
from llmasos.simulator import FRAME_BYTES, slots
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import (
    GroupSettings,
    KvAction,
)
from llmasos.syscalls.table import (
    GroupCreate,
    GroupMove,
    GroupRemove,
    GroupSet,
    GroupStat,
)
from tests.kernel.machines.core import Core, which

PATHS = ["/a", "/b", "/a/c", "mine"]


actions = st.sampled_from([KvAction.SPILL, KvAction.SPILL, KvAction.WAIT, KvAction.FAIL])


group_settings = st.builds(
    GroupSettings,
    kv_max=st.sampled_from([0, 0, 3, 5, 9]).map(lambda frames: frames * FRAME_BYTES),
    swap_max=st.sampled_from([0, 0, 1, 6]).map(lambda frames: frames * FRAME_BYTES),
    tokens_max=st.sampled_from([0.0, 0.0, 40.0, 900.0]),
    tokens_total=st.sampled_from([0, 0, 0, 60]),
    pids_max=st.sampled_from([0, 0, 4]),
    cpu_weight=st.sampled_from([1, 100, 300]),
    kv_action=actions,
) | st.builds(GroupSettings, kv_high=st.sampled_from([2, 4]).map(lambda frames: frames * FRAME_BYTES))


class Grouped(Core):
    """The whole state machine of the kernel, in groups whose limits come and go."""

    options = {"context": "128", "swap": slots(10)}
    quantum = 100  # longer than any decode: claims do not change by what has been computed

    def __init__(self) -> None:
        super().__init__()
        self.totals = False

    @rule(i=which, path=st.sampled_from(PATHS), settings=group_settings)
    def set_group(self, i: int, path: str, settings: GroupSettings) -> None:
        program = self.prog(i)
        self.totals |= settings.tokens_total > 0
        if self.try_call(program, GroupSet(path, settings)) is Errno.ENOENT:
            assert self.try_call(program, GroupCreate(path, settings)) is not None

    @rule(i=which, path=st.sampled_from(PATHS))
    def remove_group(self, i: int, path: str) -> None:
        assert self.try_call(self.prog(i), GroupRemove(path)) in (None, Errno.ENOENT, Errno.EBUSY)

    @precondition(lambda self: self.procs)
    @rule(i=which, who=which, path=st.sampled_from([*PATHS, ""]))
    def move(self, i: int, who: int, path: str) -> None:
        proc = self.proc(who)
        result = self.try_call(self.prog(i), GroupMove(proc.pid, path))
        assert result in (None, Errno.ENOENT, Errno.ESRCH, Errno.EAGAIN, Errno.EBUSY)

    @rule(i=which, path=st.sampled_from([*PATHS, "/"]))
    def look(self, i: int, path: str) -> None:
        self.try_call(self.prog(i), GroupStat(path, below=True))

    def may_be_spent(self, row: LLMProcess) -> bool:
        return self.totals or super().may_be_spent(row)

    def teardown(self) -> None:
        if self.sim.failed or sys.exc_info()[0] is not None:
            return
        program = self.sim.program("lifts all limits")
        for info in program.call(GroupStat("/", below=True)):
            program.call(GroupSet(info.path, GroupSettings()))
        program.disconnect()
        super().teardown()
        root = self.sim.kernel.groups.root
        assert (root.kv, root.swap, root.weights) == (0, 0, 0)
        assert root.pids == len(self.sim.kernel.table) == 2
        assert not self.sim.kernel.groups.users.children, "a session outlives its processes"
        assert not any(group.line or group.load for group in self.sim.kernel.groups)

"""The state machines of paging, process images and control groups in one."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from llmasos.simulator import FRAME_BYTES, slots
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import GroupSettings, KvAction
from llmasos.syscalls.table import (
    GroupSet,
)
from tests.kernel.machines.core import which
from tests.kernel.machines.grouped import PATHS, Grouped
from tests.kernel.machines.images import Images
from tests.kernel.machines.paging import Paging
from tests.kernel.paged import MB


class Everything(Paging, Images, Grouped):
    """Models that do not fit together, processes that go to files and come back, in groups whose limits come and go."""

    options = {"context": "128", "link": "1e9", "swap": slots(40), "fail_load_every": "5"}
    config: dict[str, Any] = {"weight_bytes": 5 * MB, "weight_quantum": 0.002, "evictions": "cost"}
    quantum = Grouped.quantum

    @rule(
        i=which,
        path=st.sampled_from([*PATHS, "/users", "/users"]),
        most=st.sampled_from([0, 2 * MB, 4 * MB, 7 * MB]),
        rate=st.sampled_from([0.0, 40.0]),
        kv=st.sampled_from([0, 4 * FRAME_BYTES, 9 * FRAME_BYTES]),
        action=st.sampled_from([KvAction.SPILL, KvAction.WAIT]),
    )
    def limit_all(self, i: int, path: str, most: int, rate: float, kv: int, action: KvAction) -> None:
        settings = GroupSettings(weights_max=most, tokens_max=rate, kv_max=kv, kv_action=action)
        result = self.try_call(self.prog(i), GroupSet(path, settings))
        assert not isinstance(result, Errno) or result is Errno.ENOENT

    @precondition(lambda self: self.procs)
    @rule(i=which, who=which)
    def save(self, i: int, who: int) -> None:
        """Often, and waited for: most of the restores would have nothing to come from."""
        self.checkpoint(i, who, True)
        self.sim.run_for(0.02)

    @precondition(lambda self: self.saved and sum(not p.ended for p in self.procs.values()) < 8)
    @rule(i=which, what=which, model=st.sampled_from(["", "sim", "sim:2m,eos_every=6"]))
    def restore_and_evict(self, i: int, what: int, model: str) -> None:
        self.restore(i, what, True)
        self.sim.run_for(0.001)
        if model:
            self.evict(i, model)

"""The kernel's state machine where models do not fit together."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import rule

from llmasos.syscalls.records import Advice
from llmasos.syscalls.table import (
    Advise,
    Evict,
)
from tests.kernel.machines.core import Core, which
from tests.kernel.paged import MB


class Paging(Core):
    """The whole state machine of the kernel, where the models do not fit together and page-ins take as long as steps."""

    options = {"context": "128", "link": "1e9", "fail_load_every": "4"}
    config = {"weight_bytes": 5 * MB, "weight_quantum": 0.005}

    @rule(
        i=which,
        model=st.sampled_from(["sim", "sim:2m,eos_every=6", "sim:1m,vocab=500", "nowhere"]),
        advice=st.sampled_from(Advice),
    )
    def advise(self, i: int, model: str, advice: Advice) -> None:
        self.futures.append(self.prog(i).start(Advise(model, advice)))

    @rule(i=which, model=st.sampled_from(["sim", "sim:2m,eos_every=6"]))
    def evict(self, i: int, model: str) -> None:
        self.futures.append(self.prog(i).start(Evict(model, force=True)))

    def teardown(self) -> None:
        for model in ("sim", "sim:2m,eos_every=6", "sim:1m,vocab=500"):
            self.try_call(self.programs[0], Advise(model, Advice.NORMAL))
        super().teardown()


class PagingAndSwapping(Paging):
    """With a second tier, streaming, and a first tier that is as small as what is asked of it."""

    options = {"context": "128", "link": "1e9", "swap": "40000", "streams": "3", "memory": "3100000"}
    config = {"weight_quantum": 0.002, "evictions": "cost"}

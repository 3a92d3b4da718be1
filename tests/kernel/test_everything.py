"""The state machines of paging, process images and control groups in one: what each does to the others' bookkeeping shows
only where they are together. And what goes on in a process's image while the weights of its model are out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import GroupSettings, KvAction, State, WaitFor
from llmasos.syscalls.table import (
    Checkpoint,
    Decode,
    Evict,
    Getinfo,
    GroupCreate,
    GroupSet,
    GroupStat,
    Restore,
    Setsched,
    Spawn,
)
from tests.kernel.machines.core import Core, which
from tests.kernel.machines.grouped import PATHS, Grouped
from tests.kernel.machines.images import Images
from tests.kernel.machines.paging import Paging
from tests.kernel.paged import MB, ONE, PROMPT, image, memory, row, spawn
from tests.simulator import FRAME_BYTES, slots


def test_a_process_whose_weights_are_out_is_saved_with_its_kv(tmp_path: Path) -> None:
    sim = memory()
    program = sim.program()
    pid = spawn(program, "sim:1m")
    tokens = program.call(Decode(pid, 10)).tokens
    program.call(Evict("sim:1m", force=True))
    file = str(tmp_path / "image")
    info = program.call(Checkpoint(pid, file))
    assert (info.tokens, info.kv_tokens) == (50, 49)
    model = row(program, "sim:1m")
    assert (model.state, model.faults) == ("evicted", 0), "nobody wanted to run"
    other = memory()
    again = other.program()
    back = again.call(Restore(file))
    assert tokens + again.call(Decode(back, 10)).tokens == sim.continuation(PROMPT, 20, name="sim:1m")
    assert again.call(Getinfo(back)).usage.computed == 10, "no token of those was computed again"


def test_a_restore_goes_on_where_its_model_is_evicted_while_kv_is_read(tmp_path: Path) -> None:
    sim = memory()
    program = sim.program()
    pid = spawn(program, "sim:1m")
    tokens = program.call(Decode(pid, 10)).tokens
    file = str(tmp_path / "image")
    program.call(Checkpoint(pid, file))
    other = memory()
    again = other.program()
    spawn(again, "sim:1m", [5])
    restoring = again.start(Restore(file))
    other.run_until(lambda: bool(image(other, "sim:1m").imports))
    again.call(Evict("sim:1m", force=True))
    assert not restoring.done
    other.run_until(lambda: restoring.done)
    back = restoring.value
    assert row(again, "sim:1m").state == "evicted"
    assert row(again, "sim:1m").faults == 0, "it does not decode yet"
    decoding = again.start(Decode(back, 10))
    info = again.call(Getinfo(back))
    assert (info.state, info.wait, info.pages) == (State.BLOCKED, WaitFor.WEIGHTS, 4)
    other.run_until(lambda: decoding.done)
    assert tokens + decoding.value.tokens == sim.continuation(PROMPT, 20, name="sim:1m")
    assert again.call(Getinfo(back)).usage.computed == 10
    assert row(again, "sim:1m").faults == 1


def test_weights_are_charged_while_they_are_mapped_be_they_in_memory_or_not() -> None:
    sim = memory(ONE)
    program = sim.program()
    program.call(GroupCreate("g", GroupSettings(weights_max=3 * MB)))
    pid = program.call(Spawn("sim:1m", tokens=PROMPT, group="g"))

    def charged() -> int:
        (info,) = program.call(GroupStat("g"))
        return info.weights

    assert charged() == 2 * MB
    spawn(program, "sim:1.1m")  # in no group with a limit: for it the other goes
    assert row(program, "sim:1m").state == "evicted"
    assert charged() == 2 * MB, "as a file that is mapped is, whose pages are not in memory"
    with pytest.raises(SyscallError, match=r"^EDQUOT: .*weights_max"):
        program.call(Spawn("sim:1.1m", tokens=PROMPT, group="g"))
    assert program.call(Decode(pid, 10)).tokens == sim.continuation(PROMPT, 10, name="sim:1m")
    assert charged() == 2 * MB


def test_who_is_held_back_by_its_group_leaves_its_weights_to_others() -> None:
    sim = memory(ONE)
    program = sim.program()
    program.call(GroupCreate("g", GroupSettings(tokens_max=1.0)))
    pid = program.call(Spawn("sim:1m", tokens=PROMPT, group="g"))
    slow = program.start(Decode(pid, 4))
    sim.run_until(lambda: program.call(Getinfo(pid)).wait is WaitFor.QUOTA)
    program.call(Setsched(pid, 3))  # whatever has it settled: it is held back all the same
    sim.run_for(2.0)
    other = spawn(program, "sim:1.1m")
    assert program.call(Decode(other, 10), limit=1.0).tokens == sim.continuation(PROMPT, 10, name="sim:1.1m")
    assert program.call(Getinfo(pid)).wait is WaitFor.QUOTA
    gone = row(program, "sim:1m")
    assert (gone.state, gone.faults) == ("evicted", 0), "it could not run, had it the weights"
    sim.run_until(lambda: slow.done)
    assert slow.value.tokens == sim.continuation(PROMPT, 4, name="sim:1m")
    assert row(program, "sim:1m").faults >= 1


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


TestEverything = Everything.TestCase
TestEverything.settings = Core.TestCase.settings

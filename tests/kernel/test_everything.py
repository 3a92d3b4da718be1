"""The state machines of paging, process images and control groups in one: what each does to the others' bookkeeping shows
only where they are together. And what goes on in a process's image while the weights of its model are out."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmasos.simulator import simulate
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.records import GroupSettings, State, WaitFor
from llmasos.syscalls.table import (
    Checkpoint,
    Decode,
    Evict,
    Getinfo,
    GroupCreate,
    GroupStat,
    Pagein,
    Restore,
    Setsched,
    Spawn,
)
from tests.kernel.machines.core import Core
from tests.kernel.machines.everything import Everything
from tests.kernel.paged import MB, ONE, PROMPT, image, memory, row, spawn


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


TestEverything = Everything.TestCase
TestEverything.settings = Core.TestCase.settings


def test_a_restore_whose_model_kills_the_driver_meanwhile_gives_no_reason_for_a_stop_that_is_none(tmp_path: Path) -> None:
    sim = memory()
    program = sim.program()
    file = str(tmp_path / "image")
    program.call(Checkpoint(spawn(program, "sim:1m"), file))
    other = simulate(max_crashes=1)
    again = other.program()
    again.call(Pagein("sim:1m"))
    restoring = again.start(Restore(file))
    other.run_until(lambda: bool(image(other, "sim:1m").imports))
    again.call(Evict("sim:1m", force=True))
    again.start(Pagein("sim:1m"))
    other.crash()
    other.run_until(lambda: restoring.done)
    info = again.call(Getinfo(restoring.value))
    assert (info.state is State.STOPPED) == bool(info.reason)

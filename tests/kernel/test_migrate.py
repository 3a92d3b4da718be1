"""setsched(device=...): a process goes on elsewhere while it runs, and nobody who looks at its tokens can tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmasos.simulator import FRAME_BYTES, simulate, slots
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import (
    Finish,
    GroupSettings,
    KvAction,
    Sampler,
    SchedClass,
    Signal,
    State,
    WaitFor,
)
from llmasos.syscalls.table import (
    Checkpoint,
    Decode,
    Feed,
    Fork,
    GroupCreate,
    GroupSet,
    Kill,
    Pagein,
    Read,
    Sched,
    Setsched,
    Spawn,
    Truncate,
)
from tests.kernel.machines.core import Core
from tests.kernel.machines.moves import Moves, MovesByLog
from tests.kernel.moved import PROMPT, SAMPLERS, on_its_way, row, said, spawn, whole

pytestmark = pytest.mark.usefixtures("no_parcel_is_left")


# --- what a process does while it is moved --------------------------------------------------------------------------


def test_a_decode_that_begins_while_the_whole_log_is_on_its_way_goes_on() -> None:
    """A log that was cut is computed to its last token, whose logits a decode wants again."""
    sim = simulate(devices=2)
    program = sim.program()
    pid = spawn(sim, program)
    program.call(Decode(pid, 8))
    program.call(Truncate(pid, len(PROMPT)))
    assert row(sim, pid).table.cached == len(PROMPT)
    program.call(Kill(pid, Signal.STOP))  # so that nothing is computed before it has moved
    moving = program.start(Setsched(pid, device="sim1"))
    sim.run_until(lambda: on_its_way(sim, pid))
    decoding = program.start(Decode(pid, 8))
    sim.run_until(lambda: moving.done)
    program.call(Kill(pid, Signal.CONT))
    sim.run_until(lambda: decoding.done)
    assert row(sim, pid).device.name == "sim1"
    assert decoding.value.tokens == sim.continuation(PROMPT, 8, row(sim, pid).traits.sampler)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("others", [{}, {"arithmetic": "other"}], ids=["with its KV", "by its log"])
def test_a_decode_under_way_goes_on_and_its_waiters_notice_nothing(sampler: Sampler, others: dict[str, str]) -> None:
    sim = simulate(devices=2, others=others)
    program, reader = sim.program(), sim.program()
    pid = spawn(sim, program, sampler=sampler)
    decoding = program.start(Decode(pid, 200, [999], deadline=1000.0))
    reading = reader.start(Read(pid, len(PROMPT) + 150))
    sim.run_for(0.01)
    before = row(sim, pid).account.computed
    moving = program.start(Setsched(pid, device="sim1"))
    lengths = []
    while not moving.done:
        sim.step()
        lengths.append(len(row(sim, pid).log))
    assert lengths[-1] > lengths[0] + 3, "it runs on while it is moved"
    assert moving.value is None
    process = row(sim, pid)
    assert process.device.name == "sim1"
    assert not decoding.done
    sim.run_until(lambda: decoding.done)
    wanted = sim.continuation(PROMPT, 200, sampler)
    assert decoding.value.tokens == wanted
    assert decoding.value.position == len(PROMPT)
    assert reading.value.tokens[:1] == wanted[150:151]
    again = process.account.computed - before - 200
    if others:
        assert "engine was sim, is other" in said(sim)
        assert again > 40
    else:
        assert "warning" not in said(sim)
        assert again < 20, "only what was decoded meanwhile is computed again"


@pytest.mark.parametrize("tokens", [0, 1, 2, 16, 17, 32, 33])
def test_an_idle_process_takes_all_its_kv_along(tokens: int) -> None:
    sim = simulate(devices=2)
    program = sim.program()
    log = PROMPT[:tokens]
    pid = spawn(sim, program, log)
    cached = row(sim, pid).table.cached
    assert cached == max(0, tokens - 1)
    program.call(Setsched(pid, device="sim1"))
    process = row(sim, pid)
    assert (process.device.name, process.table.cached, process.wait) == ("sim1", cached, WaitFor.INPUT)
    old, new = (next(iter(device.images.values())) for device in sim.kernel.devices.values())
    assert old.pool.available == old.pool.count
    assert not old.users
    assert len(new.holders) == (cached > 0)
    program.call(Feed(pid, [3, 4, 5]))
    before = process.account.computed
    whole(sim, program, pid, [*log, 3, 4, 5])
    assert process.account.computed - before <= 30 + 3


def test_there_and_back_again_and_its_blocks_are_found_again() -> None:
    sim = simulate(devices=2)
    program = sim.program()
    pid = spawn(sim, program)
    log = list(PROMPT)
    for device in ("sim1", "sim0") * 3:
        program.call(Setsched(pid, device=device))
        assert row(sim, pid).device.name == device
        assert row(sim, pid).table.cached >= len(log) - 1
        log += program.call(Decode(pid, 7)).tokens
    assert log == PROMPT + sim.continuation(PROMPT, 42, row(sim, pid).traits.sampler)
    assert row(sim, pid).account.reused >= 32, "what it had left behind under its name"


def test_a_stopped_process_stays_stopped_and_its_swapped_pages_go_with_it() -> None:
    sim = simulate(devices=2, options={"swap": slots(40)})
    program = sim.program()
    pid = spawn(sim, program)
    decoding = program.start(Decode(pid, 50))
    sim.run_for(0.01)
    program.call(Kill(pid, Signal.STOP))
    length = len(row(sim, pid).log)
    moving = program.start(Setsched(pid, device="sim1"))  # its frames have yet to be moved out
    sim.run_until(lambda: moving.done)
    process = row(sim, pid)
    assert (process.state, process.device.name) == (State.STOPPED, "sim1")
    sim.run_idle()
    assert process.table.kept
    assert not process.table.frames
    assert "warning" not in said(sim)
    assert program.call(Read(pid)).tokens[:40] == PROMPT
    assert len(process.log) - length <= 1
    before = process.account.computed
    program.call(Kill(pid, Signal.CONT))
    sim.run_until(lambda: decoding.done)
    assert decoding.value.tokens == sim.continuation(PROMPT, 50, process.traits.sampler)
    assert process.account.computed - before <= len(PROMPT) + 50 - length
    source = next(iter(sim.kernel.devices["sim0"].images.values()))
    assert source.swap.free == source.swap.total


def test_who_waits_for_frames_gets_them_elsewhere() -> None:
    sim = simulate(frames=8, devices=2, aging_seconds=1000.0, quantum=1000)
    program = sim.program()
    first = spawn(sim, program, [5] * 60)
    decoding = program.start(Decode(first, 60))
    pid = program.call(Spawn("sim", tokens=[6] * 100))
    waiting = program.start(Decode(pid, 3))
    sim.run_until(lambda: row(sim, pid).wait is WaitFor.PAGEIN)
    moving = program.start(Setsched(pid, device="sim1"))
    sim.run_until(lambda: waiting.done)
    assert not decoding.done
    assert moving.value is None
    assert waiting.value.tokens == sim.continuation([6] * 100, 3, row(sim, pid).traits.sampler)
    sim.run_until(lambda: decoding.done)
    assert decoding.value.tokens == sim.continuation([5] * 60, 60, row(sim, first).traits.sampler)


def test_who_is_held_back_by_its_group_is_so_on_the_other_device_too() -> None:
    sim = simulate(devices=2)
    program = sim.program()
    program.call(GroupCreate("/slow", GroupSettings(tokens_max=10.0)))
    pid = spawn(sim, program, group="/slow")
    decoding = program.start(Decode(pid, 30))
    sim.run_until(lambda: row(sim, pid).wait is WaitFor.QUOTA)
    program.call(Setsched(pid, device="sim1"))
    began = sim.now
    assert row(sim, pid).wait is WaitFor.QUOTA
    sim.run_until(lambda: decoding.done)
    assert decoding.value.tokens == sim.continuation(PROMPT, 30, row(sim, pid).traits.sampler)
    assert sim.now - began > 1.5, "moving earns no tokens"


def test_children_keep_the_pages_they_share() -> None:
    sim = simulate(devices=2)
    program = sim.program()
    pid = spawn(sim, program)
    (child,) = program.call(Fork(pid, same_seed=True))
    program.call(Setsched(pid, device="sim1"))
    assert [row(sim, p).device.name for p in (pid, child)] == ["sim1", "sim0"]
    (grandchild,) = program.call(Fork(pid, same_seed=True))
    assert row(sim, grandchild).device.name == "sim1"
    for process in (pid, child, grandchild):
        whole(sim, program, process, PROMPT)
    program.call(Setsched(child, device="sim1"))
    shared = {*row(sim, pid).table.frames} & {*row(sim, child).table.frames}
    assert len(shared) == (len(PROMPT) + 29) // 16, "those that are alike are mapped, not brought"


def test_a_group_pays_once_and_is_not_over_its_limit_on_the_way() -> None:
    sim = simulate(devices=2)
    program = sim.program()
    settings = GroupSettings(kv_max=4 * FRAME_BYTES, kv_action=KvAction.KILL)
    program.call(GroupCreate("/small", settings))
    pid = spawn(sim, program, group="/small")
    group = row(sim, pid).group
    decoding = program.start(Decode(pid, 20))
    moving = program.start(Setsched(pid, device="sim1"))
    sim.run_until(lambda: on_its_way(sim, pid))
    assert group.kv <= 4 * FRAME_BYTES
    assert sim.kernel.groups.system.kv == 3 * FRAME_BYTES
    sim.run_until(lambda: moving.done)
    assert sim.kernel.groups.system.kv == 0
    assert moving.value is None
    sim.run_until(lambda: decoding.done)
    assert decoding.value.tokens == sim.continuation(PROMPT, 20, row(sim, pid).traits.sampler)
    assert group.kv == 4 * FRAME_BYTES
    assert group.events["kv_kill"] == 0


def test_what_its_group_may_not_have_there_is_computed_again() -> None:
    """Shared pages were another's to pay for; on the other device they are its own."""
    sim = simulate(devices=2)
    program = sim.program()
    first = spawn(sim, program, [*PROMPT, 1])
    program.call(GroupCreate("/small"))
    pid = spawn(sim, program, [*PROMPT, 2], group="/small")
    group = row(sim, pid).group
    assert group.kv == FRAME_BYTES
    program.call(Spawn("sim", tokens=[9] * 20, group="/small"))
    sim.run_idle()
    program.call(GroupSet("/small", GroupSettings(kv_max=4 * FRAME_BYTES)))
    program.call(Setsched(pid, device="sim1"))
    assert group.kv <= 4 * FRAME_BYTES
    assert row(sim, pid).table.cached == 32
    assert "group /small may have no more" in said(sim)
    whole(sim, program, pid, [*PROMPT, 2], 3)
    whole(sim, program, first, [*PROMPT, 1], 3)


def test_calls_that_change_the_log_meanwhile_are_heeded() -> None:
    sim = simulate(devices=2)
    program = sim.program()
    pid = spawn(sim, program)
    moving = program.start(Setsched(pid, device="sim1"))
    sim.run_until(lambda: on_its_way(sim, pid))
    program.call(Truncate(pid, 20))
    program.call(Feed(pid, [7] * 20))
    sim.run_until(lambda: moving.done)
    assert moving.value is None
    assert row(sim, pid).table.cached == 20
    log = PROMPT[:20] + [7] * 20
    assert program.call(Read(pid)).tokens == log
    whole(sim, program, pid, log)
    assert "warning" not in said(sim)


def test_calls_that_wait_for_its_token_boundary_are_done_on_whichever_device() -> None:
    sim = simulate(devices=2)
    program, other = sim.program(), sim.program()
    pid = spawn(sim, program)
    program.call(Pagein("sim", "sim1"))
    decoding = program.start(Decode(pid, 100))
    sim.run_for(0.01)
    moving = program.start(Setsched(pid, device="sim1"))
    forking = []
    while not moving.done:
        forking.append(other.start(Fork(pid, detached=True, same_seed=True)))
        sim.run_for(0.0007)
    sim.run_until(lambda: decoding.done)
    devices = {row(sim, child).device.name for future in forking for child in future.value}
    assert "sim0" in devices
    wanted = sim.continuation(PROMPT, 100, row(sim, pid).traits.sampler)
    sim.run_idle()
    for future in forking:
        assert list(row(sim, future.value[0]).log) == PROMPT + wanted


def test_nice_and_class_go_with_it_or_stay_as_they_were() -> None:
    sim = simulate(devices=2)
    program = sim.program()
    program.call(Sched("sim1", "mlfq"))
    pid = spawn(sim, program)
    decoding = program.start(Decode(pid, 60))
    call = Setsched(pid, 5, SchedClass.BATCH, "sim1")
    cancelled = program.start(call)
    sim.run_for(0.001)
    cancelled.cancel()
    process = row(sim, pid)
    assert (process.traits.nice, process.traits.sched_class, process.device.name) == (0, SchedClass.FAIR, "sim0")
    program.call(call)
    assert (process.traits.nice, process.traits.sched_class, process.device.name) == (5, SchedClass.BATCH, "sim1")
    sim.run_until(lambda: process.policy is sim.kernel.devices["sim1"].queue.policy)
    sim.run_until(lambda: decoding.done)
    program.call(Setsched(pid, 1, device="sim1"))  # it is there already
    assert process.traits.nice == 1


def test_a_checkpoint_of_a_process_on_its_way(tmp_path: Path) -> None:
    sim = simulate(devices=2)
    program = sim.program()
    pid = spawn(sim, program)
    moving = program.start(Setsched(pid, device="sim1"))
    info = program.call(Checkpoint(pid, str(tmp_path / "image")))
    sim.run_until(lambda: moving.done)
    assert (info.kv_tokens, moving.errno) == (39, Errno.OK)


def test_a_decode_that_ends_on_the_way_and_a_process_that_exits_with_it() -> None:
    sim = simulate(devices=2)
    program = sim.program()
    pid = spawn(sim, program, once=True)
    decoding = program.start(Decode(pid, 2))
    moving = program.start(Setsched(pid, device="sim1"))
    sim.run_until(lambda: moving.done)
    assert decoding.value.finish is Finish.LENGTH
    assert moving.errno is Errno.ESRCH
    sim.run_idle()
    assert not any(i.imports for d in sim.kernel.devices.values() for i in d.images.values())


# --- everything at once ---------------------------------------------------------------------------------------------


TestMoves = Moves.TestCase
TestMoves.settings = Core.TestCase.settings
TestMovesByLog = MovesByLog.TestCase
TestMovesByLog.settings = Core.TestCase.settings

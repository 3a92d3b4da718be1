"""checkpoint and restore: a process goes on elsewhere as if nothing had happened, whatever goes wrong with its KV."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from llmasos.kernel.objects.process import LLMProcess
from llmasos.simulator import Prog, Simulation, simulate, slots
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import CheckpointInfo, Finish, Limits, Right, Sampler, SchedClass, Signal, State
from llmasos.syscalls.table import (
    Call,
    Checkpoint,
    Decode,
    Fork,
    Getinfo,
    Kill,
    Pagein,
    Read,
    Restore,
    Setsched,
    Spawn,
    Trace,
)
from tests.kernel.machines.core import Core
from tests.kernel.machines.images import Images, flip, image_in
from tests.kernel.moved import PROMPT, SAMPLERS, row, said, spawn


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "image")


# --- what goes with it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("kv", [True, False], ids="kv={}".format)
@pytest.mark.parametrize("tokens", [0, 1, 16, 17, 40, 48])
def test_another_kernel_goes_on_with_the_same_tokens(file: str, sampler: Sampler, kv: bool, tokens: int) -> None:
    sim = simulate()
    program = sim.program()
    log = [3, *range(tokens)][: max(1, tokens)]
    pid = spawn(sim, program, log, sampler=sampler)
    log += program.call(Decode(pid, 5)).tokens
    info = program.call(Checkpoint(pid, file, kv))
    assert info == CheckpointInfo(file, os.path.getsize(file), len(log), len(log) - 1 if kv else 0)
    wanted = program.call(Decode(pid, 30)).tokens
    other = simulate()
    again = other.program()
    restored = again.call(Restore(file))
    computed = row(other, restored).account.computed
    assert row(other, restored).table.cached == (len(log) - 1 if kv else 0)
    assert again.call(Read(restored)).tokens == log
    assert again.call(Decode(restored, 30)).tokens == wanted == other.continuation(log, 30, sampler)
    assert row(other, restored).account.computed - computed == (30 if kv else len(log) - 1 + 30)


def test_a_look_at_the_next_tokens_stays_its_callers_and_is_not_in_the_image(file: str) -> None:
    sim = simulate()
    program = sim.program()
    pid = spawn(sim, program)
    program.call(Kill(pid, Signal.STOP))
    look = program.start(Decode(pid, 0, logprobs=3))
    program.call(Checkpoint(pid, file))
    assert row(sim, pid).decoding is not None
    assert row(sim, program.call(Restore(file))).decoding is None
    program.call(Kill(pid, Signal.CONT))
    sim.run_until(lambda: look.done)


def test_everything_that_is_the_process_comes_back(file: str) -> None:
    sim = simulate()
    program = sim.program()
    limits = Limits(context=100, tokens=9, pages=8)
    pid = spawn(
        sim,
        program,
        name="alice",
        nice=3,
        sched_class=SchedClass.BATCH,
        limits=limits,
        sampler=SAMPLERS[1],
        once=False,
    )
    program.call(Fork(pid))
    program.call(Decode(pid, 4))
    program.call(Checkpoint(pid, file))
    twin = program.call(Restore(file))
    old, new = row(sim, pid), row(sim, twin)
    same = replace(old.traits, spent=new.traits.spent, detached=False)
    assert new.traits == same
    assert (new.device, new.log, new.finish) == (old.device, old.log, old.finish)
    assert (new.parent, new.traits.detached) == (program.pid, False)
    assert new.traits.spent == 4
    seeds = [program.call(Getinfo(program.call(Fork(parent))[0])).seed for parent in (pid, twin)]
    assert seeds[0] == seeds[1], "the next child has the seed it would have had"
    assert [program.call(Decode(which, 30)).finish for which in (pid, twin)] == [Finish.BUDGET] * 2
    assert row(sim, twin).log == row(sim, pid).log
    with pytest.raises(SyscallError) as caught:
        program.call(Decode(twin, 1))
    assert caught.value.errno is Errno.EDQUOT


def test_a_name_and_a_device_may_be_others(file: str) -> None:
    sim = simulate(devices=2)
    program = sim.program()
    pid = spawn(sim, program, device="sim1")
    program.call(Checkpoint(pid, file))
    assert row(sim, program.call(Restore(file))).device.name == "sim1"
    there = program.call(Restore(file, "bob", "sim0", detached=True))
    assert (row(sim, there).device.name, row(sim, there).name, row(sim, there).traits.detached) == (
        "sim0",
        "bob",
        True,
    )
    assert row(sim, there).table.cached == len(PROMPT) - 1
    other = simulate()  # has no sim1
    elsewhere = other.program().call(Restore(file))
    assert row(other, elsewhere).device.name == "sim0"
    with pytest.raises(SyscallError) as caught:
        program.call(Restore(file, device="sim7"))
    assert caught.value.errno is Errno.ENODEV


def test_if_its_device_does_not_start_it_goes_on_where_one_does(file: str) -> None:
    sim = simulate(devices=2, restart_first=1.0)
    program = sim.program()
    program.call(Checkpoint(spawn(sim, program, device="sim1"), file))
    while not sim.kernel.devices["sim1"].hopeless:
        sim.crash("sim1")
        sim.run_for(0.0001)
    assert row(sim, program.call(Restore(file))).device.name == "sim0"
    with pytest.raises(SyscallError, match=r"^ENODEV: device sim1 "):
        program.call(Restore(file, device="sim1"))


def test_while_the_default_device_is_down_another_looks_into_a_file_for_which_none_is_named(file: str) -> None:
    sim = simulate(devices=2, restart_first=1.0)
    program = sim.program()
    pid = spawn(sim, program, device="sim1")
    program.call(Checkpoint(pid, file))
    for _ in range(2):
        sim.crash("sim0")
        sim.run_for(0.01)
    restored = program.start(Restore(file))
    sim.run_until(lambda: restored.done)
    assert sim.kernel.devices["sim0"].state != "up"
    assert row(sim, restored.value).device.name == "sim1"
    assert list(row(sim, restored.value).log) == list(row(sim, pid).log)


def test_a_model_that_is_called_otherwise_here_is_found_by_its_path_or_named(file: str) -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("tiny", tokens=PROMPT))
    program.call(Checkpoint(pid, file))
    assert row(sim, program.call(Restore(file))).traits.model == "tiny"
    other = simulate()
    other.kernel.config.models.clear()
    again = other.program()
    assert row(other, again.call(Restore(file))).traits.model == "sim"
    named = row(other, again.call(Restore(file, model="sim:2m")))
    assert named.traits.model == "sim:2m"
    assert named.table.cached == 0, "another model's KV"
    assert "model was sim, is sim:2m" in said(other)
    assert again.call(Decode(named.pid, 5)).tokens == other.continuation(PROMPT, 5, named.traits.sampler, name="sim:2m")
    with pytest.raises(SyscallError) as caught:
        again.call(Restore(file, model="nowhere"))
    assert caught.value.errno is Errno.ENOENT
    with pytest.raises(SyscallError, match="vocabulary of 30") as caught:
        again.call(Restore(file, model="sim:1m,vocab=30"))
    assert caught.value.errno is Errno.EINVAL
    with pytest.raises(SyscallError, match="too long") as caught:
        again.call(Restore(file, model="sim:1m,context=32"))
    assert caught.value.errno is Errno.E2BIG
    other.run_idle()
    assert {p.pid for p in other.kernel.table if isinstance(p, LLMProcess)} == {again.pid + 1, named.pid}


# --- at work --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", [True, False], ids="kv={}".format)
@pytest.mark.parametrize("moment", [0.0, 0.0005, 0.004, 0.011, 0.05])
def test_a_decode_under_way_goes_on_in_both(file: str, kv: bool, moment: float) -> None:
    sim = simulate(step_tokens=8)
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT, sampler=SAMPLERS[1]))
    decoding = program.start(Decode(pid, 60, [999]))
    sim.run_for(moment)
    program.call(Checkpoint(pid, file, kv))
    assert not decoding.done, "it goes on before the image is on the disk"
    other = simulate(step_tokens=8)
    again = other.program()
    restored = again.call(Restore(file))
    other.run_until(lambda: row(other, restored).decoding is None)
    sim.run_until(lambda: decoding.done)
    assert list(row(other, restored).log) == PROMPT + decoding.value.tokens
    assert list(row(other, restored).log) == PROMPT + sim.continuation(PROMPT, 60, SAMPLERS[1])
    assert row(other, restored).finish is Finish.LENGTH


def test_a_decode_that_has_no_room_here_has_ended(file: str) -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    program.start(Decode(pid, 60, [999]))
    sim.run_for(0.02)
    program.call(Checkpoint(pid, file))
    other = simulate()
    length = len(image_in(file).log)
    narrow = other.program().call(Restore(file, model=f"sim:1e6,context={length}"))
    other.run_idle()
    assert row(other, narrow).finish is Finish.CONTEXT
    assert len(row(other, narrow).log) == length


@pytest.mark.parametrize("swap", [False, True], ids="swap={}".format)
def test_a_stopped_process_is_stopped_there_too(file: str, swap: bool) -> None:
    """With a lower tier its pages have just been sent there; they are in the image all the same."""
    options = {"swap": slots(64)} if swap else {}
    sim = simulate(options=options)
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    decoding = program.start(Decode(pid, 30, [999]))
    sim.run_for(0.01)
    program.call(Kill(pid, Signal.STOP))
    info = program.call(Checkpoint(pid, file))
    assert row(sim, pid).state is State.STOPPED
    assert info.kv_tokens == len(row(sim, pid).log) - 1
    other = simulate(options=options)
    again = other.program()
    restored = again.call(Restore(file))
    other.run_idle()
    assert row(other, restored).state is State.STOPPED
    assert row(other, restored).log == row(sim, pid).log
    for kernel, process in ((sim, pid), (other, restored)):
        kernel.programs[0].call(Kill(process, Signal.CONT))
        kernel.run_idle()
    assert list(row(other, restored).log) == list(row(sim, pid).log) == PROMPT + decoding.value.tokens
    assert row(other, restored).account.computed == 30 - (info.tokens - len(PROMPT))


def test_pages_that_are_about_to_be_moved_out_are_waited_for(file: str) -> None:
    """They travel with the next step, and another process's is on the device."""
    sim = simulate(options={"swap": slots(64)})
    program = sim.program()
    pid, other = spawn(sim, program), spawn(sim, program, [9, 9])
    program.start(Decode(other, 60, [999]))
    sim.run_for(0.0105)
    program.call(Kill(pid, Signal.STOP))
    assert sim.kernel.devices["sim0"].outs
    future = program.start(Checkpoint(pid, file))
    assert sim.kernel.devices["sim0"].swapped_out
    taken_back = program.start(Checkpoint(pid, file + "2"))
    taken_back.cancel()
    assert taken_back.errno is Errno.EINTR
    sim.run_until(lambda: future.done)
    assert future.value.kv_tokens == 39
    assert not os.path.exists(file + "2")
    there = simulate()
    restored = there.program().call(Restore(file))
    assert row(there, restored).table.cached == 39


def test_a_restore_writes_no_frame_that_has_yet_to_be_moved_out(file: str) -> None:
    """It gets frames of a process that has just been stopped, while the step that moves them out is yet to come."""
    there = simulate()
    stranger = spawn(there, there.program(), [5] * 60)
    there.programs[0].call(Checkpoint(stranger, file))
    sim = simulate(frames=8, options={"swap": slots(64)})
    program = sim.program()
    pid, other = spawn(sim, program, list(range(90))), spawn(sim, program, [9, 9])
    program.start(Decode(other, 20, [999]))
    sim.run_for(0.0005)
    restoring = program.start(Restore(file))
    sim.run_for(0.0029)
    program.call(Kill(pid, Signal.STOP))
    sim.run_until(lambda: bool(sim.kernel.devices["sim0"].swapped_out))
    sim.run_until(lambda: restoring.done)
    assert row(sim, restoring.value).table.cached == 59
    program.call(Kill(pid, Signal.CONT))
    for process, log in ((pid, list(range(90))), (restoring.value, [5] * 60)):
        assert program.call(Decode(process, 9)).tokens == sim.continuation(log, 9, Sampler())
    assert row(sim, pid).account.computed == 89 + 9, "what was moved out has come back"


def test_kv_that_lies_below_or_is_shared_is_in_the_image(file: str) -> None:
    sim = simulate(frames=8, options={"swap": slots(64)})
    program = sim.program()
    first, second = (program.call(Spawn("sim", tokens=[i] * 3 + list(range(90)))) for i in range(2))
    program.call(Decode(first, 1))
    program.call(Decode(second, 1))
    assert not row(sim, first).table.frames
    assert program.call(Checkpoint(first, file)).kv_tokens == 93
    program.call(Kill(first, Signal.KILL))
    (child,) = program.call(Fork(second))
    assert program.call(Checkpoint(child, file + "2")).kv_tokens == 93
    other = simulate()
    again = other.program()
    for name, pid in ((file, first), (file + "2", child)):
        restored = again.call(Restore(name))
        assert row(other, restored).table.cached == 93
        log = list(row(other, restored).log)
        assert again.call(Decode(restored, 20)).tokens == sim.continuation(log, 20, row(other, restored).traits.sampler)
        assert pid


def test_what_others_share_is_not_read_from_the_file(file: str) -> None:
    sim = simulate()
    program = sim.program()
    pid = spawn(sim, program)
    program.call(Checkpoint(pid, file))
    twin = row(sim, program.call(Restore(file)))
    assert twin.table.frames[:2] == row(sim, pid).table.frames[:2]
    assert twin.table.frames[2] != row(sim, pid).table.frames[2]
    assert (twin.table.cached, twin.account.reused) == (39, 32)
    assert program.call(Decode(twin.pid, 9)).tokens == program.call(Decode(pid, 9)).tokens


def test_frames_are_taken_from_nobody_who_runs(file: str) -> None:
    sim = simulate()
    program = sim.program()
    pid = spawn(sim, program, list(range(150)))
    program.call(Checkpoint(pid, file))
    other = simulate(frames=12)
    again = other.program()
    busy = again.call(Spawn("sim", tokens=[5] * 100))
    decoding = again.start(Decode(busy, 60))
    other.run_for(0.005)
    restored = again.call(Restore(file))
    assert row(other, busy).account.preemptions == 0
    assert 0 < row(other, restored).table.cached < 149
    assert "there are no frames" in said(other)
    assert again.call(Decode(restored, 9)).tokens == sim.continuation(list(range(150)), 9, row(sim, pid).traits.sampler)
    other.run_until(lambda: decoding.done)
    assert decoding.value.tokens == sim.continuation([5] * 100, 60, row(other, busy).traits.sampler)


# --- what goes wrong ------------------------------------------------------------------------------------------------


def checkpointed_process(file: str, **more: Any) -> tuple[Simulation, Prog, int]:
    sim = simulate()
    program = sim.program()
    pid = spawn(sim, program)
    program.call(Checkpoint(pid, file, **more))
    return sim, program, pid


def test_a_damaged_block_and_what_follows_is_computed_again(file: str) -> None:
    sim, _, pid = checkpointed_process(file)
    flip(file, -16 - 196 - 8 - 100)  # in the second of three
    other = simulate()
    again = other.program()
    restored = again.call(Restore(file))
    assert row(other, restored).table.cached == 16
    assert "warning" in said(other)
    assert "block 1 is damaged: its checksum is off" in said(other)
    assert again.call(Decode(restored, 9)).tokens == sim.continuation(PROMPT, 9, row(sim, pid).traits.sampler)


@pytest.mark.parametrize("cut", [1, 20, 400, 600])
def test_of_a_file_that_was_cut_short_what_is_there_is_used(file: str, cut: int) -> None:
    sim, _, pid = checkpointed_process(file)
    os.truncate(file, os.path.getsize(file) - cut)
    other = simulate()
    again = other.program()
    restored = again.call(Restore(file))
    assert row(other, restored).table.cached == {1: 39, 20: 32, 400: 16, 600: 0}[cut]
    assert again.call(Decode(restored, 9)).tokens == sim.continuation(PROMPT, 9, row(sim, pid).traits.sampler)


def test_without_a_head_nothing_is_restored_and_the_log_says_so(file: str) -> None:
    sim, program, _ = checkpointed_process(file)
    flip(file, 120)
    before = len(sim.kernel.table)
    with pytest.raises(SyscallError, match="damaged") as caught:
        program.call(Restore(file))
    assert caught.value.errno is Errno.EIO
    assert len(sim.kernel.table) == before
    assert "error" in said(sim)
    assert "could not be restored" in said(sim)


def test_kv_of_another_way_to_compute_is_not_taken(file: str) -> None:
    sim, _, pid = checkpointed_process(file)
    other = simulate(options={"arithmetic": "other"})
    again = other.program()
    restored = again.call(Restore(file))
    assert row(other, restored).table.cached == 0
    assert "engine was sim, is other" in said(other)
    assert again.call(Decode(restored, 9)).tokens == sim.continuation(PROMPT, 9, row(sim, pid).traits.sampler)
    assert row(other, restored).account.computed == 39 + 9


def test_a_passphrase_is_wanted_and_shown_nowhere(file: str) -> None:
    sim = simulate()
    program, watcher = sim.program(), sim.program("watcher")
    watcher.start(Trace(timeout=1.0))
    pid = spawn(sim, program)
    watching = watcher.start(Trace(0, timeout=0.0))
    program.call(Checkpoint(pid, file, key=b"open sesame"))
    for key, errno, why in (
        (b"", Errno.EPERM, "is encrypted"),
        (b"sesame", Errno.EPERM, "passphrase is not"),
    ):
        with pytest.raises(SyscallError, match=why) as caught:
            program.call(Restore(file, key=key))
        assert caught.value.errno is errno
    restored = program.call(Restore(file, key=b"open sesame"))
    assert row(sim, restored).table.cached == 39
    events = watcher.call(Trace(0)).events + watching.value.events
    shown = "\n".join(event.detail for event in events) + said(sim)
    assert "key=(secret)" in shown
    assert "sesame" not in shown
    assert b"sesame" not in Path(file).read_bytes()


@pytest.mark.parametrize("what", ["export", "inspect"])
def test_a_driver_that_dies_at_the_file_costs_the_call_and_nothing_else(file: str, what: str) -> None:
    sim, program, pid = checkpointed_process(file)
    whole = Path(file).read_bytes()
    call: Any = Checkpoint(pid, file) if what == "export" else Restore(file)
    future = program.start(call)
    sim.run_for(0.001)
    sim.crash()
    sim.run_until(lambda: future.done)
    assert future.errno is Errno.ERESTART
    assert len(Path(file).read_bytes()) == len(whole)
    sim.run_for(1.0)
    assert program.call(Decode(pid, 9)).tokens == sim.continuation(PROMPT, 9, row(sim, pid).traits.sampler)
    assert list(row(sim, program.call(Restore(file))).log) == PROMPT


def test_a_driver_that_dies_reading_kv_has_the_log_computed(file: str) -> None:
    sim, _, pid = checkpointed_process(file)
    other = simulate(options={"crash_import": "1"})
    again = other.program()
    restored = again.call(Restore(file))
    assert "died while it read it" in said(other)
    assert again.call(Decode(restored, 9)).tokens == sim.continuation(PROMPT, 9, row(sim, pid).traits.sampler)
    assert other.driver().incarnation == 2
    assert row(other, restored).crashes == 0


def test_while_the_device_is_down_a_checkpoint_is_refused_and_a_restore_waits(file: str) -> None:
    sim, program, pid = checkpointed_process(file)
    sim.crash()
    sim.run_for(0.01)
    with pytest.raises(SyscallError, match="starting") as caught:
        program.call(Checkpoint(pid, file))
    assert caught.value.errno is Errno.ERESTART
    restored = program.call(Restore(file))
    assert program.call(Decode(restored, 3)).tokens == sim.continuation(PROMPT, 3, row(sim, pid).traits.sampler)


def test_a_process_without_its_model_has_no_image_yet(file: str) -> None:
    sim = simulate(options={"link": "1e7"})
    program = sim.program()
    program.start(Spawn("sim", tokens=PROMPT))
    sim.run_for(0.001)
    pid = max(p.pid for p in sim.kernel.table)
    with pytest.raises(SyscallError) as caught:
        program.call(Checkpoint(pid, file))
    assert caught.value.errno is Errno.EBUSY
    gone = spawn(sim, program)
    program.call(Kill(gone, Signal.KILL))
    for call in (Checkpoint(gone, file), Checkpoint(999, file)):
        with pytest.raises(SyscallError) as caught:
            program.call(call)
        assert caught.value.errno is Errno.ESRCH
    assert not os.path.exists(file)


@pytest.mark.parametrize("path", ["image", "./image", "/tmp/", "/"])
def test_a_path_is_absolute_and_a_file(path: str) -> None:
    sim = simulate()
    program = sim.program()
    pid = spawn(sim, program)
    calls: list[Call[Any]] = [Checkpoint(pid, path), Restore(path)]
    for call in calls:
        with pytest.raises(SyscallError, match="absolute") as caught:
            program.call(call)
        assert caught.value.errno is Errno.EINVAL


def test_rights_are_needed(file: str) -> None:
    sim, _, pid = checkpointed_process(file)
    calls: list[tuple[Call[Any], Right]] = [
        (Checkpoint(pid, file), Right.ALL & ~Right.MEMORY),
        (Checkpoint(pid, file), Right.ALL & ~Right.CONTROL),  # the log is in the file, and to read it is that right
        (Restore(file), Right.ALL & ~Right.MEMORY),
        (Restore(file), Right.ALL & ~Right.SPAWN),
    ]
    for call, rights in calls:
        with pytest.raises(SyscallError) as caught:
            sim.program(rights=rights).call(call)
        assert caught.value.errno is Errno.EPERM


@pytest.mark.parametrize("after", [0.0, 0.001, 0.0035, 0.005])
@pytest.mark.parametrize("how", ["cancel", "kill", "leave"])
def test_a_restore_can_be_taken_back_at_any_moment(file: str, after: float, how: str) -> None:
    checkpointed_process(file)
    sim = simulate()
    program, other = sim.program(), sim.program()
    spawn(sim, other, [9])
    future = program.start(Restore(file))
    sim.run_for(after)
    if how == "cancel":
        future.cancel()
        assert future.errno is Errno.EINTR
    elif how == "leave":
        program.disconnect()
    else:
        pids = [p.pid for p in sim.kernel.table if isinstance(p, LLMProcess)]
        other.call(Kill(pids[-1], Signal.KILL)) if len(pids) > 1 else future.cancel()
    busy = other.call(Spawn("sim", tokens=PROMPT))  # in the frames that it had
    assert other.call(Decode(busy, 9)).tokens == sim.continuation(PROMPT, 9, row(sim, busy).traits.sampler)
    sim.run_idle()
    llms = [p for p in sim.kernel.table if isinstance(p, LLMProcess)]
    assert len(llms) == 2
    assert not any(image.imports for device in sim.kernel.devices.values() for image in device.images.values())


def test_a_checkpoint_can_be_taken_back_and_outlives_its_process(file: str) -> None:
    sim, program, pid = checkpointed_process(file)
    decoding = program.start(Decode(pid, 60, [999]))
    sim.run_for(0.0005)
    waiting = program.start(Checkpoint(pid, file))
    waiting.cancel()
    assert waiting.errno is Errno.EINTR
    sim.run_for(0.0005)
    last = program.start(Checkpoint(pid, file))
    sim.run_for(0.0015)
    program.call(Kill(pid, Signal.KILL))
    sim.run_until(lambda: last.done)
    assert last.errno in (Errno.OK, Errno.ESRCH)
    assert decoding.done
    assert image_in(file).log[:40] == PROMPT


def test_frames_for_kv_on_its_way_go_to_whoever_cannot_run_otherwise(file: str) -> None:
    sim = simulate()
    program = sim.program()
    pid = spawn(sim, program, list(range(180)))
    program.call(Checkpoint(pid, file))
    other = simulate(frames=12)
    again = other.program()
    again.call(Spawn("sim", tokens=[]))
    other.run_idle()
    restoring = again.start(Restore(file))
    other.run_until(lambda: any(i.imports for i in other.kernel.devices["sim0"].images.values()))
    busy = again.call(Spawn("sim", tokens=[5] * 180))
    other.run_until(lambda: restoring.done)
    assert "others needed its frames" in said(other)
    assert again.call(Decode(busy, 5)).tokens == sim.continuation([5] * 180, 5, row(other, busy).traits.sampler)
    restored = restoring.value
    assert again.call(Decode(restored, 5)).tokens == sim.continuation(list(range(180)), 5, row(sim, pid).traits.sampler)


# --- everything at once ---------------------------------------------------------------------------------------------


TestImages = Images.TestCase
TestImages.settings = Core.TestCase.settings


def test_a_checkpoint_that_dies_with_its_driver_names_that_one_though_the_process_has_moved(file: str) -> None:
    sim = simulate(devices=2)
    program, other = sim.program(), sim.program()
    program.call(Pagein("sim", "sim1"))
    pid = program.call(Spawn("sim", tokens=[1]))
    future = other.start(Checkpoint(pid, file))
    moved = program.start(Setsched(pid, device="sim1"))
    assert moved.done
    assert not future.done
    sim.crash("sim0")
    sim.run_until(lambda: future.done)
    with pytest.raises(SyscallError, match="the driver of sim0 died while it wrote the image"):
        _ = future.value

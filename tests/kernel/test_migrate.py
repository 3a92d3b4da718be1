"""setsched(device=...): a process goes on elsewhere while it runs, and nobody who looks at its tokens can tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmasos.drivers import parcel
from llmasos.drivers.protocol import IMAGES, Export, Import
from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.sched.policies import make_policy
from llmasos.kernel.sched.run_queue import RunQueue
from llmasos.simulator import DISK_SECONDS, FRAME_BYTES, Future, Prog, Simulation, simulate, slots, small_config
from llmasos.syscalls.errno import Errno, SyscallError
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
    Evict,
    Exec,
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

PROMPT = list(range(40))
SAMPLERS = [Sampler(seed=7), Sampler(temperature=1.0, top_k=20, seed=11, repetition_penalty=1.3)]


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Any:
    before = parcel.held()
    yield
    assert parcel.held() == before


def row(sim: Simulation, pid: int) -> LLMProcess:
    return sim.kernel.table.llm(pid)


def said(sim: Simulation) -> str:
    return "\n".join(f"{line.level}: {line.text}" for line in sim.log)


def spawn(sim: Simulation, program: Prog, tokens: list[int] | None = None, **more: Any) -> int:
    pid = program.call(Spawn("sim", tokens=PROMPT if tokens is None else tokens, **more))
    sim.run_idle()
    return pid


def refused(program: Prog, call: Any) -> SyscallError:
    with pytest.raises(SyscallError) as caught:
        program.call(call)
    return caught.value


def on_its_way(sim: Simulation, pid: int, device: str = "sim1") -> bool:
    """Whether frames wait there for its KV."""
    return any(image.imports[pid].frames for image in sim.kernel.devices[device].images.values() if pid in image.imports)


def whole(sim: Simulation, program: Prog, pid: int, log: list[int], count: int = 30) -> None:
    """It decodes what the model's definition says comes after `log`."""
    assert program.call(Decode(pid, count)).tokens == sim.continuation(log, count, row(sim, pid).traits.sampler)


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
        assert row(sim, future.value[0]).log == PROMPT + wanted


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


# --- what cannot be -------------------------------------------------------------------------------------------------


def stays(sim: Simulation, program: Prog, pid: int, errno: Errno, **more: Any) -> SyscallError:
    """The move is refused, and the process is as it was."""
    process = row(sim, pid)
    before = (process.device, process.image, process.table.cached, list(process.log), process.traits.nice)
    error = refused(program, Setsched(pid, device="sim1", **more))
    assert error.errno is errno
    assert (process.device, process.image, process.table.cached, process.log, process.traits.nice) == before
    assert process.transition is None
    return error


def test_a_device_that_is_not_there_or_down() -> None:
    sim = simulate(devices=2)
    program = sim.program()
    pid = spawn(sim, program)
    error = refused(program, Setsched(pid, 3, device="sim7"))
    assert error.errno is Errno.ENODEV
    assert "sim0, sim1" in error.reason
    assert row(sim, pid).traits.nice == 0
    sim.crash("sim1")
    sim.run_for(0.01)
    assert "call again when it is up" in stays(sim, program, pid, Errno.ERESTART, nice=3).reason
    sim.run_for(1.0)
    program.call(Setsched(pid, device="sim1"))
    whole(sim, program, pid, PROMPT)


@pytest.mark.parametrize(
    ("others", "errno", "why"),
    [
        ({"arch": "other"}, Errno.ENOEXEC, "is a other"),
        ({"fail": "EIO"}, Errno.EIO, "declared to fail"),
        ({"params": "1e12"}, Errno.ENOMEM, "of memory for them"),
        ({"context": "30"}, Errno.E2BIG, "30 is the window"),
        ({"vocab": "20"}, Errno.EINVAL, "vocabulary of 20"),
    ],
)
def test_a_model_that_cannot_be_had_there(others: dict[str, str], errno: Errno, why: str) -> None:
    sim = simulate(devices=2, others=others)
    program = sim.program()
    pid = spawn(sim, program)
    assert why in stays(sim, program, pid, errno).reason
    whole(sim, program, pid, PROMPT)


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("kind", "a cuda computes in another way than a sim"),
        ("form", f"a frame has {FRAME_BYTES} bytes on sim0, 1024 on sim1"),
        ("features", "the driver of sim1 neither writes nor reads process images"),
    ],
)
def test_kv_that_is_plainly_of_no_use_there_is_not_even_exported(what: str, why: str) -> None:
    config = small_config(devices=2, others={"block_bytes": "1024"} if what == "form" else {})
    if what == "kind":
        config.devices[1].kind = "cuda"
    sim = Simulation(config)
    sim.run_until(lambda: all(d.state == "up" for d in sim.kernel.devices.values()))
    if what == "features":
        withhold(sim, IMAGES)
    program = sim.program()
    pid = spawn(sim, program)
    decoding = program.start(Decode(pid, 50))
    sent: list[Export] = []
    sim.driver("sim0").device.export = sent.append  # type: ignore[method-assign,assignment]
    program.call(Setsched(pid, device="sim1"))
    assert not sent
    assert f"KV of 0; the rest is computed again: {why}" in said(sim)
    sim.run_until(lambda: decoding.done)
    assert decoding.value.tokens == sim.continuation(PROMPT, 50, row(sim, pid).traits.sampler)


def withhold(sim: Simulation, feature: str) -> None:
    """Let sim1's driver have declared no such feature."""
    device = sim.kernel.devices["sim1"]
    assert device.hello is not None
    features = [name for name in device.hello.features if name != feature]
    device.hello = msgspec.structs.replace(device.hello, features=features)


def test_a_decode_that_wants_log_probabilities_stays_where_they_are_reported() -> None:
    sim = simulate(devices=2)
    withhold(sim, "logprobs")
    program = sim.program()
    pid = spawn(sim, program)
    decoding = program.start(Decode(pid, 60, logprobs=2))
    assert "log-probabilities" in stays(sim, program, pid, Errno.ENOTSUP).reason
    sim.run_until(lambda: decoding.done)
    assert len(decoding.value.logprobs) == 60
    program.call(Setsched(pid, device="sim1"))
    assert row(sim, pid).device.name == "sim1"


def test_a_group_that_may_not_have_its_weights_there_and_one_that_just_may() -> None:
    sim = simulate(devices=2, others={"params": "2e6"})
    program = sim.program()
    program.call(GroupCreate("/light", GroupSettings(weights_max=3_000_000)))
    pid = spawn(sim, program, group="/light")
    stays(sim, program, pid, Errno.EDQUOT)
    program.call(GroupSet("/light", GroupSettings(weights_max=4_000_000)))
    program.call(Setsched(pid, device="sim1"))
    assert row(sim, pid).group.weights == 4_000_000
    whole(sim, program, pid, PROMPT)


def test_one_change_at_a_time() -> None:
    sim = simulate(devices=2)
    program = sim.program()
    program.call(Pagein("sim:2m"))
    pid = spawn(sim, program)
    moving = program.start(Setsched(pid, device="sim1"))
    for call in (Setsched(pid, device="sim1"), Exec(pid, "sim:2m")):
        error = refused(program, call)
        assert error.errno is Errno.EBUSY
        assert "setsched" in error.reason
    program.call(Setsched(pid, 4))  # that is no change of this kind
    sim.run_until(lambda: moving.done)
    changing = program.start(Exec(pid, "sim:3m"))
    assert "exec" in stays_busy(program, pid).reason
    sim.run_until(lambda: changing.done)
    assert changing.value is None
    program.call(Setsched(pid, device="sim0"))
    assert row(sim, pid).image is not None
    assert (row(sim, pid).device.name, row(sim, pid).traits.model, row(sim, pid).traits.nice) == ("sim0", "sim:3m", 4)


def stays_busy(program: Prog, pid: int) -> SyscallError:
    error = refused(program, Setsched(pid, device="sim0"))
    assert error.errno is Errno.EBUSY
    return error


def test_a_process_without_its_model_yet_and_one_that_is_none() -> None:
    sim = simulate(devices=2, options={"link": "1e7"})
    program = sim.program()
    program.start(Spawn("sim", tokens=PROMPT))
    sim.run_for(0.001)
    pid = max(p.pid for p in sim.kernel.table)
    assert refused(program, Setsched(pid, device="sim1")).errno is Errno.EBUSY
    assert refused(program, Setsched(program.pid, device="sim1")).errno is Errno.EINVAL
    assert refused(program, Setsched(999, device="sim1")).errno is Errno.ESRCH


def test_what_is_on_its_way_keeps_the_model_there() -> None:
    sim = simulate(devices=2)
    program, other = sim.program(), sim.program()
    pid = spawn(sim, program)
    moving = program.start(Setsched(pid, device="sim1"))
    sim.run_until(lambda: on_its_way(sim, pid))
    assert "on their way" in refused(other, Evict("sim", "sim1")).reason
    sim.run_until(lambda: moving.done)
    other.call(Evict("sim", "sim0"))


def test_frames_for_kv_on_its_way_go_to_whoever_cannot_run_otherwise() -> None:
    sim = simulate(frames=12, devices=2)
    program = sim.program()
    pid = spawn(sim, program, list(range(180)))
    there = program.call(Spawn("sim", tokens=[], device="sim1"))
    moving = program.start(Setsched(pid, device="sim1"))
    sim.run_until(lambda: on_its_way(sim, pid))
    program.call(Feed(there, [5] * 180))
    busy = program.start(Decode(there, 3))
    sim.run_until(lambda: moving.done)
    assert "others needed its frames" in said(sim)
    sim.run_until(lambda: busy.done)
    assert busy.value.tokens == sim.continuation([5] * 180, 3, row(sim, there).traits.sampler)
    whole(sim, program, pid, list(range(180)), 5)


def test_kv_is_read_into_frames_only_once_what_was_in_them_has_been_moved_out() -> None:
    sim = simulate(frames=8, devices=2, options={"swap": slots(40)}, others={"overhead": "0.02"})
    program = sim.program()
    program.call(GroupCreate("/there"))
    sleeper = spawn(sim, program, device="sim1", group="/there")
    busy = program.call(Spawn("sim", tokens=[8], device="sim1"))
    pid = spawn(sim, program, [4] * 40)
    frames = {*row(sim, sleeper).table.frames}
    decoding = program.start(Decode(busy, 20))
    sim.run_for(0.05)
    moving = program.start(Setsched(pid, device="sim1"))
    sim.run_until(lambda: bool(sim.driver("sim0").parcels))
    program.call(GroupSet("/there", GroupSettings(kv_max=FRAME_BYTES)))
    assert sim.kernel.devices["sim1"].outs, "its pages are to be moved out with the next step"
    sim.run_until(lambda: moving.done)
    assert frames & {*row(sim, pid).table.frames}
    program.call(GroupSet("/there", GroupSettings()))
    assert row(sim, sleeper).table.kept
    sim.run_until(lambda: decoding.done)
    whole(sim, program, sleeper, PROMPT, 3)
    whole(sim, program, pid, [4] * 40, 3)


# --- deaths and second thoughts -------------------------------------------------------------------------------------

MOMENTS = [0.0, 0.0005, 0.001, 0.0025, 0.0045, 0.006, 0.0075, 0.009, 0.012]


def begun(options: dict[str, str] | None = None) -> tuple[Simulation, Prog, int, Future[Any], Future[None]]:
    """A process that decodes and is being moved to a device that has its model."""
    sim = simulate(devices=2, options={"swap": slots(40), **(options or {})})
    program = sim.program()
    program.call(Pagein("sim", "sim1"))
    pid = spawn(sim, program)
    decoding = program.start(Decode(pid, 60))
    sim.run_for(0.005)
    return sim, program, pid, decoding, program.start(Setsched(pid, device="sim1"))


@pytest.mark.parametrize("after", MOMENTS)
@pytest.mark.parametrize("who", ["sim0", "sim1", "both"])
def test_a_driver_may_die_at_any_moment(after: float, who: str) -> None:
    sim, program, pid, decoding, moving = begun()
    sim.run_for(after)
    for name in ("sim0", "sim1") if who == "both" else (who,):
        sim.crash(name)
    sim.run_until(lambda: moving.done)
    process = row(sim, pid)
    if moving.errno is Errno.OK:
        assert process.device.name == "sim1"
    else:
        assert moving.errno is Errno.ERESTART
        assert process.device.name == "sim0"
        assert who != "sim0", "a process leaves a device that has died"
        assert "has stayed on sim0" in (moving.reply.reason if moving.reply else "")
    sim.run_until(lambda: decoding.done)
    assert decoding.value.tokens == sim.continuation(PROMPT, 60, process.traits.sampler)
    assert not any(image.imports for d in sim.kernel.devices.values() for image in d.images.values())
    whole(sim, program, pid, list(process.log), 5)


def test_a_source_that_dies_with_the_kv_has_the_log_computed_there() -> None:
    sim, _, pid, decoding, moving = begun()
    sim.run_until(lambda: bool(sim.driver("sim0").parcels) or moving.done)
    sim.crash("sim0")
    sim.run_until(lambda: moving.done)
    assert moving.value is None
    assert "warning: process" in said(sim)
    assert "died while it was to hand it over" in said(sim)
    sim.run_until(lambda: decoding.done)
    assert decoding.value.tokens == sim.continuation(PROMPT, 60, row(sim, pid).traits.sampler)


def test_a_process_is_moved_away_from_a_device_that_is_down() -> None:
    sim = simulate(devices=2)
    program = sim.program()
    pid = spawn(sim, program)
    decoding = program.start(Decode(pid, 10))
    sim.crash("sim0")
    sim.run_for(0.002)
    assert sim.kernel.devices["sim0"].state != "up"
    program.call(Setsched(pid, device="sim1"))
    sim.run_until(lambda: decoding.done)
    assert decoding.value.tokens == sim.continuation(PROMPT, 10, row(sim, pid).traits.sampler, name="sim")


def test_a_target_that_dies_reading_the_kv_leaves_the_process_where_it_is() -> None:
    sim = simulate(devices=2, others={"crash_import": "1"})
    program = sim.program()
    pid = spawn(sim, program)
    decoding = program.start(Decode(pid, 100))
    error = refused(program, Setsched(pid, device="sim1"))
    assert error.errno is Errno.ERESTART
    assert sim.kernel.devices["sim1"].incarnation == 2
    sim.run_until(lambda: decoding.done)
    assert decoding.value.tokens == sim.continuation(PROMPT, 100, row(sim, pid).traits.sampler)
    assert row(sim, pid).crashes == 0


def test_a_target_that_dies_while_it_loads_the_model_loads_it_again() -> None:
    sim = simulate(devices=2, others={"link": "1e8"})
    program = sim.program()
    pid = spawn(sim, program)
    moving = program.start(Setsched(pid, device="sim1"))
    sim.run_for(0.01)
    assert not moving.done
    sim.crash("sim1")
    sim.run_until(lambda: moving.done)
    assert moving.value is None
    whole(sim, program, pid, PROMPT)


@pytest.mark.parametrize("after", MOMENTS)
@pytest.mark.parametrize("how", ["cancel", "leave", "kill", "stop"])
def test_second_thoughts_at_any_moment(after: float, how: str) -> None:
    sim, program, pid, decoding, moving = begun()
    mover = sim.program()
    process = row(sim, pid)
    moving.cancel()
    assert moving.done
    again = mover.start(Setsched(pid, device="sim1"))
    sim.run_for(after)
    moved = again.done
    match how:
        case "cancel":
            again.cancel()
            assert again.errno is (Errno.OK if moved else Errno.EINTR)
        case "leave":
            mover.disconnect()
        case "stop":
            mover.call(Kill(pid, Signal.STOP))
        case _:
            mover.call(Kill(pid, Signal.KILL))
            sim.run_until(lambda: again.done)
            assert again.errno is (Errno.OK if moved else Errno.ESRCH)
    if how == "stop":
        sim.run_until(lambda: again.done and process.state is State.STOPPED)
        assert process.device.name == "sim1"
        program.call(Kill(pid, Signal.CONT))
    elif how != "kill":
        assert process.device.name == ("sim1" if moved else "sim0")
        assert process.transition is None
    sim.run_until(lambda: decoding.done)
    wanted = sim.continuation(PROMPT, 60, process.traits.sampler)
    assert decoding.value.tokens == wanted[: len(decoding.value.tokens)]
    assert how == "kill" or decoding.value.finish is Finish.LENGTH
    sim.run_idle()
    assert parcel.held() == []
    assert not any(image.imports for d in sim.kernel.devices.values() for image in d.images.values())
    if how != "kill":
        whole(sim, program, pid, PROMPT + wanted, 4)


def test_no_context_is_left_behind_with_the_old_driver() -> None:
    sim = simulate(devices=2)
    program = sim.program()
    pid = spawn(sim, program)
    program.call(Setsched(pid, device="sim1"))
    other = spawn(sim, program, [3])
    assert other
    assert pid not in sim.driver("sim0").device._contexts
    whole(sim, program, pid, PROMPT)


def test_what_is_sent_to_the_drivers_is_one_export_and_one_import(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = simulate(devices=2)
    program = sim.program()
    pid = spawn(sim, program)
    seen: list[object] = []
    for driver in sim.drivers.values():
        receive: Callable[[Any], None] = driver.receive

        def spy(message: Any, receive: Callable[[Any], None] = receive) -> None:
            seen.append(message)
            receive(message)

        monkeypatch.setattr(driver, "receive", spy)
    program.call(Setsched(pid, device="sim1"))
    exports = [m for m in seen if isinstance(m, Export)]
    imports = [m for m in seen if isinstance(m, Import)]
    assert [(m.path, m.tokens, m.key) for m in exports] == [("", 39, b"")]
    assert [(m.first, m.tokens) for m in imports] == [(0, 39)]
    assert imports[0].path.startswith("/proc/")
    assert sim.now > 2 * DISK_SECONDS


def test_an_entry_left_in_the_queue_of_one_device_does_not_come_to_life_by_the_other() -> None:
    sim = simulate(devices=2)
    pid = spawn(sim, sim.program())
    process = row(sim, pid)
    here, there = RunQueue(make_policy("fair", 8)), RunQueue(make_policy("fair", 8))
    here.put(process)
    here.withdraw(process)
    for _ in range(3):
        there.put(process)
        assert here.take() is None
        assert list(here) == []
    assert there.take() is process


# --- everything at once ---------------------------------------------------------------------------------------------


TestMoves = Moves.TestCase
TestMoves.settings = Core.TestCase.settings
TestMovesByLog = MovesByLog.TestCase
TestMovesByLog.settings = Core.TestCase.settings


def test_a_suspect_that_has_moved_away_is_not_run_where_it_was() -> None:
    """It was passed over for long, and was to be the next one there; meanwhile it is queued where it lives now."""
    sim = simulate(
        devices=2,
        options={"overhead": "0.02"},
        others={"overhead": "0.5"},
        max_runs=4,
        aging_seconds=0.5,
        max_crashes=100,
        pagein_seconds=1e9,
    )
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT, sched_class=SchedClass.BATCH))
    others = [program.call(Spawn("sim", tokens=[i])) for i in range(3)]
    there = program.call(Spawn("sim", tokens=[9], device="sim1"))
    suspect, source = sim.kernel.table.llm(pid), sim.kernel.devices["sim0"]
    answer = program.start(Decode(pid, 20))
    sim.run_until(lambda: suspect.running > 0)
    sim.crash("sim0")
    sim.run_until(lambda: suspect.crashes > 0)
    for other in (*others, there):
        program.start(Decode(other, 200, wait=False))
    sim.run_until(lambda: source.suspect is suspect)
    program.call(Setsched(pid, device="sim1"))
    assert suspect.ticket > 0, "it waits there while the other device makes its next steps"
    sim.run_until(lambda: answer.done)
    assert answer.value.tokens == sim.continuation(PROMPT, 20, suspect.traits.sampler)
    sim.run_idle()
    assert not any(device.queue for device in sim.kernel.devices.values())

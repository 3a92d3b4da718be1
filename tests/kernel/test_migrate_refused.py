"""setsched(device=...) that cannot be: what is refused, and why, and that the process stays where it is."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from llmasos.drivers.protocol import IMAGES, Export
from llmasos.simulator import FRAME_BYTES, Prog, Simulation, simulate, slots, small_config
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import (
    GroupSettings,
)
from llmasos.syscalls.table import (
    Decode,
    Evict,
    Exec,
    Feed,
    GroupCreate,
    GroupSet,
    Pagein,
    Setsched,
    Spawn,
)
from tests.kernel.moved import PROMPT, on_its_way, refused, row, said, spawn, whole

pytestmark = pytest.mark.usefixtures("no_parcel_is_left")


def stays(sim: Simulation, program: Prog, pid: int, errno: Errno, **more: Any) -> SyscallError:
    """The move is refused, and the process is as it was."""
    process = row(sim, pid)
    before = (process.device, process.image, process.table.cached, process.log[:], process.traits.nice)
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

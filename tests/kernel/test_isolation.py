"""Owners in memory: KV that nobody vouches for is found by nobody, and frames go to another owner empty."""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec
import pytest

from llmasos.drivers import checkpoint_file
from llmasos.drivers.checkpoint_file import Reader
from llmasos.drivers.protocol import BLOCK_TOKENS, VERSION, Step, decode_to_driver, encode
from llmasos.kernel.groups.group import Group
from llmasos.kernel.memory.frames import FramePool
from llmasos.kernel.memory.page_table import PageTable
from llmasos.kernel.memory.swap import SwapSpace
from llmasos.kernel.tokens import log_of
from llmasos.simulator import Prog, Simulation, simulate, slots
from llmasos.simulator.driver import Driver
from llmasos.syscalls.records import Right, Sampler, Signal
from llmasos.syscalls.table import Checkpoint, Decode, Feed, Fork, Getinfo, Kill, Restore, Setsched, Spawn, Truncate
from tests.kernel.moved import PROMPT, row, said, spawn, whole

_BLOCK = struct.Struct(f"<I{BLOCK_TOKENS}I{BLOCK_TOKENS}Q")  # of a simulated device (drivers/sim/checkpoint.py)
_CALLS = Right.SPAWN | Right.MEMORY


def noise(path: str, log: list[int] = PROMPT) -> str:
    """An image of a process with this log whose KV is noise, with all checksums right: made from a true one, by hand."""
    sim = simulate()
    program = sim.program()
    program.call(Checkpoint(spawn(sim, program, log, sampler=Sampler()), path))
    with Reader(path) as file:
        parts = [bytearray(file.part_bytes) for _ in range(file.parts)]
        for number, part in enumerate(parts):
            file.read(number, memoryview(part))
            held, *both = _BLOCK.unpack(part)
            hashes = [value ^ 0x5EED for value in both[BLOCK_TOKENS:]]
            part[:] = _BLOCK.pack(held, *both[:BLOCK_TOKENS], *hashes)
        checkpoint_file.write(path, file.head, file.part_bytes, list(map(bytes, parts)))
    return path


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "image")


def attacked(file: str, **more: object) -> tuple[Simulation, Prog, int]:
    """A system into which a program with few rights has brought noise."""
    sim = simulate(**more)  # type: ignore[arg-type]
    mallory = sim.program("mallory", _CALLS)
    pid = mallory.call(Restore(noise(file), detached=True))
    assert row(sim, pid).table.cached == len(PROMPT) - 1, "the driver takes it for KV"
    return sim, mallory, pid


def unharmed(sim: Simulation) -> None:
    """Others whose context begins alike get the tokens that they get without an attack."""
    alice = sim.program("alice")
    whole(sim, alice, spawn(sim, alice, PROMPT), PROMPT)
    assert not sim.driver().device.faults, "nobody else has read what was brought in"


def test_kv_that_was_made_by_hand_is_found_by_nobody_else(file: str) -> None:
    sim, mallory, pid = attacked(file)
    unharmed(sim)
    twin = mallory.call(Spawn("sim", tokens=PROMPT, sampler=Sampler()))
    sim.run_idle()
    assert row(sim, twin).table.frames[0] != row(sim, pid).table.frames[0], "not by those of the same program either"
    assert row(sim, twin).account.reused == 32, "but honest KV is found"


def test_it_is_not_found_when_its_process_has_ended(file: str) -> None:
    sim, _, pid = attacked(file)
    operator = sim.program()
    operator.call(Kill(pid, Signal.KILL))
    sim.run_idle()
    unharmed(sim)


def test_forks_share_it_with_their_parent_only(file: str) -> None:
    sim, mallory, pid = attacked(file)
    (child,) = mallory.call(Fork(pid))
    assert row(sim, child).table.frames[:2] == row(sim, pid).table.frames[:2]
    unharmed(sim)


def test_it_does_not_pass_for_honest_after_a_move(file: str) -> None:
    sim, _, pid = attacked(file, devices=2)
    operator = sim.program()
    operator.call(Setsched(pid, device="sim1"))
    assert row(sim, pid).table.cached
    assert "KV of 39" in said(sim)
    there = operator.call(Spawn("sim", tokens=PROMPT, sampler=Sampler(), device="sim1"))
    assert operator.call(Decode(there, 20)).tokens == sim.continuation(PROMPT, 20)
    assert not sim.driver("sim1").device.faults


def test_it_does_not_pass_for_honest_when_it_comes_back_from_a_lower_tier(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim, _, pid = attacked(file, options={"swap": slots(64)})
    operator = sim.program()
    operator.call(Kill(pid, Signal.STOP))
    sim.run_idle()
    assert row(sim, pid).table.kept
    assert not row(sim, pid).table.frames
    operator.call(Kill(pid, Signal.CONT))
    with monkeypatch.context() as patched:  # the device, which sees what is moved in for the decode, says no more of it
        patched.setattr(Driver, "_check_faults", lambda self, message: self.device.faults.clear())
        refused = operator.start(Decode(pid, 1))
        sim.run_until(lambda: refused.done)
    assert sim.kernel.counters["moved_in"]
    unharmed(sim)


def test_it_does_not_pass_for_honest_by_a_checkpoint(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sim, _, pid = attacked(file)
    operator = sim.program()
    operator.call(Checkpoint(pid, file + "2"))
    monkeypatch.setattr(Reader, "vouched", True)  # the kernel's own file
    again = operator.call(Restore(file + "2"))
    assert row(sim, again).table.cached == len(PROMPT) - 1
    unharmed(sim)


def test_an_image_that_this_users_kernel_wrote_is_shared_like_any_kv(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sim = simulate()
    program = sim.program()
    program.call(Checkpoint(spawn(sim, program), file))
    for vouched, shared in ((False, 0), (True, 32)):
        monkeypatch.setattr(Reader, "vouched", vouched)
        other = simulate()
        again = other.program()
        restored = again.call(Restore(file))
        assert row(other, restored).table.cached == 39
        fresh = spawn(other, again)
        assert row(other, fresh).account.reused == shared
        whole(other, again, restored, PROMPT)
        whole(other, again, fresh, PROMPT)


def test_what_is_computed_again_is_found_by_others(file: str) -> None:
    sim, _, pid = attacked(file)
    operator = sim.program()
    operator.call(Truncate(pid, 0))
    operator.call(Feed(pid, PROMPT))
    sim.run_idle()
    twin = spawn(sim, operator)
    assert row(sim, twin).account.reused == 32
    assert row(sim, twin).table.frames[:2] == row(sim, pid).table.frames[:2]
    assert operator.call(Getinfo(pid)).cached == 39


def test_only_what_follows_from_unsure_kv_is_unsure() -> None:
    group, pool, log = Group(), FramePool(16), log_of([1] * 200)
    table = PageTable(group, 7)
    table.extend(pool, 32)
    table.computed(pool, log, 32)
    assert table.bring(pool, 32)
    table.distrust(2, apart=5)
    table.computed(pool, log, 0)
    table.extend(pool, 32)
    table.computed(pool, log, 32)
    same, other = PageTable(group, 7), PageTable(group, 8)
    assert (same.reuse(pool, log), other.reuse(pool, log)) == (32, 0)
    kin = table.fork(pool, group)
    kin.cut(pool, 48)
    assert kin.reuse(pool, log) == 48, "its forks find what was computed from it"
    space = SwapSpace([8], 1)
    table.cut(pool, 40)
    table.trim(space, 40)
    assert table.alien == 2
    table.cut(pool, 32)
    table.trim(space, 32)
    assert table.alien > 1 << 60, "none of it is left"
    table.extend(pool, 64)
    table.computed(pool, log, 64)
    assert PageTable(group, 7).reuse(pool, log) == 96


# --- frames that another owner had ----------------------------------------------------------------------------------


def test_a_frame_goes_to_another_owner_by_way_of_the_driver_only() -> None:
    group, pool = Group(), FramePool(4)
    first, second = PageTable(group, 1), PageTable(group, 2)
    first.extend(pool, 64)
    assert pool.to_wipe() == [], "nobody had them before"
    first.cut(pool, 0)
    first.extend(pool, 64)
    assert pool.to_wipe() == [], "they were its own"
    first.cut(pool, 32)
    second.extend(pool, 32)
    assert pool.to_wipe() == second.frames
    assert pool.to_wipe() == [], "the driver is told once"
    pool.release(reversed(second.frames))
    pool.reset()
    assert pool.owners == [None] * 4, "a driver that starts has empty frames"


def test_a_copy_is_not_wiped_behind_its_back() -> None:
    group, pool = Group(), FramePool(3)
    stranger, parent = PageTable(group, 1), PageTable(group, 2)
    stranger.extend(pool, 48)
    stranger.cut(pool, 0)
    parent.extend(pool, 8)
    parent.computed(pool, log_of([1] * 8), 8)
    assert pool.to_wipe() == parent.frames
    child = parent.fork(pool, group)
    source, copied = child.extend(pool, 1) or (-1, -1)
    assert source == parent.frames[0] != copied
    assert pool.to_wipe() == []


def test_records_that_an_older_driver_cannot_carry_out_are_of_another_version() -> None:
    assert VERSION == 4
    assert msgspec.structs.asdict(decode_to_driver(encode(Step(1, [], wipes=[(2, 3)]))))["wipes"] == [(2, 3)]

"""Owners in memory: KV that nobody vouches for is found by nobody, and frames go to another owner empty."""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec
import pytest

from llmasos.drivers import checkpoint, checkpoint_file
from llmasos.drivers.checkpoint_file import Reader
from llmasos.drivers.protocol import BLOCK_TOKENS, VERSION, Inspect, Inspected, Step, decode_to_driver, encode
from llmasos.kernel.groups.group import Group
from llmasos.kernel.memory.frames import FramePool
from llmasos.kernel.memory.page_table import PageTable, table_of
from llmasos.kernel.memory.swap import SwapSpace
from llmasos.kernel.objects.owner import Owner
from llmasos.kernel.tokens import log_of
from llmasos.simulator import Prog, Simulation, simulate, slots
from llmasos.simulator.driver import Driver
from llmasos.syscalls import pids
from llmasos.syscalls.records import GroupSettings, Right, Sampler, Signal
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


def vouching(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on every image has seals that only a kernel of this user can have made."""
    inspect = checkpoint.inspect

    def vouched(request: Inspect) -> Inspected:
        with Reader(request.path, request.key) as file:
            return msgspec.structs.replace(inspect(request), sound=checkpoint._head(file).sound)

    monkeypatch.setattr(checkpoint, "inspect", vouched)


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


@pytest.mark.parametrize("forked", [False, True])
def test_it_does_not_pass_for_honest_by_a_checkpoint(file: str, monkeypatch: pytest.MonkeyPatch, forked: bool) -> None:
    sim, _, pid = attacked(file)
    operator = sim.program()
    if forked:
        pid = operator.call(Fork(pid))[0]
    operator.call(Checkpoint(pid, file + "2"))
    vouching(monkeypatch)  # it is the kernel's own file
    again = operator.call(Restore(file + "2"))
    assert row(sim, again).table.cached == len(PROMPT) - 1
    unharmed(sim)


def test_an_image_that_this_users_kernel_wrote_is_shared_like_any_kv(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sim = simulate()
    program = sim.program()
    program.call(Checkpoint(spawn(sim, program), file))
    for vouched, shared in ((False, 0), (True, 32)):
        if vouched:
            vouching(monkeypatch)
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


def test_what_is_computed_again_after_the_death_of_a_driver_is_found_by_others(file: str) -> None:
    sim, _, pid = attacked(file)
    operator = sim.program()
    sim.crash()
    operator.call(Decode(pid, 1))
    twin = spawn(sim, operator)
    assert row(sim, twin).table.frames[:2] == row(sim, pid).table.frames[:2]


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


# --- prefixes, between owners and within one ------------------------------------------------------------------------


def reused(sim: Simulation, program: Prog, tokens: list[int] = PROMPT, **more: object) -> int:
    """The tokens that a new process of a program finds computed already; it decodes what it should."""
    pid = pids.pid_of(program.uid or 0, program.call(Spawn("sim", tokens=tokens, sampler=Sampler(), **more)))  # type: ignore[arg-type]
    sim.run_idle()
    found = row(sim, pid).account.reused
    number = pids.number_of(pid) if program.uid else pid
    assert program.call(Decode(number, 9)).tokens == sim.continuation(tokens, 9)
    program.call(Kill(number, Signal.KILL))
    return found


def owners(sim: Simulation) -> tuple[Prog, Prog, Prog]:
    """Two programs of one user, and one of another."""
    return sim.program("alice", uid=1001), sim.program("alice's other", uid=1001), sim.program("bob", uid=1002)


def mapped(sim: Simulation, alice: Prog, **more: object) -> int:
    return alice.call(Spawn("sim", tokens=PROMPT, sampler=Sampler(), **more))  # type: ignore[arg-type]


def test_frames_are_found_within_an_owner_and_never_by_another() -> None:
    sim = simulate(options={"swap": slots(64)})
    alice, again, bob = owners(sim)
    mapped(sim, alice)
    sim.run_idle()
    assert (reused(sim, bob), reused(sim, again)) == (0, 32)
    assert reused(sim, sim.program()) == 0, "nor by the operator"
    assert reused(sim, sim.program("tenant", uid=1001, tenant="acme")) == 0
    alice.disconnect()
    sim.run_idle()
    assert (reused(sim, bob), reused(sim, again)) == (32, 32), "each finds his own, which nobody maps any more"
    assert reused(sim, sim.program(uid=1003)) == 0


def test_what_comes_back_from_a_lower_tier_is_found_within_an_owner_only() -> None:
    sim = simulate(options={"swap": slots(64)})
    alice, again, bob = owners(sim)
    pid = mapped(sim, alice)
    sim.run_idle()
    alice.call(Kill(pid, Signal.STOP))
    sim.run_idle()
    image = row(sim, pids.pid_of(1001, pid)).mapped
    (cached,) = image.pool._cached
    for frame in list(cached):  # nothing is left of it but its places
        del cached[frame]
        image.pool.prefix.unname(frame)
        image.pool._free.append(frame)
        image.pool._held[0] -= 1
    alice.call(Kill(pid, Signal.CONT))
    alice.call(Decode(pid, 1))
    assert sim.kernel.counters["moved_in"]
    assert (reused(sim, bob), reused(sim, again)) == (0, 32)


def test_what_comes_from_a_file_is_found_within_an_owner_only(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vouching(monkeypatch)
    sim = simulate()
    alice, again, bob = owners(sim)
    pid = mapped(sim, alice)
    sim.run_idle()
    alice.call(Checkpoint(pid, file))
    alice.call(Kill(pid, Signal.KILL))
    bob_pid = pids.pid_of(1002, bob.call(Restore(file)))
    assert (row(sim, bob_pid).account.reused, row(sim, bob_pid).table.cached) == (0, 39), "he reads the file"
    other = simulate()
    alice, again, bob = owners(other)
    restored = alice.call(Restore(file))
    assert alice.call(Getinfo(restored)).cached == 39
    assert (reused(other, bob), reused(other, again)) == (0, 32)


def test_what_was_moved_to_another_device_is_found_within_an_owner_only() -> None:
    sim = simulate(devices=2)
    alice, again, bob = owners(sim)
    pid = mapped(sim, alice)
    sim.run_idle()
    alice.call(Setsched(pid, device="sim1"))
    assert alice.call(Getinfo(pid)).cached == 39
    assert (reused(sim, bob, device="sim1"), reused(sim, again, device="sim1")) == (0, 32)


def test_owners_share_where_both_say_so() -> None:
    config = {f"/users/{uid}/open": GroupSettings(share_prefixes=True) for uid in (1001, 1002)}
    sim = simulate(groups=config)
    alice, _, bob = owners(sim)
    mapped(sim, alice, group="/users/1001/open")
    sim.run_idle()
    assert reused(sim, bob) == 0, "his group does not say so"
    assert reused(sim, bob, group="/users/1002/open") == 32
    mapped(sim, bob, group="")
    sim.run_idle()
    assert reused(sim, alice) == 0, "what is not shared is not found"


def test_a_process_of_another_owner_that_is_forked_begins_without_frames() -> None:
    sim = simulate()
    alice, _, bob = owners(sim)
    pid = pids.pid_of(1001, mapped(sim, alice))
    sim.run_idle()
    operator = sim.program()
    (child,) = operator.call(Fork(pid))
    sim.run_idle()
    frames = set(row(sim, pid).table.frames)
    assert not frames & set(row(sim, child).table.frames)
    assert row(sim, child).table.owner == sim.kernel.owners.operator.salt
    assert operator.call(Decode(child, 9)).tokens == sim.continuation(PROMPT, 9)
    assert bob.call(Decode(mapped(sim, bob), 9)).tokens == sim.continuation(PROMPT, 9)


def test_a_shared_frame_that_another_owner_writes_is_wiped_before_the_first_gets_it() -> None:
    shared = Group(settings=GroupSettings(share_prefixes=True))
    pool, log = FramePool(2), log_of(range(64))
    first, second = (table_of(shared, Owner(f"{uid}", uid, "", uid)) for uid in (1, 2))
    first.extend(pool, 16)
    first.computed(pool, log, 16)
    assert second.reuse(pool, log) == 16
    first.cut(pool, 0)
    second.cut(pool, 8)
    second.extend(pool, 8)  # in the frame that the first one had written
    second.cut(pool, 0)
    first.extend(pool, 32)
    assert pool.to_wipe() == [0]


# --- frames at work -------------------------------------------------------------------------------------------------


def test_no_owner_gets_a_frame_with_anything_of_another() -> None:
    """The simulated device remembers what is in its frames, and the invariants whose each one is."""
    sim = simulate(frames=6, options={"swap": slots(16)})
    memory = sim.driver().device._memory
    alice, _, bob = owners(sim)
    seen: list[tuple[int, int]] = []
    wipe = memory.wipe
    memory.wipe = lambda frames: (seen.extend(frames), wipe(frames))[1]  # type: ignore[method-assign]
    before = sim.driver().device._images
    for turn in range(3):
        for program in (alice, bob):
            assert reused(sim, program, [turn, 7, *range(70)]) == 0
    (image,) = before.values()
    assert len(seen) >= 5, "frames went to and fro"
    assert all(number in before for number, _ in seen)
    pool = next(iter(sim.kernel.devices["sim0"].images.values())).pool
    assert {pool.owners[frame] for frame in image.tokens} <= {owner.salt for owner in sim.kernel.owners}


def test_with_one_owner_nothing_is_wiped() -> None:
    sim = simulate(frames=6, options={"swap": slots(16)})
    program = sim.program()
    for turn in range(3):
        assert reused(sim, program, [turn, 7, *range(70)]) == 0
    assert not any(step.wipes for step in sim.steps)

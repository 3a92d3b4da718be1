"""A process is destroyed: what the kernel and the device knew of it is gone, and nothing else is."""

from __future__ import annotations

import pytest

from llmasos.simulator import FRAME_BYTES, simulate
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.pids import pid_of
from llmasos.syscalls.records import Kind, Sampler
from llmasos.syscalls.table import Decode, Feed, Fork, Getinfo, Kill, Ps, Read, Records, Shred, ShredOwner, Spawn, Wait
from tests.kernel.journaled import log_of, reboot

PROMPT = list(range(1, 41))
SAMPLER = Sampler(seed=7)


def test_its_log_its_records_and_its_name_are_gone_and_its_parent_can_wait_for_it() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", PROMPT, SAMPLER, name="secret", records=[b"words"]))
    program.call(Decode(pid, 20))
    told = program.call(Shred(pid))
    assert any("log of 60 tokens and its 1 records" in text for text in told.gone)
    assert program.call(Read(pid)).tokens == []
    assert program.call(Records(pid)).records == []
    assert "secret" not in {row.name for row in program.call(Ps())}
    assert "shredded" in program.call(Wait(pid)).reason
    with pytest.raises(SyscallError) as caught:
        program.call(Getinfo(pid))
    assert caught.value.errno is Errno.ESRCH


def test_its_frames_hold_nothing_any_more_and_nobody_finds_them_by_a_prefix() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", PROMPT, SAMPLER))
    program.call(Decode(pid, 20))
    (driver,) = sim.drivers.values()
    (image,) = driver.device._images.values()
    assert any(image.tokens.values())
    program.call(Shred(pid))
    assert not any(image.tokens.values())
    again = program.call(Spawn("sim", PROMPT, SAMPLER))
    assert program.call(Decode(again, 20)).tokens == sim.continuation(PROMPT, 20, SAMPLER)
    assert program.call(Getinfo(again)).usage.reused == 0


def test_a_fork_keeps_its_log_and_the_frames_that_it_shares_and_that_is_said() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", PROMPT, SAMPLER))
    program.call(Decode(pid, 8))
    (child,) = program.call(Fork(pid, same_seed=True))
    told = program.call(Shred(pid))
    assert any("blocks that other processes have too" in text for text in told.left)
    wanted = sim.continuation(PROMPT, 28, SAMPLER)
    assert program.call(Decode(child, 20)).tokens == wanted[8:]


def test_what_still_waits_for_its_model_is_not_shredded_and_the_books_stay_right() -> None:
    sim = simulate()  # which holds the books against the rows at every event
    program = sim.program()
    waiting = program.start(Spawn("sim:context=128", PROMPT, records=[b"words"], detached=True))
    (pid,) = (row.pid for row in program.call(Ps()) if row.kind is Kind.LLM)
    assert not waiting.done
    with pytest.raises(SyscallError) as caught:
        program.call(Shred(pid))
    assert caught.value.errno is Errno.EBUSY
    sim.run_until(lambda: waiting.done)
    program.call(Shred(waiting.value))
    sim.run_idle()


def test_what_has_not_got_its_model_back_is_shredded_too() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", PROMPT))
    sim.file.devices[0].image_kv_bytes = FRAME_BYTES  # the next kernel has no room for its context
    reboot(sim, program)
    sim.run_for(1.0)
    assert "has not got its model back" in "".join(line.text for line in sim.log)
    program.call(Shred(pid))
    assert program.call(Read(pid)).tokens == []


def test_in_a_step_it_ends_at_the_boundary_and_the_call_that_waits_for_its_decode_is_told() -> None:
    sim = simulate()
    program, other = sim.program(), sim.program()
    pid = program.call(Spawn("sim", PROMPT, SAMPLER))
    decode_ = program.start(Decode(pid, 400))
    sim.run_until(lambda: len(log_of(sim, pid)) > len(PROMPT) + 5)
    told = other.call(Shred(pid))
    assert told.gone
    assert decode_.done
    assert program.call(Read(pid)).tokens == []


def test_a_zombie_can_be_shredded_and_a_process_of_nobody_is_esrch() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", PROMPT, SAMPLER))
    program.call(Kill(pid))
    assert program.call(Read(pid)).tokens == PROMPT
    program.call(Shred(pid))
    assert program.call(Read(pid)).tokens == []
    with pytest.raises(SyscallError) as caught:
        program.call(Shred(pid + 50))
    assert caught.value.errno is Errno.ESRCH


def test_an_owner_s_processes_are_destroyed_with_his_tenants_and_nobody_else_s() -> None:
    sim = simulate()
    ann, eve = sim.program(uid=1001), sim.program(uid=1001, tenant="eve")
    ben, operator = sim.program(uid=1002), sim.program()
    mine, hers, his = (one.call(Spawn("sim", PROMPT, SAMPLER, detached=True)) for one in (ann, eve, ben))
    zombie = ann.call(Spawn("sim", PROMPT, SAMPLER))
    ann.call(Kill(zombie))
    reaped = ann.call(Spawn("sim", PROMPT, SAMPLER, detached=True))
    ann.call(Decode(reaped, 8))
    ann.call(Kill(reaped))
    ann.call(Wait(reaped))  # of which only answers tell
    running = ann.start(Decode(mine, 400))
    sim.run_until(lambda: len(log_of(sim, pid_of(1001, mine))) > len(PROMPT) + 5)
    (child,) = operator.call(Fork(pid_of(1001, hers), detached=True))
    for who in (ben, eve):
        with pytest.raises(SyscallError) as caught:
            who.call(ShredOwner("1001"))
        assert caught.value.errno is Errno.ESRCH
    waiting = ann.start(Spawn("sim:context=128", PROMPT, detached=True))
    told = operator.call(ShredOwner("1001"))
    assert any("1001" in text for text in told.gone)
    assert any("programs that are connected" in text for text in told.left)
    assert (running.done, waiting.errno) == (True, Errno.EINTR)
    assert sim.saved is not None
    for pid in (mine, zombie):
        assert ann.call(Read(pid)).tokens == []
    for number in (mine, zombie, hers):
        process = sim.saved.processes.get(pid_of(1001, number))
        assert process is None or not len(process.log)
    spaces = {pid_of(1001, number) for number in (mine, zombie, hers, reaped)}
    answers = [one for program in sim.saved.programs.values() for one in program.answers if one.about in spaces]
    assert all(len(one.value) < 8 for one in answers)
    assert ben.call(Read(his)).tokens == PROMPT
    assert operator.call(Read(child)).tokens == PROMPT
    again = ann.call(Spawn("sim", PROMPT, SAMPLER))
    reboot(sim, ann)
    assert ann.call(Decode(again, 20)).tokens == sim.continuation(PROMPT, 20, SAMPLER)


def test_what_only_processes_of_the_owner_shared_is_gone_with_them_and_not_said_to_be_left() -> None:
    sim = simulate()
    ann, operator = sim.program(uid=1001), sim.program()
    pid = ann.call(Spawn("sim", PROMPT, SAMPLER, detached=True))
    ann.call(Decode(pid, 8))
    ann.call(Fork(pid, same_seed=True, detached=True))
    ann.call(Spawn("sim", PROMPT, SAMPLER, detached=True))
    told = operator.call(ShredOwner("1001"))
    assert not [text for text in told.left if "blocks that other processes have too" in text]
    (driver,) = sim.drivers.values()
    (image,) = driver.device._images.values()
    assert not any(image.tokens.values())


@pytest.mark.parametrize("uid", [None, 1001])  # whose numbers are his own
def test_after_the_kernel_s_death_nothing_of_it_comes_back_and_its_answers_tell_nothing(uid: int | None) -> None:
    sim = simulate()
    program = sim.program(uid=uid)
    pid = program.call(Spawn("sim", PROMPT, SAMPLER))
    other = program.call(Spawn("sim", PROMPT, SAMPLER))
    program.call(Decode(pid, 8))
    program.call(Feed(other, [5]))
    program.call(Shred(pid))
    assert sim.saved is not None
    known = pid_of(uid or 0, pid)
    saved = sim.saved.processes[known]
    assert not saved.log
    assert not saved.records
    kept = [answer for one in sim.saved.programs.values() for answer in one.answers if answer.about == known]
    assert kept
    assert all(len(answer.value) < 8 or answer.call == 32 for answer in kept)
    reboot(sim, program)
    assert program.call(Read(other)).tokens == [*PROMPT, 5]
    assert program.call(Read(pid)).tokens == []

"""A journal that is older than what a program was told: the program hears so, and nothing else is told in its place."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from llmasos.kernel.edge.machine import boot_name, stamp
from llmasos.kernel.journal import positions, records
from llmasos.kernel.journal.records import Frame
from llmasos.kernel.journal.state import State
from llmasos.simulator import Prog, Simulation, simulate
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Attach, Feed, Null, Read, Spawn


def lose(sim: Simulation, kept: State) -> None:
    """The kernel ends, and the next one finds what the journal had a while ago."""
    sim.kill()
    sim.boot_again(kept)


def errno_of(program: Prog) -> Errno:
    with pytest.raises(SyscallError) as caught:
        program.come_back()
    return caught.value.errno


def test_a_program_that_was_told_what_is_lost_hears_estale_with_the_position() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", [1, 2, 3]))
    kept = copy.deepcopy(sim.saved)
    assert kept is not None
    assert program.call(Feed(pid, [4])) == 4
    lost = program.seen
    lose(sim, kept)
    with pytest.raises(SyscallError, match=rf"ESTALE.*told of record {positions.told(lost)}.*up to") as caught:
        program.come_back()
    assert positions.told(kept.position) in caught.value.reason
    assert any("was told of record" in line.text and line.level == "error" for line in sim.log)


def test_a_journal_knows_the_last_positions_of_sixteen_kernels() -> None:
    sim = simulate()
    assert sim.saved is not None
    told = []
    for _ in range(20):
        sim.program().call(Spawn("sim", [1]))
        told.append(sim.saved.position)
        sim.kill()
        sim.boot_again()
    assert [positions.end(sim.saved.ends, one) for one in told[:4]] == [None] * 4
    assert [positions.end(sim.saved.ends, one) for one in told[-15:]] == told[-15:]
    assert len(sim.saved.ends) == 16


def test_what_only_others_were_told_is_no_affair_of_a_program() -> None:
    sim = simulate()
    mine, others = sim.program(), sim.program()
    pid = mine.call(Spawn("sim", [1, 2, 3]))
    kept = copy.deepcopy(sim.saved)
    assert kept is not None
    others.call(Spawn("sim", [1, 2, 3]))
    lose(sim, kept)
    mine.come_back()
    assert mine.call(Read(pid)).tokens == [1, 2, 3]
    assert errno_of(others) is Errno.ESTALE


def test_what_a_program_read_counts_as_much_as_what_it_did() -> None:
    sim = simulate()
    writer, reader = sim.program(), sim.program()
    pid = writer.call(Spawn("sim", [1, 2, 3]))
    kept = copy.deepcopy(sim.saved)
    assert kept is not None
    writer.call(Feed(pid, [4]))
    assert reader.call(Read(pid)).length == 4
    lose(sim, kept)
    assert errno_of(reader) is Errno.ESTALE


def test_what_was_told_by_a_kernel_and_lost_is_stale_for_all_later_ones_too() -> None:
    """Their positions go further, but are others."""
    sim = simulate()
    program, busy = sim.program(), sim.program()
    pid = busy.call(Spawn("sim", [1], detached=True))
    kept = copy.deepcopy(sim.saved)
    assert kept is not None
    program.call(Null())
    program.call(Spawn("sim", [1, 2, 3]))
    lose(sim, kept)
    later = sim.program()
    for token in range(20):
        later.call(Feed(pid, [token]))
    sim.kill()
    sim.boot_again()
    later.come_back()
    assert errno_of(program) is Errno.ESTALE


def test_a_program_that_heard_estale_goes_on_with_what_there_is_if_it_says_so() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", [1, 2, 3]))
    kept = copy.deepcopy(sim.saved)
    assert kept is not None
    program.call(Feed(pid, [4]))
    lose(sim, kept)
    assert errno_of(program) is Errno.ESTALE
    program.seen = 0
    program.come_back()
    assert program.call(Read(pid)).tokens == [1, 2, 3]


def test_a_pid_that_was_given_out_and_is_lost_is_not_given_again() -> None:
    sim = simulate()
    program = sim.program()
    kept = copy.deepcopy(sim.saved)
    assert kept is not None
    lost = program.call(Spawn("sim", [1, 2, 3]))
    lose(sim, kept)
    assert errno_of(program) is Errno.ESTALE
    assert sim.program().pid >= positions.beyond(lost)


def test_where_a_loss_is_known_at_boot_pids_are_left_out_at_once() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", [1]))
    sim.kill()
    kept = copy.deepcopy(sim.saved)
    assert kept is not None
    kept.lost = True
    sim.boot_again(kept)
    program.come_back()
    assert program.call(Spawn("sim", [1])) >= positions.beyond(pid)


def test_a_program_that_does_not_keep_positions_gets_none_and_comes_back_as_ever() -> None:
    sim = simulate()
    program = sim.connection()
    info = program.call(Attach("old"))
    program.pid, program.ticket = info.pid, info.ticket
    kept = copy.deepcopy(sim.saved)
    assert kept is not None
    pid = program.call(Spawn("sim", [1, 2, 3]))
    assert program.seen == 0
    lose(sim, kept)
    program.seen = -1
    program.come_back()
    with pytest.raises(SyscallError, match="ESRCH"):
        program.call(Read(pid))


def test_positions_outlive_compaction_and_the_frames_of_before_there_were_any() -> None:
    old = records.decode(records.encode(Frame(5, [records.Pids(7)]))[:-1].replace(b"\x93", b"\x92", 1))
    state = State(b"key")
    state.apply(old)
    assert (state.next_pid, state.position) == (7, 0)
    sim = simulate()
    sim.program().call(Spawn("sim", [1, 2, 3], detached=True))
    assert sim.saved is not None
    again = State(b"")
    for frame in sim.saved.snapshot():
        again.apply(records.decode(records.encode(frame)))
    assert not sim.saved.difference(again)
    assert again.position == sim.saved.position > positions.first(1)


def test_a_journal_of_an_earlier_boot_of_the_machine_or_a_damaged_one_may_lack_something(tmp_path: Path) -> None:
    def found(machine: str, *, damaged: bool = False) -> bool:
        state = State(b"key", machine=machine)
        stamp(state, damaged=damaged)
        assert state.boot > 0
        return state.lost

    assert not found("")
    assert not found(boot_name())
    assert found("another")
    assert found(boot_name(), damaged=True)

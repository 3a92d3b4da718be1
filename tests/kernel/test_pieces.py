"""What one event may take: work on very many processes goes on in pieces, and means what it would mean done at once."""

from __future__ import annotations

import pytest

from llmasos.kernel import pieces
from llmasos.kernel.events import KeyRevoked
from llmasos.kernel.objects.device import UP
from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.pieces import held
from llmasos.simulator import Future, Prog, Simulation, simulate
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import Signal, WaitFor
from llmasos.syscalls.table import Attach, Decode, Evict, Exit, GroupCreate, GroupKill, GroupMove, Kill, Null, Spawn

MANY = 40
FEW = 8  # in a piece
KEY = b"k" * 32  # of a program on another machine


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "AT_ONCE", FEW)


def living(sim: Simulation) -> dict[int, LLMProcess]:
    return {one.pid: one for one in sim.kernel.table if isinstance(one, LLMProcess) and not one.is_zombie()}


def decoding(sim: Simulation, program: Prog) -> list[int]:
    """Very many processes that decode."""
    pids = [program.call(Spawn("sim", [1 + number, 2, 3])) for number in range(MANY)]
    for pid in pids:
        program.call(Decode(pid, 200, wait=False))
    return pids


def steps(sim: Simulation) -> int:
    """The number of the latest step."""
    flight = sim.kernel.device_named("").in_flight
    return flight.step.ref if flight is not None else 0


def test_a_signal_to_very_many_leaves_room_for_others_and_no_step_begins_before_all_have_it() -> None:
    sim = simulate()
    program, other = sim.program(), sim.program()
    pids = decoding(sim, program)
    call, begun = program.start(GroupKill("/users", Signal.STOP)), steps(sim)
    most = before = 0
    heard = other.start(Null())
    while not call.done:
        sim.step()
        now = sum(one.stopped for one in living(sim).values())
        most, before = max(most, now - before), now
        assert steps(sim) in (begun, 0) or call.done
        assert before == MANY or heard.done or before <= FEW
    assert call.value == MANY
    assert 0 < most <= FEW
    assert all(living(sim)[pid].stopped for pid in pids)


def test_signals_to_very_many_one_after_the_other_do_not_keep_others_from_the_device() -> None:
    sim = simulate()
    program, other = sim.program(), sim.program()
    program.call(GroupCreate("/users/many"))
    for number in range(MANY):
        program.call(GroupMove(program.call(Spawn("sim", [1 + number])), "/users/many"))
    pid = other.call(Spawn("sim", [1, 2, 3]))
    sim.run_idle()
    calls = [program.start(GroupKill("/users/many", Signal.CONT)) for _ in range(3)]
    sim.run_until(lambda: held(sim.kernel))
    decode = other.start(Decode(pid, 1))
    sim.run_until(lambda: calls[0].done)
    assert steps(sim)
    assert not calls[1].done
    sim.run_until(lambda: decode.done)
    assert calls[2].value == MANY


@pytest.mark.parametrize("signal", [Signal.KILL, Signal.TERM])
def test_who_comes_into_a_group_while_it_is_killed_is_killed_too(signal: Signal) -> None:
    sim = simulate()
    program, other = sim.program(), sim.program()
    pids = decoding(sim, program)
    call = program.start(GroupKill("/users", signal))
    came: list[Future[int]] = []
    while not call.done:
        sim.step()
        if len(living(sim)) < MANY and not call.done and len(came) < 3:
            came.append(other.start(Spawn("sim", [9, 9, 9])))
    assert came
    sim.run_idle()
    assert call.value >= MANY
    assert not living(sim).keys() & {*pids, *(one.value for one in came if one.done and one.at < call.at)}


def test_a_group_kill_that_is_taken_back_stops_where_it_is() -> None:
    sim = simulate()
    program = sim.program()
    pids = decoding(sim, program)
    call = program.start(GroupKill("/users", Signal.KILL))
    sim.run_until(lambda: len(living(sim)) < MANY)
    call.cancel()
    sim.run_until(lambda: call.done)
    assert call.errno is Errno.EINTR
    left = sorted(living(sim))
    assert 0 < len(left) < MANY
    assert left == pids[-len(left) :]
    one = living(sim)[left[0]]
    had = len(one.log)
    sim.run_until(lambda: len(one.log) > had)


def test_a_program_with_very_many_children_has_its_row_until_all_were_told_to_end() -> None:
    sim = simulate()
    program, other = sim.program(), sim.program()
    decoding(sim, program)
    program.disconnect()
    heard, before = other.start(Null()), MANY
    while children := sim.kernel.table.children(program.pid):
        assert before - len(children) <= FEW
        before = len(children)
        assert program.pid in sim.kernel.table
        sim.step()
    assert heard.done
    sim.run_idle()
    assert not living(sim)
    assert program.pid not in sim.kernel.table


def leaving(*, away: bool = False) -> tuple[Simulation, Prog, Prog]:
    """Somebody, and a program of another machine with very many children that is ending."""
    sim = simulate()
    watch, far = sim.program(), sim.connection()
    far.key = KEY
    info = far.call(Attach("far", seen=0))
    far.pid, far.ticket = info.pid, info.ticket
    decoding(sim, far)
    far.disconnect(cut=away)
    sim.run_until(lambda: len(living(sim)) < MANY, sim.kernel.config.cut_grace + 1)
    assert living(sim)
    return sim, watch, far


@pytest.mark.parametrize("away", [False, True])
def test_nobody_takes_up_by_its_ticket_a_program_that_is_ending(away: bool) -> None:
    sim, _, far = leaving(away=away)
    again = sim.connection()
    again.key = KEY
    came = again.start(Attach("far", ticket=far.ticket, seen=0))
    sim.run_until(lambda: came.done)
    assert came.errno is Errno.ESRCH
    sim.run_idle()
    assert not living(sim)
    assert far.pid not in sim.kernel.table


@pytest.mark.parametrize("away", [False, True])
def test_a_program_that_is_ending_ends_once_whoever_ends_it_too(away: bool) -> None:
    sim, watch, far = leaving(away=away)
    killed = watch.start(Kill(far.pid, Signal.KILL))
    sim.event(KeyRevoked(KEY))
    sim.run_idle()
    assert killed.value is None
    assert far.pid not in sim.kernel.table


def test_who_attaches_again_by_its_connection_is_not_ended_with_what_it_was() -> None:
    sim = simulate()
    watch, far = sim.program(), sim.connection()
    far.key = KEY
    old = far.call(Attach("old", seen=0)).pid
    decoding(sim, far)
    far.start(Exit(old))
    came, killed = far.start(Attach("new", seen=0)), watch.start(Kill(old, Signal.KILL))
    sim.run_until(lambda: came.done and killed.done)
    assert old in sim.kernel.table
    sim.run_idle()
    assert old not in sim.kernel.table
    assert far.call(Null()) is None


def test_children_whose_program_was_ending_when_the_kernel_died_are_ended_by_the_next() -> None:
    sim = simulate()
    program = sim.program()
    decoding(sim, program)
    program.disconnect()
    sim.run_until(lambda: len(living(sim)) < MANY)
    assert living(sim)
    sim.kill()
    sim.boot_again()
    sim.run_until(lambda: not living(sim))
    sim.run_until(lambda: program.pid not in sim.kernel.table)


def test_very_many_processes_of_a_device_that_comes_up_go_on_some_in_each_event_with_their_tokens() -> None:
    sim = simulate()
    program, other = sim.program(), sim.program()
    pids = [program.call(Spawn("sim", [1 + number, 2, 3])) for number in range(MANY)]
    calls = [program.start(Decode(pid, 12)) for pid in pids]
    sim.run_for(0.002)
    sim.crash()
    at_most: set[int] = set()
    while not all(call.done for call in calls):
        before = {one.pid: one.wait for one in living(sim).values()}
        up = sim.kernel.device_named("").state == UP
        sim.step()
        after = living(sim)
        if up:
            at_most.add(sum(before[pid] is WaitFor.DEVICE and after[pid].wait is not WaitFor.DEVICE for pid in pids))
    assert 0 < max(at_most) <= FEW
    assert [call.value.tokens for call in calls] == [sim.continuation([1 + number, 2, 3], 12) for number in range(MANY)]
    assert other.call(Null()) is None


def test_no_step_is_planned_while_processes_are_queued_whose_weights_have_gone() -> None:
    sim = simulate()
    program = sim.program()
    pids = [program.call(Spawn("sim", [1 + number, 2, 3])) for number in range(MANY)]
    calls = [program.start(Decode(pid, 12)) for pid in pids]
    gone, waited = program.start(Evict("sim", force=True)), 0
    while not all(call.done for call in calls):
        sim.step()
        waited += held(sim.kernel)
        assert not (held(sim.kernel) and steps(sim))
    assert gone.done
    assert waited >= MANY // FEW - 1
    for number, call in enumerate(calls):
        assert call.value.tokens == sim.continuation([1 + number, 2, 3], 12)

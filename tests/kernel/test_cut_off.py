"""Programs on other machines whose connection is cut while their kernel runs: it waits for them for a while, and they
go on where they were; nobody else can take their place."""

from __future__ import annotations

from typing import Any

import pytest

from llmasos.kernel.events import KeyRevoked, KeysFound
from llmasos.kernel.journal import state
from llmasos.simulator import Prog, Simulation, simulate
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Kind, Signal, State, WaitFor
from llmasos.syscalls.table import Attach, Decode, Exit, Feed, Getinfo, Kill, Leave, Null, Ps, Read, Spawn, Wait

ADA, BOB = b"a" * 32, b"b" * 32


def remote(sim: Simulation, key: bytes = ADA) -> Prog:
    """A program that has come by a key."""
    program = sim.connection()
    program.key = key
    info = program.call(Attach("far", seen=0))
    program.pid, program.ticket = info.pid, info.ticket
    return program


def journaled(**config: Any) -> tuple[Simulation, Prog, Prog]:
    """A kernel with a journal, whoever looks at it, and a program on another machine."""
    sim = simulate(**config)
    assert sim.kernel.secret
    return sim, sim.program("watch"), remote(sim)


def test_a_program_that_was_cut_off_goes_on_with_its_processes_and_its_calls_are_answered_once() -> None:
    sim, watch, far = journaled()
    pid = far.call(Spawn("sim", [1, 2, 3]))
    decode, wait = far.start(Decode(pid, 400)), far.start(Wait(pid))
    sim.run_for(0.01)
    assert not decode.done
    far.disconnect(cut=True)
    row = watch.call(Getinfo(far.pid))
    assert (row.state, row.wait) == (State.BLOCKED, WaitFor.RETURN)
    sim.run_idle()  # its decode ends while it is away
    assert len(watch.call(Read(pid)).tokens) == 403
    far.come_back()
    assert watch.call(Getinfo(far.pid)).wait is not WaitFor.RETURN
    sim.run_idle()
    assert decode.value.tokens == watch.call(Read(pid)).tokens[3:]
    far.call(Exit(pid, 7))
    sim.run_idle()
    assert wait.value.status == 7
    sim.run_for(sim.kernel.config.cut_grace + 1)
    assert far.call(Null()) is None
    assert not sim.kernel.away


def test_answers_that_were_lost_on_their_way_are_given_again_and_nothing_is_done_twice() -> None:
    sim, _, far = journaled()
    pid = far.call(Spawn("sim", [1]))
    feed = far.start(Feed(pid, [2]))
    sim.run_idle()
    assert feed.done
    feed.reply = None  # as far as the program knows
    far.disconnect(cut=True)
    far.come_back()
    sim.run_idle()
    assert feed.value == 2
    assert far.call(Read(pid)).tokens == [1, 2]


def test_a_call_that_waits_for_a_process_of_nobodys_ends_while_its_program_is_away() -> None:
    sim, watch, far = journaled()
    pid = watch.call(Spawn("sim", [1], detached=True))
    wait = far.start(Wait(pid))
    far.disconnect(cut=True)
    watch.call(Exit(pid, 5))
    sim.run_idle()
    far.come_back()
    sim.run_idle()
    assert wait.value.status == 5


def test_what_was_taken_back_while_it_was_away_is_taken_back_when_it_is_there_again() -> None:
    sim, _, far = journaled()
    pid = far.call(Spawn("sim", [1]))
    wait = far.start(Wait(pid))
    far.disconnect(cut=True)
    far.come_back()
    wait.cancel()
    sim.run_idle()
    with pytest.raises(SyscallError) as caught:
        _ = wait.value
    assert caught.value.errno is Errno.EINTR


@pytest.mark.parametrize("key", [BOB, b""], ids=["another key", "no key"])
def test_nobody_else_takes_its_place_though_he_has_its_ticket(key: bytes) -> None:
    sim, _, far = journaled()
    far.disconnect(cut=True)
    thief = sim.connection()
    thief.key = key
    with pytest.raises(SyscallError) as caught:
        thief.call(Attach("thief", ticket=far.ticket, seen=0))
    assert caught.value.errno is Errno.ESRCH
    far.come_back()
    assert far.call(Null()) is None


def test_one_that_knows_of_the_cut_before_its_kernel_does_takes_its_own_place() -> None:
    sim, _, far = journaled()
    pid = far.call(Spawn("sim", [1]))
    wait, old = far.start(Wait(pid)), far.peer
    far.connected = False
    far.come_back()
    assert old not in sim.kernel.programs
    far.call(Kill(pid))
    sim.run_idle()
    assert wait.value.pid == pid


def test_one_that_does_not_come_back_in_time_ends_with_its_processes() -> None:
    sim, watch, far = journaled()
    pid = far.call(Spawn("sim", [1]))
    stays = far.call(Spawn("sim", [1], detached=True))
    far.disconnect(cut=True)
    sim.run_for(sim.kernel.config.cut_grace - 1)
    assert {pid, far.pid} <= {row.pid for row in watch.call(Ps())}
    sim.run_for(2)
    rows = {row.pid for row in watch.call(Ps())}
    assert stays in rows
    assert not {pid, far.pid} & rows
    assert not sim.kernel.away
    with pytest.raises(SyscallError, match="after its connection was cut"):
        far.come_back()


def test_one_that_leaves_ends_at_once_and_so_does_one_whose_key_is_revoked_while_it_is_away() -> None:
    sim, watch, far = journaled()
    other = remote(sim, BOB)
    pids = [one.call(Spawn("sim", [1])) for one in (far, other)]
    far.call(Leave())
    far.disconnect(cut=True)
    assert {row.pid for row in watch.call(Ps()) if row.kind is Kind.LLM} == {pids[1]}
    other.disconnect(cut=True)
    sim.event(KeyRevoked(ADA))
    assert sim.kernel.away
    sim.event(KeyRevoked(BOB))
    assert {row.kind for row in watch.call(Ps())}.isdisjoint({Kind.LLM})
    assert not sim.kernel.away


def test_those_who_are_away_take_places_of_the_process_table() -> None:
    sim, _, _ = journaled(max_processes=40)
    refused: list[Errno] = []
    while not refused:
        assert len(sim.kernel.away) < 40
        try:
            remote(sim).disconnect(cut=True)
        except SyscallError as error:
            refused.append(error.errno)
    assert refused == [Errno.EAGAIN]
    sim.run_for(sim.kernel.config.cut_grace + 1)
    remote(sim)


def test_without_a_grace_it_ends_at_once() -> None:
    _, watch, far = journaled(cut_grace=0.0)
    pid = far.call(Spawn("sim", [1]))
    far.disconnect(cut=True)
    assert pid not in {row.pid for row in watch.call(Ps())}


def test_one_that_is_away_when_its_kernel_dies_comes_back_to_the_next_by_its_own_key_alone() -> None:
    sim, watch, far = journaled()
    pid = far.call(Spawn("sim", [1, 2]))
    far.disconnect(cut=True)
    sim.kill()
    sim.boot_again()
    watch.come_back()
    far.key = BOB
    with pytest.raises(SyscallError):
        far.come_back()
    far.key = ADA
    far.come_back()
    assert far.call(Read(pid)).tokens == [1, 2]


@pytest.mark.parametrize("signal", [Signal.KILL, Signal.TERM])
def test_one_that_is_away_can_be_ended_by_a_signal_and_by_no_other_than_these(signal: Signal) -> None:
    sim, watch, far = journaled()
    pid = far.call(Spawn("sim", [1]))
    far.disconnect(cut=True)
    with pytest.raises(SyscallError, match="on another machine"):
        watch.call(Kill(far.pid, Signal.INT))
    watch.call(Kill(far.pid, signal))
    assert not {pid, far.pid} & {row.pid for row in watch.call(Ps())}
    assert not sim.kernel.away
    with pytest.raises(SyscallError) as caught:
        far.come_back()
    assert caught.value.errno is Errno.ESRCH


@pytest.mark.parametrize("signal", [Signal.KILL, Signal.TERM])
def test_one_that_is_connected_is_ended_by_a_signal_that_cannot_reach_it_and_hears_of_no_way_back(signal: Signal) -> None:
    sim, watch, far = journaled()
    pid = far.call(Spawn("sim", [1]))
    far.start(Wait(pid))
    with pytest.raises(SyscallError, match=r"on another machine.* KILL and TERM end its connection") as caught:
        watch.call(Kill(far.pid, Signal.STOP))
    assert caught.value.errno is Errno.EINVAL
    watch.call(Kill(far.pid, signal))
    assert not {pid, far.pid} & {row.pid for row in watch.call(Ps())}
    assert not far.connected, "its connection is cut off"
    assert not sim.kernel.away
    with pytest.raises(SyscallError) as caught:
        far.come_back()
    assert caught.value.errno is Errno.ESRCH


def test_one_that_ends_itself_so_is_gone() -> None:
    _, watch, far = journaled()
    far.start(Kill(far.pid))
    assert far.pid not in {row.pid for row in watch.call(Ps())}


@pytest.mark.parametrize("away", [True, False], ids=["it was away before", "it was connected"])
def test_a_key_that_is_revoked_after_a_boot_ends_those_who_have_not_come_back_by_it(away: bool) -> None:
    sim, watch, far = journaled()
    other = remote(sim, BOB)
    pids = [one.call(Spawn("sim", [1])) for one in (far, other)]
    if away:
        far.disconnect(cut=True)
    sim.kill()
    sim.boot_again()
    watch.come_back()
    sim.event(KeyRevoked(ADA))
    assert {row.pid for row in watch.call(Ps()) if row.kind is Kind.LLM} == {pids[1]}
    other.come_back()
    assert other.call(Read(pids[1])).tokens == [1]
    with pytest.raises(SyscallError):
        far.come_back()


def test_a_key_that_was_revoked_while_no_kernel_ran_ends_those_who_came_by_it() -> None:
    sim, watch, far = journaled()
    other = remote(sim, BOB)
    pids = [one.call(Spawn("sim", [1])) for one in (far, other, watch)]
    sim.kill()
    sim.boot_again()
    sim.event(KeysFound(frozenset({BOB})))
    watch.come_back()
    assert {row.pid for row in watch.call(Ps()) if row.kind is Kind.LLM} == set(pids[1:])


def test_what_is_kept_of_one_that_is_cut_off_again_and_again_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "MAX_PARKED_CALLS", 2)
    sim, _, far = journaled()
    pid = far.call(Spawn("sim", [1]))
    for _ in range(3):
        for _ in range(4):
            far.call(Feed(pid, [2]))
        far.disconnect(cut=True)
        assert len(sim.kernel.away[far.pid].to_replay) == 2
        far.come_back()

"""Grants: rights on one process in other hands, passed on narrower, taken back with all that was made of them."""

from __future__ import annotations

from typing import Any

import pytest

from llmasos.kernel.events import Reply
from llmasos.simulator import Prog, simulate
from llmasos.syscalls import budgets, limits
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.pids import MARK, parse, pid_of, shown
from llmasos.syscalls.records import GrantInfo, Kind, Limits, Right, Signal
from llmasos.syscalls.table import (
    Accept,
    Attach,
    BootInfoCall,
    Call,
    Checkpoint,
    Decode,
    Dmesg,
    Feed,
    Fork,
    Getinfo,
    Grant,
    Grants,
    GroupCreate,
    GroupMove,
    GroupStat,
    Kill,
    Models,
    Ps,
    Read,
    Rename,
    Revoke,
    Setlimits,
    Spawn,
    StatsCall,
    Trace,
    Wait,
)
from tests.kernel.neighbours import ANN, BEN, CID, CONTROL, LIMITS, READ, SEE, Neighbours, errno_of, refused


def hand(giver: Prog, pid: int, taker: Prog, rights: int) -> GrantInfo:
    """A right goes from one program to another."""
    made = giver.call(Grant(pid, str(taker.uid), rights))
    return taker.call(Accept(made.ticket))


class Room(Neighbours):
    """Ann's process, and two others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.number = self.ann.call(Spawn("sim", [1, 2, 3], name="hers", detached=True))
        self.pid = pid_of(ANN, self.number)  # as others know it


@pytest.fixture
def room() -> Room:
    return Room()


# --- what a grant gives ---------------------------------------------------------------------------------------------


def test_who_was_granted_reading_reads_and_does_nothing_else(room: Room) -> None:
    ben, pid = room.ben, room.pid
    assert errno_of(ben, Read(pid)) is Errno.ESRCH
    taken = hand(room.ann, room.number, ben, READ)
    assert (taken.pid, taken.rights, taken.holder) == (pid, SEE | READ, ben.pid)
    assert ben.call(Read(pid)).tokens == [1, 2, 3]
    row = ben.call(Getinfo(pid))
    assert (row.pid, row.name) == (pid, "hers")
    assert pid in [one.pid for one in ben.call(Ps())]
    assert pid not in [one.pid for one in room.cid.call(Ps())]
    for call in (Feed(pid, [4]), Decode(pid, 1), Kill(pid, Signal.KILL), Setlimits(pid, Limits(tokens=1))):
        assert errno_of(ben, call) is Errno.EPERM
    (child,) = ben.call(Fork(pid))
    assert ben.call(Read(child)).tokens == [1, 2, 3]
    assert room.sim.kernel.table.llm(pid_of(BEN, child)).owner.name == str(BEN)


def test_the_rows_that_were_granted_are_paged_like_all_others(room: Room) -> None:
    for number in [room.number, *(room.ann.call(Spawn("sim", [1])) for _ in range(3))]:
        hand(room.ann, number, room.ben, SEE)
    room.ben.call(Spawn("sim", [1]))
    whole, paged = [row.pid for row in room.ben.call(Ps())], list[int]()
    while page := room.ben.call(Ps(after=paged[-1] if paged else 0, limit=2)):
        paged += [row.pid for row in page]
    assert sorted(paged) == sorted(whole)
    assert len(set(paged)) == len(paged)


def test_a_process_of_the_operator_has_a_name_for_others_that_is_none_of_theirs() -> None:
    sim = simulate(256)
    operator, ben = sim.program(), sim.program(uid=BEN)
    pid = operator.call(Spawn("sim", [7, 8], detached=True))
    while (own := ben.call(Spawn("sim", [1], detached=True))) < pid:
        pass
    taken = hand(operator, pid, ben, READ | CONTROL)
    assert (shown(taken.pid), parse(f"0:{pid}")) == (f"0:{pid}", taken.pid)
    assert ben.call(Read(taken.pid)).tokens == [7, 8]
    assert ben.call(Getinfo(taken.pid)).pid == taken.pid
    assert operator.call(Getinfo(MARK | pid)).pid == pid
    waits = ben.start(Read(taken.pid, 2, follow=True))
    with pytest.raises(SyscallError, match=f"on process 0:{pid},"):
        ben.call(Setlimits(taken.pid, Limits(tokens=1)))
    operator.call(Revoke(taken.handle))
    with pytest.raises(SyscallError, match=f"the grant on process 0:{pid} was taken back"):
        _ = waits.value
    assert own != taken.pid


def test_a_ticket_is_good_once_and_for_its_owner_only(room: Room) -> None:
    made = room.ann.call(Grant(room.number, str(BEN), READ))
    eve = room.sim.program(uid=BEN, tenant="eve")
    for other in (room.cid, room.ann, eve):
        assert errno_of(other, Accept(made.ticket)) is Errno.ESRCH
    for wrong in (b"", made.ticket[:-1], made.ticket + b"\0", bytes(16), made.ticket[:8] + bytes(8)):
        assert errno_of(room.ben, Accept(wrong)) is Errno.ESRCH
    room.ben.call(Accept(made.ticket))
    assert errno_of(room.ben, Accept(made.ticket)) is Errno.ESRCH
    assert room.ann.call(Grants())[0].ticket == b""
    for_eve = room.ann.call(Grant(room.number, f"{BEN}/eve", READ))
    assert errno_of(room.ben, Accept(for_eve.ticket)) is Errno.ESRCH
    eve.call(Accept(for_eve.ticket))
    assert eve.call(Read(room.pid)).tokens == [1, 2, 3]


def test_nobody_passes_on_what_is_not_in_his_hands(room: Room) -> None:
    assert errno_of(room.ben, Grant(room.pid, str(CID), READ)) is Errno.ESRCH
    hand(room.ann, room.number, room.ben, READ | CONTROL)
    assert errno_of(room.ben, Grant(room.pid, str(CID), LIMITS | READ)) is Errno.EPERM
    hand(room.ben, room.pid, room.cid, READ)
    assert room.cid.call(Read(room.pid)).tokens == [1, 2, 3]
    assert errno_of(room.cid, Grant(room.pid, str(BEN), CONTROL)) is Errno.EPERM
    looker = room.sim.program("looker", Right.QUERY, uid=ANN)
    assert errno_of(looker, Grant(room.number, str(BEN), READ)) is Errno.EPERM


def test_a_refusal_names_the_rights_that_are_missing_and_no_others(room: Room) -> None:
    hand(room.ann, room.number, room.ben, READ)
    shown = f"{ANN}:{room.number}"
    for call, words in (
        (Kill(room.pid, Signal.KILL), f"kill needs the right CONTROL on process {shown}, "),
        (Setlimits(room.pid, Limits(tokens=1)), f"setlimits needs the right LIMITS on process {shown}, "),
        (
            Grant(room.pid, str(CID), LIMITS | READ),
            f"no grant of yours has the rights READ and LIMITS on process {shown}, ",
        ),
    ):
        assert words in refused(room.ben, call)[1]


# --- taking back ----------------------------------------------------------------------------------------------------


def test_what_is_taken_back_goes_with_all_that_was_made_of_it_in_one_event(room: Room) -> None:
    sim, ann, ben, cid, pid = room.sim, room.ann, room.ben, room.cid, room.pid
    first = hand(ann, room.number, ben, READ | CONTROL)
    hand(ben, pid, cid, READ)
    unused = ben.call(Grant(pid, str(CID), READ))
    assert cid.call(Read(pid, 0)).tokens == [1, 2, 3]
    calls: list[tuple[Prog, Call[Any]]] = [
        (ben, Read(pid, 3, follow=True)),
        (cid, Read(pid, 3, follow=True)),
        (ben, Wait(pid)),
    ]
    waiting = [program.start(call) for program, call in calls]
    own = ann.start(Read(room.number, 3, follow=True))
    assert not any(one.done for one in waiting)
    future = ann.prepare(Revoke(first.handle))
    actions = sim.kernel.handle(ann.event(future), sim.clock)
    replies = [action for action in actions if isinstance(action, Reply)]
    assert [reply.errno for reply in replies] == [Errno.EPERM] * 3 + [Errno.OK]  # and the answer to `revoke` is the last
    assert replies[-1].synced
    sim._act(actions)
    assert future.value == 3
    assert not own.done
    for program in (ben, cid):
        assert errno_of(program, Read(pid)) is Errno.ESRCH
        assert pid not in [row.pid for row in program.call(Ps())]
        assert program.call(Grants()) == []
    assert errno_of(cid, Accept(unused.ticket)) is Errno.ESRCH
    assert errno_of(ann, Revoke(first.handle)) is Errno.ESRCH
    ann.call(Feed(room.number, [4]))
    assert own.value.tokens == [4]


def test_a_decode_by_a_grant_ends_with_it_and_its_tokens_stay(room: Room) -> None:
    taken = hand(room.ann, room.number, room.ben, READ | CONTROL)
    decode = room.ben.start(Decode(room.pid, 100))
    room.sim.run_for(0.05)
    assert not decode.done
    length = room.ann.call(Getinfo(room.number)).length
    room.ann.call(Revoke(taken.handle))
    assert decode.errno is Errno.EPERM
    room.sim.run_for(1.0)
    row = room.ann.call(Getinfo(room.number))
    assert not row.decoding
    assert row.length >= length > 3
    room.ann.call(Decode(room.number, 2))


@pytest.mark.parametrize("uid", [None, ANN], ids=["operator's", "ann's"])
def test_a_decode_that_waits_since_an_earlier_kernel_ends_with_its_grant_too(uid: int | None) -> None:
    sim = simulate(256)
    giver, ben = sim.program(uid=uid), sim.program(uid=BEN)
    made = hand(giver, giver.call(Spawn("sim", [1, 2, 3], detached=True)), ben, READ | CONTROL)
    decode = ben.start(Decode(made.pid, 300))
    sim.run_for(0.02)
    sim.kill()
    sim.boot_again()
    sim.run_for(0.06)
    giver.come_back()
    ben.come_back()
    sim.run_for(0.01)
    assert not decode.done
    giver.call(Revoke(made.handle))
    assert decode.errno is Errno.EPERM


def test_a_right_that_is_held_twice_is_lost_with_the_second_one(room: Room) -> None:
    one, two = (hand(room.ann, room.number, room.ben, READ) for _ in range(2))
    waits = room.ben.start(Read(room.pid, 3, follow=True))
    room.ann.call(Revoke(one.handle))
    assert not waits.done
    room.ann.call(Revoke(two.handle))
    assert waits.errno is Errno.EPERM


def test_holders_take_back_what_they_passed_on_and_their_own_but_nothing_else(room: Room) -> None:
    first = hand(room.ann, room.number, room.ben, READ)
    second = hand(room.ben, room.pid, room.cid, READ)
    other = hand(room.ann, room.number, room.cid, CONTROL)
    assert errno_of(room.cid, Revoke(first.handle)) is Errno.ESRCH
    assert errno_of(room.ben, Revoke(other.handle)) is Errno.ESRCH
    assert [one.handle for one in room.ben.call(Grants())] == sorted([first.handle, second.handle])
    assert {(one.handle, one.parent) for one in room.cid.call(Grants())} == {(second.handle, 0), (other.handle, 0)}
    everybody = sorted([first.handle, second.handle, other.handle])
    assert [one.handle for one in room.sim.program().call(Grants())] == everybody
    assert [one.handle for one in room.ann.call(Grants(after=everybody[0], limit=1))] == [everybody[1]]
    assert room.ben.call(Revoke(second.handle)) == 1
    assert room.cid.call(Revoke(other.handle)) == 1
    assert room.ann.call(Revoke(first.handle)) == 1


def test_a_grant_ends_with_the_program_that_holds_it_and_with_the_process(room: Room) -> None:
    hand(room.ann, room.number, room.ben, READ)
    hand(room.ben, room.pid, room.cid, READ)
    waits = room.cid.start(Read(room.pid, 3, follow=True))
    room.ben.disconnect()
    assert waits.errno is Errno.EPERM
    assert room.ann.call(Grants()) == []
    hand(room.ann, room.number, room.cid, READ)
    room.ann.disconnect()  # who made the first one may go: it is his owner's
    assert room.cid.call(Read(room.pid)).tokens == [1, 2, 3]
    ann = room.sim.program(uid=ANN)
    ann.call(Kill(room.number, Signal.KILL))
    assert room.cid.call(Read(room.pid)).tokens == [1, 2, 3]  # a zombie's log can be read
    ann.call(Wait(room.number))
    assert errno_of(room.cid, Read(room.pid)) is Errno.ESRCH
    assert len(room.sim.kernel.grants) == 0


# --- bounds ---------------------------------------------------------------------------------------------------------


def test_a_right_is_passed_on_so_many_times_and_no_more(room: Room) -> None:
    giver, pid = room.ann, room.number
    for step in range(limits.MAX_GRANT_DEPTH):
        taker = room.sim.program(uid=2000 + step)
        hand(giver, pid, taker, READ)
        giver, pid = taker, room.pid
    assert giver.call(Read(pid)).tokens == [1, 2, 3]
    assert errno_of(giver, Grant(pid, str(BEN), READ)) is Errno.EDQUOT
    assert errno_of(room.ann, Grant(room.number, "9" * 10, READ)) is Errno.EINVAL


def test_what_was_refused_and_what_is_used_stands_in_stats(room: Room) -> None:
    for level, whose in (("each", f"process {room.number}"), ("owner", "owner 1001"), ("all", "all owners")):
        before = getattr(budgets.GRANTS, level)
        object.__setattr__(budgets.GRANTS, level, 2)
        try:
            made = [room.ann.call(Grant(room.number, str(BEN), READ)) for _ in range(2)]
            with pytest.raises(SyscallError, match=f"grants of {whose}: 2 of at most 2") as caught:
                room.ann.call(Grant(room.number, str(BEN), READ))
            assert caught.value.errno is Errno.EDQUOT
        finally:
            object.__setattr__(budgets.GRANTS, level, before)
        for one in made:
            room.ann.call(Revoke(one.handle))
    told = {row.name: row for row in room.ann.call(StatsCall()).budgets}["grants"]
    assert (told.used, told.refused) == (0, 3)


# --- confined programs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uid", [None, ANN])
def test_a_confined_program_reaches_what_it_was_granted_and_nothing_else(uid: int | None) -> None:
    sim = simulate(256)
    parent = sim.program(uid=uid)
    mine, other = (parent.call(Spawn("sim", [1, 2], detached=True)) for _ in range(2))
    child = sim.program("tool", uid=uid)
    child.call(Attach(confined=True))
    to = str(uid if uid is not None else sim.kernel.owners.operator.name)
    child.call(Accept(parent.call(Grant(mine, to, READ | CONTROL)).ticket))
    assert len(child.call(Decode(mine, 3)).tokens) == 3
    rows = child.call(Ps())
    assert {row.pid for row in rows} == {1, child.pid, mine}
    assert all(row.kind in (Kind.INIT, Kind.PROGRAM, Kind.LLM) for row in rows)
    for pid in (other, parent.pid):
        assert errno_of(child, Getinfo(pid)) is Errno.ESRCH
        assert errno_of(child, Kill(pid, Signal.KILL)) is Errno.ESRCH
    refused: list[Call[Any]] = [
        Spawn("sim", [1]), Fork(mine), Checkpoint(mine, "/tmp/x"), Trace(), Dmesg(), StatsCall(),
        GroupStat("/"), Setlimits(mine, Limits()), Kill(1, Signal.KILL), Grant(mine, str(BEN), LIMITS),
    ]  # fmt: skip
    for call in refused:
        assert errno_of(child, call) is Errno.EPERM, call
    assert [row.path for row in child.call(Models())] == ["sim"]
    child.call(Attach())  # does not undo it
    assert errno_of(child, Getinfo(other)) is Errno.ESRCH
    assert child.call(BootInfoCall()).journal_path == ""
    sim.kill()
    sim.boot_again()
    for program in (parent, child):
        program.come_back()
    assert errno_of(child, Getinfo(other)) is Errno.ESRCH
    assert len(child.call(Decode(mine, 3)).tokens) == 3
    (taken,) = child.call(Grants())
    parent.call(Revoke(taken.handle))
    assert errno_of(child, Decode(mine, 3)) is Errno.ESRCH
    assert {row.pid for row in child.call(Ps())} == {1, child.pid}
    assert child.call(Models()) == []


@pytest.mark.parametrize("rights", [CONTROL, CONTROL | READ])
def test_who_renames_a_process_is_told_its_old_name_if_he_may_read_it(room: Room, rights: int) -> None:
    hand(room.ann, room.number, room.ben, rights)
    assert room.ben.call(Rename(room.pid, "x")) == ("hers" if rights & READ else "")
    assert room.ann.call(Rename(room.number, "y")) == "x"


@pytest.mark.parametrize("rights", [CONTROL, CONTROL | LIMITS, READ | CONTROL | LIMITS])
def test_a_grant_takes_no_process_into_a_group_whose_limits_are_the_holders(room: Room, rights: int) -> None:
    hand(room.ann, room.number, room.ben, rights)
    room.ben.call(GroupCreate("/users/1002/jail"))
    for group in ("/users/1002/jail", "/users/1002", ""):
        assert errno_of(room.ben, GroupMove(room.pid, group)) is Errno.EPERM
    operator = room.sim.program()
    assert errno_of(operator, GroupMove(room.pid, "/users/1002/jail")) is Errno.EPERM  # nor by a slip of his
    operator.call(GroupCreate("/users/team"))
    operator.call(GroupMove(room.pid, "/users/team"))
    room.ann.call(GroupCreate("/users/1001/here"))
    room.ann.call(GroupMove(room.number, "/users/1001/here"))
    assert room.ann.call(Getinfo(room.number)).group == "/users/1001/here"


# --- the journal ----------------------------------------------------------------------------------------------------


def test_grants_survive_the_kernel_and_so_do_revocations(room: Room) -> None:
    sim, ann, ben, cid = room.sim, room.ann, room.ben, room.cid
    first = hand(ann, room.number, ben, READ | CONTROL)
    second = hand(ben, room.pid, cid, READ)
    waiting = ann.call(Grant(room.number, str(CID), CONTROL))
    left = sorted(one.handle for one in (first, second, waiting))
    gone = hand(ann, room.number, ben, LIMITS)
    ann.call(Revoke(gone.handle))
    for _ in range(2):
        sim.kill()
        sim.boot_again()
        for program in (ann, ben, cid):
            program.come_back()
        assert ben.call(Read(room.pid)).tokens == [1, 2, 3]
        assert errno_of(ben, Setlimits(room.pid, Limits(tokens=5))) is Errno.EPERM
        assert [one.handle for one in ann.call(Grants())] == left
    again = ann.call(Grant(room.number, str(BEN), READ))
    assert again.handle not in (gone.handle, first.handle)
    cid.call(Accept(waiting.ticket))
    cid.call(Feed(room.pid, [4]))
    assert ann.call(Revoke(first.handle)) == 2
    sim.kill()
    sim.boot_again()
    for program in (ann, ben, cid):
        program.come_back()
    assert errno_of(ben, Read(room.pid)) is Errno.ESRCH
    assert errno_of(cid, Read(room.pid)) is Errno.EPERM

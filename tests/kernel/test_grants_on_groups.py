"""Grants on groups, and grants that end by the wall clock."""

from __future__ import annotations

from typing import Any

import pytest

from llmasos.kernel.events import Wall, WallAt
from llmasos.kernel.objects.grant import Grants as Table
from llmasos.simulator import Future
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.pids import pid_of
from llmasos.syscalls.records import GrantInfo, GroupSettings, Limits, Signal
from llmasos.syscalls.table import (
    Accept,
    Call,
    Decode,
    Detach,
    Feed,
    Getinfo,
    Grant,
    Grants,
    GroupCreate,
    GroupKill,
    GroupMove,
    GroupRemove,
    GroupSet,
    GroupStat,
    Kill,
    Ps,
    Read,
    Revoke,
    Setlimits,
    Spawn,
    Wait,
)
from tests.kernel.neighbours import ANN, BEN, CID, CONTROL, LIMITS, READ, Neighbours, errno_of

TEAM, INNER = f"/users/{ANN}/team", f"/users/{ANN}/team/inner"


class Room(Neighbours):
    """Ann's groups, a process in each, and two others; Ben was granted reading and control on the outer one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for path in (TEAM, INNER):
            self.ann.call(GroupCreate(path))
        self.number, self.inner, self.outside = (self.spawn(path) for path in (TEAM, INNER, f"/users/{ANN}"))
        made = self.ann.call(Grant(0, str(BEN), READ | CONTROL, TEAM))
        assert (made.pid, made.group) == (0, TEAM)
        self.taken: GrantInfo = self.ben.call(Accept(made.ticket))

    def spawn(self, group: str) -> int:
        return self.ann.call(Spawn("sim", [1, 2, 3], group=group, detached=True))


@pytest.fixture
def room() -> Room:
    return Room()


def known(number: int) -> int:
    return pid_of(ANN, number)


# --- groups ---------------------------------------------------------------------------------------------------------


def test_a_grant_on_a_group_covers_what_is_in_it_now_and_what_comes_later(room: Room) -> None:
    ben = room.ben
    later = room.spawn(INNER)
    for number in (room.number, room.inner, later):
        assert ben.call(Read(known(number))).tokens == [1, 2, 3]
        assert known(number) in [row.pid for row in ben.call(Ps())]
        assert errno_of(ben, Setlimits(known(number), Limits(tokens=1))) is Errno.EPERM
    for hidden in (room.outside, room.ann.pid):
        assert errno_of(ben, Getinfo(known(hidden))) is Errno.ESRCH
        assert known(hidden) not in [row.pid for row in ben.call(Ps())]
    room.ann.call(GroupMove(room.outside, TEAM))
    assert len(ben.call(Decode(known(room.outside), 2)).tokens) == 2
    assert [row.pid for row in ben.call(Ps(after=known(room.inner), limit=2))] == [known(room.outside), known(later)]


def test_what_leaves_the_group_is_not_covered_any_more_and_whoever_waits_for_it_is_told(room: Room) -> None:
    ann, ben, cid, pid = room.ann, room.ben, room.cid, known(room.number)
    cid.call(Accept(ben.call(Grant(pid, str(CID), READ)).ticket))  # a grant on the process, made of that on the group
    waiting = [one.start(Read(pid, 3, follow=True)) for one in (ben, cid)]
    other = ben.start(Read(known(room.inner), 3, follow=True))
    ann.call(GroupMove(room.number, INNER))  # still within it
    assert not any(one.done for one in waiting)
    ann.call(GroupMove(room.number, f"/users/{ANN}"))
    assert [one.errno for one in waiting] == [Errno.EPERM, Errno.EPERM]
    assert not other.done
    for one in (ben, cid):
        assert errno_of(one, Getinfo(pid)) is Errno.ESRCH
    assert cid.call(Grants()) == []
    ann.call(GroupMove(room.number, TEAM))
    assert ben.call(Read(pid)).tokens == [1, 2, 3]
    assert errno_of(cid, Read(pid)) is Errno.ESRCH  # what was made of it has ended for good


def test_it_passes_on_less_of_the_group_and_never_more(room: Room) -> None:
    ben, cid = room.ben, room.cid
    assert errno_of(ben, Grant(0, str(CID), READ, f"/users/{ANN}")) is Errno.EPERM
    assert errno_of(ben, Grant(0, str(CID), LIMITS, INNER)) is Errno.EPERM
    assert errno_of(cid, Grant(0, str(BEN), READ, TEAM)) is Errno.ENOENT  # to him it is not there
    cid.call(Accept(ben.call(Grant(0, str(CID), READ, INNER)).ticket))
    assert cid.call(Read(known(room.inner))).tokens == [1, 2, 3]
    assert errno_of(cid, Read(known(room.number))) is Errno.ESRCH
    waits = cid.start(Read(known(room.inner), 3, follow=True))
    assert room.ann.call(Revoke(room.taken.handle)) == 2
    assert waits.errno is Errno.EPERM


def test_the_group_itself_is_seen_and_not_changed(room: Room) -> None:
    ben = room.ben
    (row,) = ben.call(GroupStat(TEAM))
    assert (row.path, row.processes, row.kv) == (TEAM, [known(room.number)], 0)
    assert {one.path for one in ben.call(GroupStat(TEAM, below=True))} == {TEAM, INNER}
    assert errno_of(room.cid, GroupStat(TEAM)) is Errno.ENOENT
    calls: list[Call[Any]] = [
        GroupSet(TEAM, GroupSettings(tokens_total=1)), GroupKill(TEAM), GroupCreate(f"{TEAM}/x"), GroupRemove(INNER),
        Spawn("sim", [1], group=TEAM), GroupMove(0, TEAM),
    ]  # fmt: skip
    for call in calls:
        assert errno_of(ben, call) is Errno.EPERM, call


def test_nobody_moves_what_he_was_granted_into_his_own_group_nor_his_own_into_that_one(room: Room) -> None:
    ben = room.ben
    ben.call(Accept(room.ann.call(Grant(0, str(BEN), READ | CONTROL | LIMITS, TEAM)).ticket))
    ben.call(GroupCreate(f"/users/{BEN}/mine"))
    own = ben.call(Spawn("sim", [1], detached=True))
    for pid, path in ((known(room.number), f"/users/{BEN}/mine"), (own, TEAM), (known(room.number), f"/users/{ANN}")):
        assert errno_of(ben, GroupMove(pid, path)) is Errno.EPERM


def test_it_reaches_nothing_of_those_who_are_over_the_owner_of_the_group(room: Room) -> None:
    operator = room.sim.program()
    theirs = operator.call(Spawn("sim", [7], group=TEAM, detached=True))
    for call in (Getinfo(pid_of(0, theirs)), Read(1 << 62 | theirs)):
        assert errno_of(room.ben, call) is Errno.ESRCH


def test_it_ends_with_the_group_and_with_the_session_that_is_one(room: Room) -> None:
    ann, ben = room.ann, room.ben
    session = ann.call(Getinfo()).group
    mine = ann.call(Spawn("sim", [1, 2]))
    ben.call(Accept(ann.call(Grant(0, str(BEN), READ, session)).ticket))
    assert ben.call(Read(known(mine))).tokens == [1, 2]
    ann.disconnect()
    assert [one.group for one in ben.call(Grants())] == [TEAM]
    again = room.sim.program(uid=ANN)
    for number in (room.number, room.inner):
        again.call(Kill(number, Signal.KILL))
    room.sim.run_idle()
    again.call(GroupRemove(INNER))
    again.call(GroupRemove(TEAM))
    assert ben.call(Grants()) == []
    again.call(GroupCreate(TEAM))  # one of the same name is another one
    number = again.call(Spawn("sim", [1], group=TEAM))
    again.call(Detach(number))
    assert errno_of(ben, Getinfo(known(number))) is Errno.ESRCH


def test_it_survives_the_kernel(room: Room) -> None:
    room.cid.call(Accept(room.ben.call(Grant(known(room.number), str(CID), READ)).ticket))
    room.sim.kill()
    room.sim.boot_again()
    for program in (room.ann, room.ben, room.cid):
        program.come_back()
    for one in (room.ben, room.cid):
        assert one.call(Read(known(room.number))).tokens == [1, 2, 3]
    later = room.spawn(INNER)
    assert room.ben.call(Read(known(later))).tokens == [1, 2, 3]
    room.ann.call(GroupMove(room.number, f"/users/{ANN}"))
    assert errno_of(room.cid, Read(known(room.number))) is Errno.ESRCH


def test_a_grant_is_on_one_thing_for_one_receiver(room: Room) -> None:
    for call in (Grant(0, str(BEN), READ), Grant(room.number, str(BEN), READ, TEAM), Grant(room.number, "", READ)):
        assert errno_of(room.ann, call) is Errno.EINVAL


# --- ends -----------------------------------------------------------------------------------------------------------


def test_a_grant_ends_at_its_time_as_if_it_were_taken_back_then(room: Room) -> None:
    sim, ann, ben, cid, pid = room.sim, room.ann, room.ben, room.cid, known(room.outside)
    made = ann.call(Grant(room.outside, str(BEN), READ | CONTROL, seconds=10.0))
    assert made.until == pytest.approx(sim.wall / 1e9 + 10.0)
    ben.call(Accept(made.ticket))
    passed = ben.call(Grant(pid, str(CID), READ, seconds=60.0))
    assert passed.until == made.until  # no longer than what it was made of
    cid.call(Accept(passed.ticket))
    waiting: list[Future[Any]] = [
        ben.start(Read(pid, 3, follow=True)),
        cid.start(Read(pid, 3, follow=True)),
        ben.start(Wait(pid)),
    ]
    sim.run_for(9.9)
    assert not any(one.done for one in waiting)
    (row,) = cid.call(Grants())
    assert row.until == made.until
    assert row.left == pytest.approx(0.1)
    sim.ahead -= 3600.0  # the machine's clock is set back: what it says is not what is left
    assert cid.call(Grants())[0].left == pytest.approx(0.1)
    sim.ahead += 3600.0
    sim.run_for(0.2)
    assert [one.errno for one in waiting] == [Errno.EPERM] * 3
    for one in (ben, cid):
        assert errno_of(one, Getinfo(pid)) is Errno.ESRCH
    assert [one.group for one in ann.call(Grants())] == [TEAM]  # that has no end


def test_a_ticket_that_nobody_took_in_time_is_worth_nothing(room: Room) -> None:
    made = room.ann.call(Grant(room.outside, str(BEN), READ, seconds=5.0))
    room.sim.ahead += 5.0
    assert errno_of(room.ben, Accept(made.ticket)) is Errno.ESRCH


def test_time_goes_on_while_no_kernel_runs(room: Room) -> None:
    sim, ben = room.sim, room.ben
    short, long = (
        ben.call(Accept(room.ann.call(Grant(room.outside, str(BEN), rights, seconds=seconds)).ticket))
        for rights, seconds in ((READ, 60.0), (CONTROL, 7200.0))
    )
    sim.kill()
    sim.ahead += 3600.0
    sim.boot_again()
    assert {one.number for one in sim.kernel.grants} == {room.taken.handle, long.handle}
    for program in (room.ann, room.ben, room.cid):
        program.come_back()
    assert errno_of(ben, Read(known(room.outside))) is Errno.EPERM
    assert errno_of(ben, Revoke(short.handle)) is Errno.ESRCH
    assert ben.call(Feed(known(room.outside), [4])) == 4


def test_a_clock_that_is_set_back_makes_no_grant_longer(room: Room) -> None:
    sim, kernel = room.sim, room.sim.kernel
    room.ann.call(Grant(room.outside, str(BEN), READ, seconds=10.0))
    shown = kernel.wall
    sim.event(Wall(shown - 3600 * 10**9))
    assert kernel.wall == shown
    sim.kill()
    sim.ahead -= 3600.0  # while no kernel ran
    sim.boot_again()
    assert sim.kernel.wall == shown
    sim.event(Wall(shown + 10 * 10**9))
    assert {one.until for one in sim.kernel.grants} == {0}


def test_the_wall_clock_is_asked_once_for_the_end_that_comes_first(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, act = list[int | None](), room.sim._act

    def look(actions: list[Any], **how: bool) -> None:
        asked.extend(action.at for action in actions if isinstance(action, WallAt))
        act(actions, **how)

    monkeypatch.setattr(room.sim, "_act", look)
    for length in (20.0, 10.0, 30.0):
        room.ann.call(Grant(room.outside, str(BEN), READ, seconds=length))
        room.ann.call(Getinfo(0))
    twenty, ten, thirty = (one.until for one in room.sim.kernel.grants if one.until)
    assert ten < twenty < thirty
    assert asked == [twenty, ten]


# --- lists -----------------------------------------------------------------------------------------------------------


def test_who_has_few_grants_does_not_go_through_those_of_others(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(50):
        room.ann.call(Grant(room.number, str(CID), READ))
    room.sim.checked = False  # the invariants do

    def walk(self: Table) -> Any:
        raise AssertionError("all grants are gone through")

    monkeypatch.setattr(Table, "__iter__", walk)
    assert len(room.ben.call(Grants())) == 1
    assert room.cid.call(Grants()) == []
    operator = room.sim.program()
    pages = [operator.call(Grants(limit=20))]
    while len(pages[-1]) == 20:
        pages.append(operator.call(Grants(after=pages[-1][-1].handle, limit=20)))
    assert [len(page) for page in pages] == [20, 20, 11]

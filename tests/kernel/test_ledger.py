"""The ledger of control groups, and what is asked of it before a charge, against a recount and the definitions."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import pytest

from llmasos.kernel.clock import SECOND
from llmasos.kernel.groups.group import NICE_0_WEIGHT, Group, GroupTree
from llmasos.kernel.objects.owner import Owner
from llmasos.syscalls.budgets import GROUPS, LOGS
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.limits import MAX_GROUP_DEPTH
from llmasos.syscalls.records import GroupSettings

SIZES = {1: 3, 2: 5, 3: 7}  # bytes of the weights of images


@dataclass
class Recount:
    """What was charged to each group itself."""

    kv: int = 0
    swap: int = 0
    logs: int = 0
    tokens: int = 0
    pids: dict[int, int] = field(default_factory=dict)  # pid -> bytes of its log
    images: list[int] = field(default_factory=list)


def tree() -> GroupTree:
    return GroupTree("ann", Owner("1000", 1000, "", 1, operator=True))


def of(groups: list[Group], group: Group) -> list[int]:
    """The places of the groups in the subtree of a group."""
    return [at for at, one in enumerate(groups) if any(above is group for above in one.lineage())]


def refuses(check: object, *arguments: object) -> Errno | None:
    try:
        check(*arguments)  # type: ignore[operator]
    except SyscallError as error:
        return error.errno
    return None


def act(dice: random.Random, group: Group, own: Recount, pid: int) -> None:
    """Something is charged to a group, or given back."""
    size = dice.randrange(1, 4)
    match dice.randrange(9):
        case 0:
            group.charge_kv(size)
            own.kv += size
        case 1:
            group.charge_kv(-min(size, own.kv))
            own.kv -= min(size, own.kv)
        case 2:
            group.charge_swap(size)
            own.swap += size
        case 3:
            group.charge_logs(size)
            own.logs += size
        case 4:
            group.charge_tokens(size, 0)
            own.tokens += size
        case 5:
            group.enter(pid, size)
            own.pids[pid] = size
        case 6 if own.pids:
            gone = dice.choice(list(own.pids))
            group.leave(gone, own.pids.pop(gone))
        case 7:
            image = dice.choice(list(SIZES))
            group.map_image(image, SIZES[image])
            own.images.append(image)
        case 8 if own.images:
            image = own.images.pop(dice.randrange(len(own.images)))
            group.unmap_image(image, SIZES[image])


def check(groups: list[Group], owns: list[Recount]) -> None:
    for group in groups:
        parts = [owns[at] for at in of(groups, group)]
        images = {image for part in parts for image in part.images}
        logs = sum(part.logs + sum(part.pids.values()) for part in parts)
        assert group.kv == sum(part.kv for part in parts)
        assert group.swap == sum(part.swap for part in parts)
        assert group.logs == logs
        assert group.tokens == sum(part.tokens for part in parts)
        assert group.pids == sum(len(part.pids) for part in parts)
        assert group.weights == sum(SIZES[image] for image in images)
        assert set(group.images) == images


def ask(dice: random.Random, group: Group) -> None:
    """Each question, against its definition: what just fits fits, and one more does not."""
    chain, more, image = list(group.lineage()), dice.randrange(1, 4), dice.choice(list(SIZES))
    limits = [(one, one.settings) for one in chain]
    rooms = [(settings.kv_max - one.kv, one) for one, settings in limits if settings.kv_max]
    room, narrowest = group.kv_room()
    if rooms:
        least = min(room for room, _ in rooms)
        assert (room, narrowest) == (max(0, least), next(one for room, one in rooms if room == least))
        assert group.kv_max == min(one.settings.kv_max for _, one in rooms)
        assert group.with_kv_max(group.kv_max).settings.kv_max == group.kv_max
    else:
        assert (narrowest, group.kv_max) == (None, 0)
        assert room > 1 << 60
    high = [one for one, settings in limits if settings.kv_high and one.kv > settings.kv_high]
    assert group.over_high() is (high[-1] if high else None)
    over = [one for one, settings in limits if settings.swap_max and one.swap + more > settings.swap_max]
    told = [one.events["swap_max"] for one in chain]
    assert group.may_swap(more) is not bool(over)
    assert [one.events["swap_max"] - was for one, was in zip(chain, told, strict=True)] == [
        int(bool(over) and one is over[0]) for one in chain
    ]
    heavy = [
        one
        for one, settings in limits
        if settings.weights_max and image not in one.images and one.weights + SIZES[image] > settings.weights_max
    ]
    assert refuses(group.check_weights, image, SIZES[image], "m") is (Errno.EDQUOT if heavy else None)
    many = [one for one, settings in limits if settings.pids_max and one.pids + more > settings.pids_max]
    assert refuses(group.check_pids, more) is (Errno.EAGAIN if many else None)
    other = dice.choice(chain)
    new = [one for one in many if one not in other.lineage()]
    assert refuses(group.check_pids, more, other) is (Errno.EAGAIN if new else None)
    spent = [one for one, settings in limits if settings.tokens_total and one.tokens >= settings.tokens_total]
    assert group.exhausted() is (spent[0] if spent else None)
    left = [settings.tokens_total - one.tokens for one, settings in limits if settings.tokens_total]
    assert group.tokens_left() == max(0, min(left)) if left else group.tokens_left() > 1 << 60


@pytest.mark.parametrize("seed", range(3))
def test_each_group_is_charged_for_its_subtree_and_what_just_fits_fits(seed: int) -> None:
    dice, groups = random.Random(seed), tree()
    made = [groups.create(groups.root, "a", GroupSettings())]
    for name in "bcdefg":
        made.append(groups.create(dice.choice(made), name, GroupSettings()))
    owns = [Recount() for _ in made]
    for number in range(500):
        at = dice.randrange(len(made))
        act(dice, made[at], owns[at], number)
        if dice.random() < 0.2:
            amounts: dict[str, Any] = {
                name: dice.choice([0, 0, dice.randrange(1, 60)])
                for name in ("kv_max", "kv_high", "swap_max", "weights_max", "tokens_total", "pids_max")
            }
            made[at].change(GroupSettings(**amounts))
        ask(dice, made[at])
        check(made, owns)


def test_logs_are_bounded_for_a_session_for_its_owner_and_for_all() -> None:
    groups, ben = tree(), Owner("1001", 1001, "", 2)
    session = groups.session(7, ben)
    below = groups.create(session, "below", GroupSettings())
    home, owns = session.parent, (LOGS.each, LOGS.owner, LOGS.all)
    assert home is not None
    assert home.owner is ben
    for group, most in zip((session, home, groups.root), owns, strict=True):
        group.logs = most - 10
        assert refuses(below.check_logs, 10) is None
        refused = group.refused
        assert refuses(below.check_logs, 11) is LOGS.errno
        assert group.refused == refused + 1
        group.logs = 0
    groups.system.logs = 1 << 60  # neither a session nor somebody's home
    assert refuses(groups.system.check_logs, 1) is None


def test_a_rate_gives_a_second_at_once_and_then_each_token_when_it_is_due() -> None:
    for rate in (1.0, 3.0, 250.5):
        group = tree().create(tree().root, "a", GroupSettings(tokens_max=rate))
        burst, now, taken = int(max(1, rate)), 5 * SECOND, 0
        while not (wait := group.wait(now)):
            assert group.allowance(now) >= 1
            group.charge_tokens(1, now)
            taken += 1
        assert taken == burst
        for number in range(1, 20):
            assert group.obstacle(now) is group
            early = copy.deepcopy(group)
            assert early.wait(now + wait - 1) == 1
            now += wait
            assert (
                abs(Fraction(now - 5 * SECOND) - Fraction(taken + 1 - Fraction(max(1, rate))) * SECOND / Fraction(rate))
                < 2
            )
            assert group.obstacle(now) is None
            group.charge_tokens(1, now)
            taken = burst + number
            wait = group.wait(now)
        assert group.time_for(1000) == pytest.approx(1000 / rate * SECOND, abs=1)
        now += 100 * SECOND
        assert group.allowance(now) == burst  # what was not used in a second is lost
        group.change(GroupSettings(tokens_max=rate * 2))
        assert group.allowance(now) == int(max(1, rate * 2))
        group.change(GroupSettings())
        assert group.wait(now) == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_share_is_the_product_over_the_levels_of_the_part_among_those_that_want_the_device(seed: int) -> None:
    dice, groups = random.Random(seed), tree()
    made = [groups.create(groups.root, "a", GroupSettings())]
    for name in "bcdef":
        made.append(groups.create(dice.choice(made), name, GroupSettings(cpu_weight=dice.choice([10, 100, 300]))))
    loads: list[list[int]] = [[] for _ in made]
    for _ in range(200):
        at = dice.randrange(len(made))
        if loads[at] and dice.random() < 0.45:
            made[at].add_load("d", -loads[at].pop())
        else:
            loads[at].append(dice.choice([15, 1024, 88761]) * 100)
            made[at].add_load("d", loads[at][-1])
        if dice.random() < 0.2:
            changed = dice.choice(made)
            changed.change(GroupSettings(cpu_weight=dice.choice([10, 100, 300])))
        whole: dict[str, int] = {}
        for group, own in reversed(list(zip(made, loads, strict=True))):
            wanting = [one for one in made if one.parent is group and whole[one.path]]
            whole[group.path] = sum(own) + sum(one.settings.cpu_weight * NICE_0_WEIGHT for one in wanting)
            assert group.load.get("d", 0) == whole[group.path]
        for group, own in zip(made, loads, strict=True):
            if own:
                due, weight, one = Fraction(1), own[0], group
                while one.parent is not None:
                    due *= Fraction(weight, whole[one.path])
                    weight, one = one.settings.cpu_weight * NICE_0_WEIGHT, one.parent
                assert Fraction(*group.share("d", own[0])) == due


def test_what_has_ended_is_paid_by_those_above_and_counted_by_nobody() -> None:
    groups = tree()
    a = groups.create(groups.root, "a", GroupSettings())
    b = groups.create(a, "b", GroupSettings())
    c = groups.create(b, "c", GroupSettings())
    inside = groups.root.inside
    c.charge_kv(3)
    assert (a.inside, b.inside, c.inside) == (2, 1, 0)
    b.end()
    b.end()  # harmless
    assert b.ended
    assert c.ended
    assert not a.ended
    assert (a.inside, groups.root.inside) == (0, inside - 2)
    assert (a.kv, a.children) == (3, {})
    c.charge_kv(-3)
    assert a.kv == 0
    assert list(c.lineage()) == [c, b, a, groups.root]


def test_groups_are_nested_and_numbered_up_to_their_bounds_and_no_further() -> None:
    groups = tree()
    group, depth = groups.root, 0
    while refuses(groups.create, group, "x", GroupSettings()) is None:
        group, depth = group.children["x"], depth + 1
    assert depth == MAX_GROUP_DEPTH
    session = groups.session(3, groups.root.owner)
    session.inside = GROUPS.each - 1
    assert refuses(groups.create, session, "last", GroupSettings()) is None
    before = groups.refused
    assert refuses(groups.create, session, "more", GroupSettings()) is Errno.EAGAIN
    assert groups.refused == before + 1

"""The trace and the kernel log: who sees what under which numbers, while it is listened to, and what falls out."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from llmasos.kernel.clock import SECOND
from llmasos.kernel.objects.owner import Owner
from llmasos.kernel.trace import Trace

OPERATOR, ANN = Owner("1000", 1000, "", 1, operator=True), Owner("1001", 1001, "", 2)
TENANT, BEN = Owner("1001/a", 1001, "a", 3, base=ANN), Owner("1002", 1002, "", 4)
EVENTS, LINES = 20, 5


def sees(reader: Owner, whose: Owner | None) -> bool:
    return reader is OPERATOR or whose is reader or (reader is ANN and whose is TENANT)


@dataclass
class Seen:
    """What an owner is to be shown: the details of all events, and those for who may not read logs."""

    until: int = -1
    events: list[tuple[str, str]] = field(default_factory=list)
    forgotten: int = 0  # that were cleared


@pytest.mark.parametrize("seed", range(3))
def test_each_owner_is_told_of_his_own_while_he_listens_and_the_operator_of_all(seed: int) -> None:
    dice, trace, now = random.Random(seed), Trace(OPERATOR, EVENTS, LINES), 0
    told = {owner: Seen() for owner in (OPERATOR, ANN, TENANT, BEN)}
    for number in range(600):
        now += dice.randrange(2 * SECOND)
        reader = dice.choice(list(told))
        match dice.randrange(8):
            case 0:
                trace.listen(now, None if reader is OPERATOR else reader)
                told[reader].until = now + 10 * SECOND
            case 1:
                waiting = [one for one in told if dice.random() < 0.2]
                trace.expire(now, waiting)
                for one, seen in told.items():
                    if 0 <= seen.until < now and one not in waiting:
                        seen.until = -1
                        if one is not OPERATOR:
                            seen.forgotten = len(seen.events)
                assert trace.on == any(seen.until >= 0 for seen in told.values())
            case 2:
                check(trace, dice, reader, told[reader])
            case _:
                whose, plain = dice.choice([None, *told]), dice.choice([None, "", "plain"])
                trace.emit(now / SECOND, "what", number, "sim0", 3, f"detail {number}", whose, plain)
                for one, seen in told.items():
                    if seen.until >= 0 and sees(one, whose):
                        seen.events.append((f"detail {number}", f"detail {number}" if plain is None else plain))


def check(trace: Trace, dice: random.Random, reader: Owner, seen: Seen) -> None:
    end = len(seen.events)
    assert trace.end_of(reader) == end
    first = max(seen.forgotten, end - EVENTS)
    start, limit, content = dice.randrange(end + 1), dice.randrange(1, 9), dice.random() < 0.5
    begin = max(start, first)
    found = trace.read(start, limit, None if reader is OPERATOR else reader, content=content)
    wanted = list(enumerate(seen.events))[begin : begin + limit]
    assert [(event.seq, event.detail) for event in found.events] == [(at, one[not content]) for at, one in wanted]
    assert (found.next, found.lost) == (begin + len(wanted), begin - start)


def test_a_line_of_the_log_is_for_the_operator_for_its_owner_and_his_uid_or_for_everybody() -> None:
    trace = Trace(OPERATOR, EVENTS, LINES)
    for number, (whose, public) in enumerate([(None, True), (ANN, False), (TENANT, False), (None, False), (BEN, True)]):
        trace.line(float(number), "info", f"line {number}", whose, public=public)

    def read(owner: Owner | None, after: int = -1, limit: int = 100) -> list[tuple[int, str]]:
        return [(line.seq, line.text[5:]) for line in trace.lines(after, limit, owner)]

    assert read(None) == [(0, "0"), (1, "1"), (2, "2"), (3, "3"), (4, "4")]
    assert read(ANN) == [(0, "0"), (1, "1"), (2, "2"), (3, "4")]
    assert read(TENANT) == [(0, "0"), (1, "2"), (2, "4")]
    assert read(BEN) == [(0, "0"), (1, "4")]
    assert read(None, after=1, limit=2) == [(2, "2"), (3, "3")]
    trace.line(5.0, "info", "line 5")
    assert read(None)[0] == (1, "1")  # the oldest has fallen out

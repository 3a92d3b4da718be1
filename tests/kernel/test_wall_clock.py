"""The clock by which permissions end: never back, and on while nothing runs."""

from __future__ import annotations

import time

import pytest
import trio
import trio.testing

from llmasos.kernel.edge.turns import Stays
from llmasos.kernel.edge.wall_clock import LOOK_SECONDS, WallClock

SECOND = 10**9


class Times:
    """What the operating system's clocks show."""

    def __init__(self) -> None:
        self.wall, self.running = 1_000_000 * SECOND, 50 * SECOND

    def go_on(self, seconds: float) -> None:
        self.wall += round(seconds * SECOND)
        self.running += round(seconds * SECOND)


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    found = Times()
    monkeypatch.setattr(time, "time_ns", lambda: found.wall)
    monkeypatch.setattr(time, "clock_gettime_ns", lambda clock: found.running)
    return found


def test_it_goes_on_at_its_pace_where_somebody_sets_the_machines_clock_back(times: Times) -> None:
    clock = WallClock()
    begin = clock.now()
    times.go_on(10)
    times.wall -= 3600 * SECOND
    assert clock.now() == begin + 10 * SECOND
    times.go_on(10)
    assert clock.now() == begin + 20 * SECOND


def test_it_jumps_where_the_machines_clock_is_set_on_and_stays_ahead(times: Times) -> None:
    clock = WallClock()
    begin = clock.now()
    times.wall += 3600 * SECOND
    assert clock.now() == begin + 3600 * SECOND
    times.wall -= 3600 * SECOND
    times.go_on(5)
    assert clock.now() == begin + 3605 * SECOND


def test_it_begins_no_earlier_than_what_the_journal_has_of_it(times: Times) -> None:
    assert WallClock(times.wall + 60 * SECOND).now() == times.wall + 60 * SECOND
    assert WallClock(times.wall - 60 * SECOND).now() == times.wall


def test_it_wakes_nobody_unless_something_is_to_end_and_looks_every_minute_then(times: Times) -> None:
    async def main() -> None:
        clock, looks = WallClock(), list[float]()
        async with trio.open_nursery() as nursery:

            async def look() -> None:
                while True:
                    before = trio.current_time()
                    await clock.look()
                    looks.append(trio.current_time() - before)
                    if clock.due:
                        clock.wake_at(None)

            nursery.start_soon(look)
            await trio.sleep(10_000)
            assert looks == []
            clock.wake_at(clock.now() + 90 * SECOND)
            await trio.sleep(LOOK_SECONDS + 1)
            times.go_on(LOOK_SECONDS + 1)
            assert len(looks) == 1
            times.go_on(29)
            await trio.sleep(LOOK_SECONDS)
            assert (len(looks), clock.until) == (2, None)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_connections_that_have_gone_are_not_kept_until_their_time_is_over() -> None:
    class Peer:
        def __init__(self, number: int) -> None:
            self.number, self.until = number, 0.0

    peers: dict[int, Peer] = {}
    stays = Stays(peers, lambda: None)  # type: ignore[arg-type]
    last = peers[0] = Peer(0)
    stays.until(last, 30.0)  # type: ignore[arg-type]
    for number in range(1, 5_000):
        peers[number] = Peer(number)
        stays.until(peers[number], 30.0)  # type: ignore[arg-type]
        stays.end(peers.pop(number))  # type: ignore[arg-type]
    assert len(stays._heap) < 100
    assert stays.first() == last.until

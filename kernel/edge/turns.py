"""Turns: who of those that have sent something is heard next, and until when a connection may say nothing.

OS processes have turns one after the other, however many connections each has. No turn can be cut short, and some calls
take long; so while others call, too, an OS process that has used up its half of the kernel's time has no turn for a
while. Its messages wait in its own socket then, and it itself at last: that is all that pacing costs.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Mapping

from llmasos.kernel.edge.peers import Account, Peer

SHARE = 0.5  # of the kernel's time that one OS process may have while others call, too,
BURST = 0.01  # seconds that it may be beyond that,
ACTIVE = 0.1  # and seconds for which an OS process counts as one that calls
_SPARE = 64  # moments of connections that have gone


class Turns:
    """Connections that have sent something, by who pays for them."""

    def __init__(self, *, paced: bool) -> None:
        self._paced = paced
        self._ready: dict[Account, dict[Peer, None]] = {}
        self.paused: dict[Account, dict[Peer, None]] = {}
        self._last = self.before = Account("nobody")  # the last two that had a turn

    def __bool__(self) -> bool:
        return bool(self._ready)

    def add(self, peer: Peer) -> None:
        """It is the last of its OS process now."""
        self._ready.setdefault(peer.payer, {})[peer] = None

    def each(self) -> Iterator[Peer]:
        """The next of each OS process. Those that are added meanwhile have to wait for the next time."""
        for account in list(self._ready):
            waiting = self._ready.get(account)
            if not waiting:
                self._ready.pop(account, None)
                continue
            peer = next(iter(waiting))
            del waiting[peer]
            yield peer
            if not waiting:
                self._ready.pop(account, None)

    def charge(self, account: Account, seconds: float) -> None:
        """It has had a turn that took so long."""
        now = time.perf_counter()
        debt = max(0.0, account.debt - SHARE * (now - account.settled))
        account.debt = min(debt, BURST) + seconds  # what it had while it was alone is forgiven
        account.settled = account.seen = now
        if account is not self._last:
            self.before, self._last = self._last, account

    def must_pause(self, account: Account) -> bool:
        if account.debt <= BURST or not self._paced:
            return False
        now = time.perf_counter()
        other = self.before if account is self._last else self._last
        return now - other.seen < ACTIVE and account.debt - SHARE * (now - account.settled) > BURST

    def pause(self, peer: Peer) -> None:
        self.paused.setdefault(peer.payer, {})[peer] = None

    def rested(self) -> list[Peer]:
        """Those that have paused long enough."""
        now = time.perf_counter()
        over = [account for account in self.paused if _rested(account) <= now]
        return [peer for account in over for peer in self.paused.pop(account)]

    def due(self) -> float:
        """Seconds until the first of the paused has rested."""
        return min(map(_rested, self.paused), default=float("inf")) - time.perf_counter()

    def forget(self, peer: Peer) -> None:
        for waiting in (self._ready, self.paused):
            if peer.payer in waiting:
                waiting[peer.payer].pop(peer, None)


class Stays:
    """When connections have to be gone that say nothing. `changed` is called when the first of these moments is another
    one now."""

    def __init__(self, peers: Mapping[int, Peer], changed: Callable[[], None]) -> None:
        self._peers, self._changed = peers, changed
        self._heap: list[tuple[float, int]] = []  # the moment, and the connection's number

    def until(self, peer: Peer, seconds: float) -> None:
        peer.until = time.monotonic() + seconds
        if len(self._heap) > 2 * len(self._peers) + _SPARE:  # those who have gone are not kept until their time is over
            self._heap = [entry for entry in self._heap if self._holds(*entry)]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (peer.until, peer.number))
        self._changed()

    def end(self, peer: Peer) -> None:
        """The connection has no time to be gone by any more. An idle kernel is not woken for it."""
        peer.until = 0.0
        if self._heap and self._heap[0][1] == peer.number:
            self._changed()

    def _holds(self, until: float, number: int) -> bool:
        peer = self._peers.get(number)
        return peer is not None and peer.until == until

    def first(self) -> float | None:
        """The moment (of time.monotonic) at which the first has to be gone."""
        while self._heap:
            until, number = self._heap[0]
            peer = self._peers.get(number)
            if peer is not None and peer.until == until:
                return until
            heapq.heappop(self._heap)
        return None

    def over(self) -> Iterator[tuple[Peer, float]]:
        """The connections whose time is over, and the time: it holds if it still is theirs when they were heard."""
        now = time.monotonic()
        while self._heap and self._heap[0][0] <= now:
            until, number = heapq.heappop(self._heap)
            peer = self._peers.get(number)
            if peer is not None and peer.until == until:
                yield peer, until


def _rested(account: Account) -> float:
    """When a paused account may go on (of time.perf_counter)."""
    return account.settled + (account.debt - BURST / 2) / SHARE

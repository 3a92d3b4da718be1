"""The connections of a door: what goes to them, what waits until it can, and how they end.

Answers leave at once, as far as the operating system takes them; short ones of one turn leave together at its end. What
does not fit waits (peers.py), within bounds; a program that passes them does not read, and is cut off. While a mebibyte
waits for a program, or thousands of its calls have no answer, its next calls wait in its socket: it is held.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

import trio

from llmasos.kernel.edge.payers import Payers
from llmasos.kernel.edge.peers import Account, Peer
from llmasos.kernel.edge.turns import Stays, Turns
from llmasos.syscalls import limits, zmtp
from llmasos.syscalls.budgets import Allowance
from llmasos.syscalls.errno import Errno, SyscallError

HOLD_ANSWERS = 1 << 20  # bytes of answers that wait for a program above which its next calls do
# Calls without an answer above which its next ones wait: more than can be parked, so the others wait for the disk
# (`fsync` is `always`), and not for what the program does next.
MOST_OWED = 2 * limits.MAX_PARKED_CALLS
_LONG = 1 << 14  # bytes from which an answer goes by itself
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Connections:
    """Those of one door, and what they wait for. `gone(peer)` is told when one has ended, `note(peer, text)` what the
    kernel's log should say, `refuses(why)` why a stranger is turned away; `timed()` when something is due at another
    moment now, `look_soon()` when there are turns of which no descriptor tells."""

    def __init__(
        self,
        received: Allowance,
        sends: Allowance,
        gone: Callable[[Peer], None],
        note: Callable[[Peer, str], None],
        refuses: Callable[[SyscallError], None],
        timed: Callable[[], None],
        look_soon: Callable[[], None],
        *,
        paced: bool,
    ) -> None:
        self._sends, self._gone, self._note, self._refuses = sends, gone, note, refuses
        self._look_soon = look_soon
        self._numbers: dict[int, Peer] = {}
        self.refused: set[Peer] = set()  # of them, those that stay only to hear why they cannot
        self.turned_away = 0
        self.payers = Payers(received, sends)
        self.turns, self.stays = Turns(paced=paced), Stays(self._numbers, timed)
        self.held: set[Peer] = set()
        self.starved: set[Peer] = set()  # those for whose next message there is no room
        self._selector = selectors.DefaultSelector()
        self._corked: Peer | None = None  # has its turn, and gets short answers
        self._cork: list[bytes] = []  # at the end of it

    @property
    def inside(self) -> int:
        """Connections that are not refused."""
        return len(self._numbers) - len(self.refused)

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Peer]:
        """All of now, whatever becomes of them meanwhile."""
        return iter(list(self._numbers.values()))

    def __contains__(self, peer: Peer) -> bool:
        return peer.number in self._numbers

    def add(self, peer: Peer, process: Account, seconds: float) -> None:
        """A connection that may stay for so long without saying anything."""
        self.payers.enter(peer, process)
        self._numbers[peer.number] = peer
        if peer.refused is not None:
            self.refused.add(peer)
        self.stays.until(peer, seconds)
        self.wait_for(peer, READ)

    # --- waiting ----------------------------------------------------------------------------------------------------

    @property
    def fd(self) -> int:
        """Readable when there is something to look at."""
        return self._selector.fileno()

    def listen(self, listener: socket.socket) -> None:
        self._selector.register(listener, READ, listener)

    def deafen(self, listener: socket.socket) -> None:
        with suppress(KeyError):  # there was no room for it in the operating system's list
            self._selector.unregister(listener)
        listener.close()

    def look(self) -> Iterator[socket.socket]:
        """Give those a turn that have sent something, and send on to those that have room. The sockets at which somebody
        wants to come in."""
        for key, events in self._selector.select(0):
            peer = key.data
            if isinstance(peer, socket.socket):
                yield peer
            elif peer.number in self._numbers:
                if events & WRITE:
                    self._flush(peer)
                if events & READ and peer in self:
                    self.turns.add(peer)

    def wait_for(self, peer: Peer, mask: int) -> None:
        if mask == peer.mask:
            return
        try:
            if not mask:  # a connection that has ended would tell so for ever
                self._selector.unregister(peer.connection)
            elif peer.mask:
                self._selector.modify(peer.connection, mask, peer)
            else:
                self._selector.register(peer.connection, mask, peer)
        except OSError as error:  # no memory, or fs.epoll.max_user_watches; then it is in the selector no more
            peer.mask = 0
            self.cut(peer, f"nobody could be told when it sends or reads: {error.strerror}")
        else:
            peer.mask = mask

    def must_hold(self, peer: Peer) -> bool:
        return peer.answers > HOLD_ANSWERS or peer.owed > MOST_OWED

    def hold(self, peer: Peer) -> None:
        """Hear nothing more of it until it has read."""
        self.held.add(peer)
        self.wait_for(peer, WRITE)

    def starve(self, peer: Peer) -> None:
        """Hear nothing more of it until somebody has given room back."""
        self.starved.add(peer)
        self.wait_for(peer, peer.mask & ~READ)

    def feed(self) -> None:
        """There is more room than there was."""
        starved, self.starved = self.starved, set()
        for peer in starved:
            self._hear(peer)

    def pause(self, peer: Peer) -> None:
        self.turns.pause(peer)
        self.wait_for(peer, peer.mask & ~READ)

    def resume(self) -> None:
        """Hear those again that have paused long enough."""
        for peer in self.turns.rested():
            if peer in self:
                self._hear(peer)

    def _hear(self, peer: Peer) -> None:
        self.wait_for(peer, peer.mask | READ)
        self.turns.add(peer)
        self._look_soon()  # there may be whole messages, of which the socket does not tell

    # --- answers ----------------------------------------------------------------------------------------------------

    def cork(self, peer: Peer) -> None:
        """It has its turn: short answers leave at the end of that."""
        self._corked = peer

    def uncork(self) -> None:
        peer, self._corked = self._corked, None
        if self._cork and peer is not None:
            self._pour(peer)

    def _pour(self, peer: Peer) -> None:
        cork, self._cork = self._cork, []
        self.offer(peer, cork[0] if len(cork) == 1 else b"".join(cork))

    def send(self, peer: Peer, frame: bytes) -> bool:
        """Send a message without waiting. False: the peer has gone, or was cut off since it does not read."""
        size = len(frame)
        if size >= _LONG:
            return self.offer(peer, zmtp.head(size)) and self.offer(peer, frame)
        data = (b"\0%c" % size if size < 256 else zmtp.head(size)) + frame
        if peer is self._corked:  # its turn has an end soon
            self._cork.append(data)
            return True
        return self.offer(peer, data)

    def offer(self, peer: Peer, data: bytes) -> bool:
        """Send bytes; whether the peer is still there."""
        if self._cork and peer is self._corked:
            self._pour(peer)
        rest, account, why = peer.offer(data)
        while why:  # what somebody does not read is too much
            payers = (one for one in self._numbers.values() if account in one.accounts)
            worst = peer if account is None else max(payers, key=lambda one: one.answers)
            self.payers.refusals[self._sends.name] += 1
            self.cut(worst, why)
            if worst is peer:
                return False
            rest, account, why = peer.offer(bytes(rest))
        if peer.out:
            self.wait_for(peer, peer.mask | WRITE)
        elif peer in self.held:
            self._flush(peer)
        return peer in self

    def _flush(self, peer: Peer) -> None:
        if peer.out:
            peer.write()
        if peer.out:
            self.wait_for(peer, peer.mask | WRITE)
        elif peer.mask & WRITE:
            self.wait_for(peer, peer.mask & ~WRITE)
        if peer in self.held and peer.answers <= HOLD_ANSWERS // 2 and peer.owed <= MOST_OWED:
            self.held.discard(peer)
            self._hear(peer)

    # --- the end ----------------------------------------------------------------------------------------------------

    def cut(self, peer: Peer, why: str) -> None:
        """End a connection, and say why in the log; of a stranger's the audit tells, too."""
        if peer not in self:
            return
        peer.expelled = True
        if peer.stranger:
            self.turned_away += 1
            self._tell(peer, f"{peer.shown} is refused: {why}")
            self._refuses(Errno.EPERM(f"{peer.shown}: {why}"))
        else:
            self._tell(peer, f"{peer.shown} is cut off: {why}")
        self.end(peer)

    def _tell(self, peer: Peer, text: str) -> None:
        if line := self.payers.line(peer, text):
            self._note(peer, line)

    def end(self, peer: Peer) -> None:
        if self._numbers.pop(peer.number, None) is None:
            return
        self.stays.end(peer)
        self.refused.discard(peer)
        self.wait_for(peer, 0)
        self.held.discard(peer)
        self.starved.discard(peer)
        self.turns.forget(peer)
        peer.close()
        self.payers.left(peer)
        self.feed()
        self._gone(peer)

    def close(self) -> None:
        for peer in self:
            self.end(peer)
        with suppress(RuntimeError):  # outside trio nobody waits
            trio.lowlevel.notify_closing(self.fd)
        self._selector.close()

"""The door of the kernel: a listening socket, the connections that came by it, and a turn for each.

The kernel accepts, reads and writes by itself, and speaks ZMTP (syscalls/zmtp.py) to programs that use ZeroMQ. libzmq
would accept tens of thousands in a second and abort the whole process when no descriptor is left for one more; it keeps
messages that are not whole where nobody sees them; it counts messages where bytes matter. Here each byte is charged
before it is kept (payers.py, peers.py), and whoever goes beyond what he may have is told so, or cut off.

Who has sent something gets a turn (turns.py): a few messages, or a piece of a long one.

Places. When all are taken, newcomers are let in to hear why they cannot stay. The last places are for OS processes that
have no connection yet, so that one which takes all it can get does not lock out a `kill` or a `halt`. Who says nothing is
cut off after a while.

Programs on other machines come by the same door, through its gate (gate.py), and are served alike: budgets, turns and
places know no difference, but that a host stands in for an OS process, and a key for its user.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from llmasos.kernel.edge import listening
from llmasos.kernel.edge.connections import Connections
from llmasos.kernel.edge.listening import PRIVATE, Reach
from llmasos.kernel.edge.peers import Account, Gone, Peer
from llmasos.syscalls import wire, zmtp
from llmasos.syscalls.budgets import ANSWERS, CONNECTIONS, RECEIVED, Allowance
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Budget

if TYPE_CHECKING:  # what encrypts is loaded where the kernel listens to other machines
    from llmasos.kernel.edge.gate import Change, Gate

NOBODY = "the user of this program has no id on this machine (another user namespace has), so it is nobody's program"
OWN = 128  # descriptors for drivers, journal, models and logs; less where there are few
NEWCOMERS = 16  # places for OS processes that have no connection yet;
OPERATORS = 8  # of them, in a kernel of several users, those that are for its operators
USERS = 8  # in that kernel a user has at most one part of the places in so many
TELL_SECONDS = 0.5  # for which a refused connection stays, to hear why
SILENT_SECONDS = 30.0  # for which one stays that says nothing, or stops in the middle of a request
_MESSAGES = 16  # of one turn, at most,
_TURN = 0.0003  # and seconds
_TOLD = 16  # refused connections that stay at once, beside those that are in
_FIRST = 2  # a program looks whether a kernel listens, then connects


class Door:
    """Listening sockets and the connections that came by them.

    `deliver(peer, message)` gets what comes, a frame or the reason why there is none, and may return what is left to do
    of it, in parts: these have the connection's turns before anything else that it sends. `gone(peer)` is told when a
    connection that had said something has ended; `note(peer, text)` what the kernel's log should say.
    """

    def __init__(
        self,
        descriptors: int,
        deliver: Callable[[Peer, zmtp.Frame | zmtp.Refused], Iterator[None] | None],
        gone: Callable[[Peer], None],
        note: Callable[[Peer, str], None],
        *,
        received: Allowance = RECEIVED,
        sends: Allowance = ANSWERS,
        refuses: Callable[[SyscallError], None] = lambda why: None,
        strangers: frozenset[int | None] = frozenset(),
        admits: Callable[[int], bool] | None = None,
        operators: frozenset[int] | None = None,
    ) -> None:
        """`descriptors`: the limit of the operating system for this process. `received`, `sends`: the bounds of what
        comes, and of what goes. `refuses` is told why a connection is refused. `strangers`: uids that are nobody's.
        `admits(pid)` says which OS processes may connect, and these are not paced; without it, all may. `operators`: who
        may have all places; without it everybody may, since all are one user's."""
        self._deliver, self._gone, self._refuses = deliver, gone, refuses
        self._received, self._sends, self._strangers, self._admits = received, sends, strangers, admits
        self._descriptors, self._operators = descriptors, operators
        self.most = descriptors - min(OWN, descriptors // 4) - 2 * _TOLD  # connections
        self._refused = 0
        self._number = 0  # of the latest connection
        self._timed = trio.Event()  # set when something is due earlier, or later, than it was
        self.connections = Connections(
            received,
            sends,
            self._left,
            note,
            refuses,
            lambda: self._timed.set(),
            self._look_soon,
            paced=admits is None,
        )
        self._listeners: dict[Path, socket.socket] = {}
        self._sandboxes: dict[socket.socket, int] = {}  # by their listeners
        self._spare = listening.Spare()
        self.gate: Gate | None = None
        self._outside: socket.socket | None = None  # where those from other machines come
        self._changes: Callable[[list[Change]], None] = lambda changes: None
        self._token: trio.lowlevel.TrioToken | None = None
        self._closed = False

    # --- who comes in -----------------------------------------------------------------------------------------------

    def listen(self, path: Path, reach: Reach = PRIVATE) -> None:
        """Listen at `path`; `reach` says who may connect. Where it listened before under that name, which is no more, it
        listens no longer. Raises OSError."""
        self._deafen(path)
        self._listeners[path] = listener = listening.listen(path, reach)
        try:
            self.connections.listen(listener)
            self._spare.keep()
        except OSError:  # whoever came there would wait for ever
            self._deafen(path)
            path.unlink(missing_ok=True)
            raise

    def _deafen(self, path: Path) -> None:
        if (listener := self._listeners.pop(path, None)) is not None:
            self.connections.deafen(listener)

    def open_sandbox(self, number: int, listener: socket.socket) -> None:
        """Let those in that come by the endpoint of a sandbox, and know them by it. The door closes the listener. Raises
        OSError."""
        try:
            self.connections.listen(listener)
        except OSError:
            listener.close()
            raise
        self._sandboxes[listener] = number

    def close_sandbox(self, number: int) -> None:
        """Nobody comes by it any more, and whoever has come is cut off."""
        for listener in [one for one, named in self._sandboxes.items() if named == number]:
            del self._sandboxes[listener]
            self.connections.deafen(listener)
        for peer in self.connections:
            if peer.sandbox == number:
                self.connections.end(peer)

    def open_gate(self, gate: Gate, listener: socket.socket, changes: Callable[[list[Change]], None]) -> None:
        """Let programs on other machines come by TCP, too. `changes` is told what has become of keys."""
        self._outside, self.gate, self._changes = listener, gate, changes
        self.connections.listen(listener)

    def __len__(self) -> int:
        return self.connections.inside

    def _admit(self, connection: socket.socket, sandbox: int = 0) -> None:
        connection.setblocking(False)
        self._number += 1
        try:
            peer = Peer(self._number, connection, self._received, self._sends)
            peer.sandbox = sandbox
            if peer.host and self.gate is not None:
                self.gate.prepare(connection)
                peer.incoming = peer.curve = self.gate.incoming(self._received.each)
        except OSError:  # it has gone
            connection.close()
            return
        if self._admits is not None and not self._admits(peer.os_pid):
            self._refused += 1
            connection.close()
            return
        all, payers = self.connections, self.connections.payers
        process = payers.process(peer)
        peer.refused = self._refusal(peer, process)
        self._refused += peer.refused is not None
        if peer.refused is not None and len(all.refused) >= _TOLD:
            connection.close()  # there is no room to tell everybody; who is cut off tries again
            payers.forget(process)
            return
        all.add(peer, process, TELL_SECONDS if peer.refused else SILENT_SECONDS)
        if peer not in all:
            return
        if self.gate is not None and peer.curve is not None:
            self._is_stranger(peer, self.gate)
        else:
            all.offer(peer, zmtp.OPENING)

    def _refusal(self, peer: Peer, process: Account) -> SyscallError | None:
        if peer.uid in self._strangers and not peer.host:
            if peer.uid is None:
                return Errno.EAGAIN("the operating system does not say whose program this is; try again")
            return Errno.EPERM(NOBODY)
        inside, payers = self.connections.inside, self.connections.payers
        told = Counter(one.payer for one in self.connections.refused)  # for them, and their processes, room is kept
        alone = sum(account.connections == refused for account, refused in told.items())
        count, most = inside + len(payers.processes) - alone + len(self._sandboxes) + 1, self.most
        if self._operators is not None and peer.uid not in self._operators:
            owner, part = payers.owner(peer), self.most // USERS
            if owner.connections >= part:
                return CONNECTIONS.refuse(owner.name, owner.connections, part)
            most -= OPERATORS
        if count <= self.most - NEWCOMERS or (count <= most and process.connections < _FIRST):
            return None
        return CONNECTIONS.errno(
            f"{inside} programs are connected, and more than {self.most} cannot be (`ulimit -n` is "
            f"{self._descriptors} for this kernel); end some, or boot it with a higher limit"
        )

    # --- those from other machines ----------------------------------------------------------------------------------

    def _is_stranger(self, peer: Peer, gate: Gate) -> None:
        """It has to show a key, within seconds; if there are too many of these, the oldest goes."""
        from llmasos.kernel.edge.gate import STRANGER_SECONDS, STRANGERS
        from llmasos.syscalls.curve import OPENING

        self.connections.stays.until(peer, STRANGER_SECONDS)
        gate.strangers[peer] = None
        while len(gate.strangers) > STRANGERS:
            self.cut(gate.one_too_many(), f"{STRANGERS} have not shown a key, and newer ones have come")
        self.connections.offer(peer, OPENING)

    def _shown(self, peer: Peer, shown: zmtp.Shown) -> None:
        """It holds a key; whether that may come in."""
        from llmasos.syscalls import curve
        from llmasos.syscalls.curve_keys import text_of

        gate, incoming = self.gate, peer.curve
        assert gate is not None
        assert incoming is not None
        self.look_at_keys()
        if why := gate.refusal(shown.public):
            self.connections.offer(peer, curve.turned_away())
            self.cut(peer, f"its key {text_of(shown.public)} is not accepted: {why}")
            return
        gate.strangers.pop(peer, None)
        self.connections.payers.known(peer, gate.keys[shown.public])
        self.connections.stays.until(peer, TELL_SECONDS if peer.refused else SILENT_SECONDS)
        self.connections.offer(peer, incoming.welcome())
        self._arrived(peer, zmtp.Ready(shown.identity))

    def look_at_keys(self) -> None:
        """Read the file of keys if it has changed, and cut off whoever came by one that may no longer."""
        if self.gate is None or not (changes := self.gate.look()):
            return
        for peer in self.connections:
            if not self.gate.holds(peer):
                peer.drop()
                self.connections.end(peer)
        self._changes(changes)

    # --- turns ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until cancelled. Exceptions of `deliver` pass through."""
        self._token = trio.lowlevel.current_trio_token()
        while not self._closed:
            if self.round():
                await trio.lowlevel.checkpoint()
            else:
                with suppress(trio.ClosedResourceError):
                    await trio.lowlevel.wait_readable(self.connections.fd)

    async def keep_time(self) -> None:
        """Cut off what has stayed too long, and let those go on that had to pause. Until cancelled."""
        while True:
            await self._timed.wait()
            self._timed = trio.Event()
            while (due := self._next_due()) is not None:
                with trio.move_on_after(max(0.0, due - time.monotonic())):
                    await self._timed.wait()
                    self._timed = trio.Event()
                self.connections.resume()
                self._sweep()

    def _look_soon(self) -> None:
        """There are turns of which no descriptor tells."""
        if self._token is not None:
            self._token.run_sync_soon(self._look, idempotent=True)

    def _look(self) -> None:
        if self.round():
            self._look_soon()

    def round(self) -> bool:
        """One turn for each OS process that has sent something. Whether there is more to do."""
        if self._closed:
            return False
        all = self.connections
        for listener in all.look():
            for connection in self._spare.accept(listener):
                self._admit(connection, self._sandboxes.get(listener, 0))
        for peer in all.turns.each():
            if all.turns.must_pause(peer.payer):
                all.pause(peer)
                self._timed.set()
            elif self._turn(peer):
                all.turns.add(peer)
        return bool(all.turns)

    def _turn(self, peer: Peer) -> bool:
        """Take some of what a connection sends. Whether there may be more."""
        begin = time.thread_time()  # time in which the kernel was not running is nobody's
        all, more = self.connections, True
        all.cork(peer)
        try:
            more = self._take(peer, begin + _TURN)
        except Gone:
            if peer.stranger:
                self.cut(peer, "it has gone before it had shown a key")
            else:
                all.end(peer)
        except zmtp.Broken as broken:
            self.cut(peer, str(broken))
        finally:
            all.uncork()
        all.turns.charge(peer.payer, time.thread_time() - begin)
        if peer not in all:
            return False
        if peer.counted or peer.working or peer.incoming.held or peer.incoming.reserved:
            before = peer.counted
            peer.count()
            if all.starved and peer.counted < before:
                all.feed()
            if peer.incoming.reserved and not peer.until:
                all.stays.until(peer, SILENT_SECONDS)
        return more

    def _take(self, peer: Peer, until: float) -> bool:
        all = self.connections
        if peer.key is not None:
            self.look_at_keys()
            if peer not in all:
                return False
        incoming, room, more = peer.incoming, peer.room, True
        for _ in range(_MESSAGES):
            if self._admits is None and all.must_hold(peer):
                all.hold(peer)
                return False
            if peer.work is not None:
                if not self._worked(peer):
                    return True
                continue
            arrived = incoming.next(room)
            if arrived is None:
                if not more:
                    return False
                more = peer.read()
                arrived = incoming.next(room)
                if arrived is None:
                    return more
            if type(arrived) is bytes and peer.refused is None:  # the usual
                if peer.until:
                    all.stays.end(peer)
                if last := not (more or incoming.held):
                    all.uncork()  # the program waits for this answer
                peer.begins(self._deliver(peer, arrived), len(arrived))
                if last and peer.work is None:
                    return False
            else:
                self._arrived(peer, arrived)
                if peer in all.starved:
                    return False
            if time.thread_time() > until or peer not in all:
                return True
        return True

    def _worked(self, peer: Peer) -> bool:
        """Do the next part of what a connection has sent; whether that was the last."""
        if peer.work is not None and next(peer.work, peer) is not peer:
            return False
        peer.ends()
        return True

    def _arrived(self, peer: Peer, arrived: zmtp.Arrived) -> None:
        match arrived:
            case zmtp.Ready():
                peer.identity = arrived.identity
                if (why := peer.refused) is not None:
                    self.send(peer, wire.encode_reply(0, why.errno, why.reason))  # to no call in particular
                    self._refuses(why)
            case zmtp.Pong():
                self.connections.offer(peer, arrived.frame)
            case zmtp.Shown():
                self._shown(peer, arrived)
            case zmtp.Full():
                self.connections.starve(peer)
            case _ if peer.refused is None:
                self.connections.stays.end(peer)
                if isinstance(arrived, zmtp.Refused) and arrived.errno is self._received.errno:
                    self.connections.payers.refusals[self._received.name] += 1
                size = 0 if isinstance(arrived, zmtp.Refused) else len(arrived)
                peer.begins(self._deliver(peer, arrived), size)

    def _next_due(self) -> float | None:
        """When something has to be looked at again, if nothing comes."""
        until, turns = self.connections.stays.first(), self.connections.turns
        if turns.paused:
            pause = time.monotonic() + turns.due()
            return pause if until is None else min(pause, until)
        return until

    def _sweep(self) -> None:
        for peer, until in self.connections.stays.over():
            if peer.refused is None:
                self._turn(peer)  # what it has said meanwhile counts, however late the kernel hears of it
            if peer.until == until and peer.stranger:
                self.cut(peer, "it has not shown a key in time")
            elif peer.until == until:
                self.connections.end(peer)

    def drain(self) -> None:
        """Deliver all that has arrived, at once. For the end of a connection, when no task may be left to wait for it."""
        for peer in self.connections:
            while peer in self.connections and self._turn(peer):
                pass

    # --- answers, and the end ---------------------------------------------------------------------------------------

    def send(self, peer: Peer, frame: bytes) -> bool:
        """Send a message without waiting. False: the peer has gone, or was cut off since it does not read."""
        if peer not in self.connections:
            return False
        if peer.curve is None:
            return self.connections.send(peer, frame)
        self.look_at_keys()
        return peer in self.connections and self.connections.offer(peer, peer.curve.sealed(frame))

    def budgets(self) -> list[Budget]:
        """What programs use of the edge's resources."""
        return self.connections.payers.budgets(self.connections.inside, self.refused, self.most)

    @property
    def refused(self) -> int:
        """Connections that could not stay."""
        return self._refused + self._spare.used + self.connections.turned_away

    @property
    def waiting(self) -> int:
        """Bytes of answers that wait."""
        return self.connections.payers.everybody.answers

    def cut(self, peer: Peer, why: str) -> None:
        """End a connection, and say why in the log."""
        self.connections.cut(peer, why)

    def _left(self, peer: Peer) -> None:
        if self.gate is not None:
            self.gate.strangers.pop(peer, None)
        self._gone(peer)

    def close(self) -> None:
        """End all. What the operating system has been given is still read by those at the other ends."""
        if self._closed:
            return
        self._closed = True
        for path in list(self._listeners):
            self._deafen(path)
        for listener in self._sandboxes:
            self.connections.deafen(listener)
        self._sandboxes.clear()
        if self._outside is not None:
            self.connections.deafen(self._outside)
        self.connections.close()
        self._spare.close()

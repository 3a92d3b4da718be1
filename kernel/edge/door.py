"""The door of the kernel: a listening socket, the connections that came by it, and a turn for each.

The kernel accepts, reads and writes by itself, and speaks ZMTP (syscalls/zmtp.py) to programs that use ZeroMQ. libzmq
would accept tens of thousands in a second and abort the whole process when no descriptor is left for one more; it keeps
messages that are not whole where nobody sees them; it counts messages where bytes matter. Here each byte is charged
before it is kept (payers.py, peers.py), and whoever goes beyond what he may have is told so, or cut off.

A connection that has sent something gets a turn (turns.py): a few messages, or a piece of a long one. One that says
nothing is cut off after a while. capacity.py says for whom there is a place.

Programs on other machines come by the same door, through its gate (outside.py), and are served alike: budgets, turns and
places know no difference, but that a host stands in for an OS process, and a key for its user.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from llmasos.kernel.edge import listening
from llmasos.kernel.edge.capacity import TOLD, Capacity
from llmasos.kernel.edge.connections import Connections
from llmasos.kernel.edge.listening import PRIVATE, Reach
from llmasos.kernel.edge.peers import Gone, Peer
from llmasos.syscalls import wire, zmtp
from llmasos.syscalls.budgets import ANSWERS, RECEIVED, Allowance
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.records import Budget

if TYPE_CHECKING:  # what encrypts is loaded where the kernel listens to other machines
    from llmasos.kernel.edge.gate import Change, Gate
    from llmasos.kernel.edge.outside import Outside

TELL_SECONDS = 0.5  # for which a refused connection stays, to hear why
SILENT_SECONDS = 30.0  # for which one stays that says nothing, or stops in the middle of a request
_MESSAGES = 16  # of one turn, at most,
_TURN = 0.0003  # and seconds


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
        """`received`, `sends`: the bounds of what comes, and of what goes. `refuses` is told why a connection is refused.
        `admits(pid)` says which OS processes may connect, and these are not paced; without it, all may. `descriptors`,
        `strangers`, `operators`: see Capacity."""
        self._deliver, self._gone, self._refuses = deliver, gone, refuses
        self._received, self._sends, self._admits = received, sends, admits
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
        self.capacity = Capacity(descriptors, strangers, operators, self.connections)
        self._listeners: dict[Path, socket.socket] = {}
        self._sandboxes: dict[socket.socket, int] = {}  # by their listeners
        self._spare = listening.Spare()
        self._outside: Outside | None = None  # None: nobody comes from other machines
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
        from llmasos.kernel.edge.outside import Outside

        self._outside = Outside(gate, listener, self.connections, changes)

    def __len__(self) -> int:
        return self.connections.inside

    def _admit(self, connection: socket.socket, sandbox: int = 0) -> None:
        connection.setblocking(False)
        self._number += 1
        try:
            peer = Peer(self._number, connection, self._received, self._sends)
            peer.sandbox = sandbox
            if peer.host and self._outside is not None:
                self._outside.prepare(peer)
        except OSError:  # it has gone
            connection.close()
            return
        if self._admits is not None and not self._admits(peer.os_pid):
            self._refused += 1
            connection.close()
            return
        all, payers = self.connections, self.connections.payers
        process = payers.process(peer)
        peer.refused = self.capacity.refusal(peer, process, len(self._sandboxes))
        self._refused += peer.refused is not None
        if peer.refused is not None and len(all.refused) >= TOLD:
            connection.close()  # there is no room to tell everybody; who is cut off tries again
            payers.forget(process)
            return
        all.add(peer, process, TELL_SECONDS if peer.refused else SILENT_SECONDS)
        if peer not in all:
            return
        if self._outside is not None and peer.curve is not None:
            self._outside.challenge(peer)
        else:
            all.offer(peer, zmtp.OPENING)

    def look_at_keys(self) -> None:
        """Cut off whoever came by a key that may come no longer."""
        if self._outside is not None:
            self._outside.look()

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
                seconds = TELL_SECONDS if peer.refused else SILENT_SECONDS
                if self._outside is not None and self._outside.shown(peer, arrived, seconds):
                    self._arrived(peer, zmtp.Ready(arrived.identity))
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
        return self.connections.payers.budgets(self.connections.inside, self.refused, self.capacity.most)

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
        if self._outside is not None:
            self._outside.left(peer)
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
            self._outside.close()
        self.connections.close()
        self._spare.close()

"""Programs on other machines at a door: a stranger shows a key, and is a connection like others while that is good.

The gate (gate.py) says which keys may come; here is what that means for connections. It is loaded, and with it what
encrypts, only where the kernel listens to other machines.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from llmasos.kernel.edge.connections import Connections
from llmasos.kernel.edge.gate import Change, Gate
from llmasos.kernel.edge.peers import Peer
from llmasos.syscalls import curve, zmtp
from llmasos.syscalls.curve_keys import text_of

STRANGERS = 64  # connections that have not shown a key
STRANGER_SECONDS = 5.0  # for the whole handshake


class Outside:
    """The connections of a door that come through its gate. `changes` is told what has become of keys."""

    def __init__(
        self, gate: Gate, listener: socket.socket, connections: Connections, changes: Callable[[list[Change]], None]
    ) -> None:
        """Let them come by `listener`."""
        self._gate, self._listener, self._connections, self._changes = gate, listener, connections, changes
        connections.listen(listener)

    def prepare(self, peer: Peer) -> None:
        """Whatever it says is encrypted. Raises OSError: it has gone."""
        self._gate.prepare(peer.connection)
        peer.incoming = peer.curve = self._gate.incoming(peer.received.each)

    def challenge(self, peer: Peer) -> None:
        """It has to show a key, within seconds; if there are too many of these, the oldest goes."""
        self._connections.stays.until(peer, STRANGER_SECONDS)
        self._gate.strangers[peer] = None
        while len(self._gate.strangers) > STRANGERS:
            why = f"{STRANGERS} have not shown a key, and newer ones have come"
            self._connections.cut(self._gate.one_too_many(), why)
        self._connections.offer(peer, curve.OPENING)

    def shown(self, peer: Peer, shown: zmtp.Shown, seconds: float) -> bool:
        """It holds a key: whether that may come in, and then says something within so many seconds."""
        incoming = peer.curve
        assert incoming is not None
        self.look()
        if why := self._gate.refusal(shown.public):
            self._connections.offer(peer, curve.turned_away())
            self._connections.cut(peer, f"its key {text_of(shown.public)} is not accepted: {why}")
            return False
        self._gate.strangers.pop(peer, None)
        self._connections.payers.known(peer, self._gate.keys[shown.public])
        self._connections.stays.until(peer, seconds)
        self._connections.offer(peer, incoming.welcome())
        return True

    def look(self) -> None:
        """Read the file of keys if it has changed, and cut off whoever came by one that may no longer."""
        if not (changes := self._gate.look()):
            return
        for peer in self._connections:
            if not self._gate.holds(peer):
                peer.drop()
                self._connections.end(peer)
        self._changes(changes)

    def left(self, peer: Peer) -> None:
        self._gate.strangers.pop(peer, None)

    def close(self) -> None:
        self._connections.deafen(self._listener)

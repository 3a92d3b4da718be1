"""The edge's side of programs: their frames become events, and what the core answers becomes frames.

A frame that is no request, or for which there is no room, is refused here and the core only told that it was. An answer
leaves when audit log and journal are as safe as their configuration wants. Nothing here decides what a call may do.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import trio

from llmasos.kernel.edge.audit_keeper import AuditKeeper
from llmasos.kernel.edge.door import Door
from llmasos.kernel.edge.files import Files
from llmasos.kernel.edge.journal_keeper import Keeper
from llmasos.kernel.edge.listening import Reach
from llmasos.kernel.edge.peers import Peer, Peers, unmapped_uid
from llmasos.kernel.edge.room import RESERVE, Room
from llmasos.kernel.edge.wall_clock import WallClock
from llmasos.kernel.events import (
    Cancel,
    CutOff,
    Disconnected,
    Event,
    KeyRevoked,
    KeysFound,
    Noted,
    Rejected,
    Reply,
    SignalProgram,
    Syscall,
    Wall,
)
from llmasos.syscalls import curve_keys, parts, wire, zmtp
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Signal
from llmasos.syscalls.table import BY_RECORD, Attach, Call, Exec, Feed, Fork, Restore, SandboxOpen, Spawn

if TYPE_CHECKING:  # what encrypts is loaded where the kernel listens to other machines
    from llmasos.kernel.edge.gate import Change, Gate

_FAR = "a sandbox is on the machine of its kernel, and this program is on another"
_GROW = frozenset({Attach, Exec, Feed, Fork, Restore, Spawn})  # calls that make the kernel grow


class Programs:
    """The programs of one kernel, which come by its door. `handle` takes events for the core."""

    def __init__(
        self,
        descriptors: int,
        reach: Reach,
        handle: Callable[[Event], None],
        wall: WallClock,
        halt: trio.Event,
        *,
        gate: Gate | None,
        files: Files | None,
        keeper: Keeper | None,
        audit: AuditKeeper | None,
    ) -> None:
        """`descriptors`: the limit of the operating system for this process; `reach`: who may connect; `halt`: is set
        when the kernel halts. Without `files` the core opens the paths that programs name, without `keeper` or `audit`
        there is no journal or audit log."""
        self._handle, self._wall, self._halt = handle, wall, halt
        self._gate, self._files, self._keeper, self._audit = gate, files, keeper, audit
        self.peers = Peers()
        self._room = Room()
        self.lost_replies = 0  # to programs that had gone
        self.door = Door(
            descriptors,
            self._from,
            self._lost,
            lambda peer, text: handle(Noted("warning", text)),
            refuses=lambda why: handle(Rejected(0, why.errno, why.reason)),
            strangers=frozenset({None, unmapped_uid()} - {os.getuid()}),
            operators=reach.operators,
        )

    def open_gate(self, listener: socket.socket) -> None:
        """Programs on other machines may come by this socket."""
        if self._gate is None:
            return
        self.door.open_gate(self._gate, listener, self._keys_changed)
        self._handle(KeysFound(frozenset(self._gate.keys)))
        where, public = curve_keys.shown(self._gate.host, self._gate.port), curve_keys.text_of(self._gate.public)
        self._handle(Noted("info", f"programs on other machines may come by tcp://{where}; the kernel's key is {public}"))

    # --- frames to events -------------------------------------------------------------------------------------------

    def _from(self, peer: Peer, message: zmtp.Frame | zmtp.Refused) -> Iterator[None] | None:
        if self.peers.numbered(peer.number) is None:
            self.peers.add(peer)
        if not isinstance(message, zmtp.Refused) and len(message) >= parts.LONG:
            return self._from_in_parts(peer, message)
        try:
            if isinstance(message, zmtp.Refused):
                raise wire.RefusedFrame(wire.seq_of(message.prefix), message.errno, message.reason)
            self._request(peer, wire.decode_request(message), len(message))
        except wire.RefusedFrame as refusal:
            self._refuse(peer, refusal)
        return None

    def _from_in_parts(self, peer: Peer, message: zmtp.Frame) -> Iterator[None]:
        try:
            if why := self._room.refusal(len(message)):
                raise wire.RefusedFrame(wire.seq_of(message[:24]), Errno.EAGAIN, why)
            self._request(peer, (yield from wire.decode_in_parts(message)), len(message))
        except wire.RefusedFrame as refusal:
            self._refuse(peer, refusal)

    def _refuse(self, peer: Peer, refusal: wire.RefusedFrame) -> None:
        self._reply(peer, wire.encode_reply(refusal.seq, refusal.errno, refusal.reason))
        self._handle(Rejected(peer.number, refusal.errno, refusal.reason))

    def _request(self, peer: Peer, request: wire.Request, size: int) -> None:
        """Raises RefusedFrame."""
        if request.call is None:
            self._handle(Cancel(peer.number, request.cancels))
            return
        if peer.host and isinstance(request.call, SandboxOpen):
            raise wire.RefusedFrame(request.seq, Errno.ENOTSUP, _FAR)
        if peer.key is not None:
            self._check_files(peer, request.seq, request.call)
        keep = RESERVE // 2 if type(request.call) is Attach else RESERVE
        if type(request.call) in _GROW and (why := self._room.refusal(size, keep)):
            raise wire.RefusedFrame(request.seq, Errno.EAGAIN, why)
        peer.owed += 1
        entry = BY_RECORD[type(request.call)]
        if entry.dated and getattr(request.call, entry.dated):
            self._handle(Wall(self._wall.now()))
        drawn = secrets.randbits(63) if entry.draws else 0
        call, files = request.call, None
        if self._files is not None:
            call, files = self._files.named(peer, request.seq, call)
        who = peer.os_pid, peer.uid, drawn, size, peer.tenant, files, peer.sandbox
        key = peer.key.public if peer.key is not None else b""
        self._handle(Syscall(peer.number, request.seq, call, *who, key=key))

    def _check_files(self, peer: Peer, seq: int, call: Call[Any]) -> None:
        try:
            if self._gate is not None:
                self._gate.refuse_files(peer, call)
        except SyscallError as error:
            raise wire.RefusedFrame(seq, error.errno, error.reason) from None

    def _keys_changed(self, changes: list[Change]) -> None:
        if self._gate is not None and self._gate.trouble:
            self._handle(Noted("error", f"keys: nobody comes by TCP: {self._gate.trouble}"))
        for change in changes:
            what = "may come no longer; its connections are cut" if change.what == "key revoke" else "may come"
            on: dict[str, str | int] = {"key": change.key.name, "public": curve_keys.text_of(change.key.public)}
            text = f"key {change.key.name} ({change.key.owner}) {what}"
            self._handle(Noted("info", text, change.what, on | {"owner": change.key.owner}))
            if change.what == "key revoke":
                self._handle(KeyRevoked(change.key.public))

    def _lost(self, peer: Peer) -> None:
        if self.peers.numbered(peer.number) is not None:
            self.peers.remove(peer)
            if self._files is not None:
                self._files.gone(peer.number)
            if not self._halt.is_set():
                holds = peer.key is not None and self._gate is not None and self._gate.holds(peer)
                self._handle(Disconnected(peer.number, cut=holds and not peer.expelled))

    # --- answers to frames ------------------------------------------------------------------------------------------

    def _reply(self, peer: Peer | None, frame: bytes) -> None:
        if peer is None or not self.door.send(peer, frame):
            self.lost_replies += 1

    def answer(self, action: Reply) -> None:
        """Send an answer as soon as it may leave."""
        value = action.value if action.errno is Errno.OK else action.reason
        peer = self.peers.numbered(action.peer)
        if self._files is not None:
            self._files.answered(action.peer, action.seq)
        position = self._keeper.position if self._keeper is not None and action.told and action.tells else 0
        try:
            frame = wire.encode_reply(action.seq, action.errno, value, position)
        except MemoryError:
            why = "the kernel has no memory for the answer; ask for less"
            frame = wire.encode_reply(action.seq, Errno.EIO, why, position)
        if self._audit is None or not action.tells:
            self._reply_kept(peer, frame, action)
        else:
            self._audit.when_kept(lambda: self._reply_kept(peer, frame, action))

    def _reply_kept(self, peer: Peer | None, frame: bytes, action: Reply) -> None:
        if self._keeper is None:
            self._give(peer, frame)
        else:
            self._keeper.when_kept(
                lambda: self._give(peer, frame), changes=action.changes, tells=action.tells, synced=action.synced
            )

    def _give(self, peer: Peer | None, frame: bytes) -> None:
        if peer is not None:
            peer.owed -= 1
        self._reply(peer, frame)

    def cut_off(self, action: CutOff) -> None:
        """End a connection whose program has no use of it any more."""
        if (peer := self.peers.numbered(action.peer)) is not None:
            self.door.cut(peer, action.reason)

    def signal(self, action: SignalProgram) -> str:
        """Send a program a signal; returns why that is not done, if so."""
        peer = self.peers.numbered(action.peer)
        if peer is None:
            return ""  # it has gone
        try:
            if peer.process >= 0:
                signal.pidfd_send_signal(peer.process, action.signal)
            elif sys.platform != "linux" and peer.os_pid > 1:
                os.kill(peer.os_pid, int(action.signal))
            else:
                raise ProcessLookupError(0, "the operating system gives no hold of it")
        except OSError as error:
            if action.signal in (Signal.KILL, Signal.TERM):  # what it has here ends, if its OS process cannot be ended
                self.door.cut(peer, f"it was sent {action.signal.name}, and cannot be signalled: {error.strerror}")
                return ""
            return f"signal {action.signal.name} to {peer.shown}: {error.strerror}"
        return ""

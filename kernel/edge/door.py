"""The door of the kernel: a listening socket, the connections that came by it, and a turn for each.

The kernel accepts, reads and writes by itself, and speaks ZMTP (syscalls/zmtp.py) to programs that use ZeroMQ. libzmq
would accept tens of thousands in a second and abort the whole process when no descriptor is left for one more; it keeps
messages that are not whole where nobody sees them; it counts messages where bytes matter. Here each byte is charged
before it is kept (kernel/edge/peers.py), and whoever goes beyond what he may have is told so, or cut off.

Turns. Who has sent something gets a turn: a few messages, or a piece of a long one. OS processes have turns one after the
other, however many connections each has. No turn can be cut short, and some calls take long (a million tokens take
50 ms to decode); so while others call, too, an OS process that has used up its half of the kernel's time is not read
from for a while. Its messages wait in its own socket then, and it itself at last: that is all that pacing costs.

Places. When all are taken, newcomers are let in to hear why they cannot stay. The last places are for OS processes that
have no connection yet, so that one which takes all it can get does not lock out a `kill` or a `halt`. Who says nothing is
cut off after a while.

Programs on other machines come by the same door, through its gate (gate.py), and are served alike: budgets, turns and
places know no difference, but that a host stands in for an OS process, and a key for its user.
"""

from __future__ import annotations

import heapq
import os
import resource
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import trio

from llmasos.kernel.edge.peers import Account, Peer
from llmasos.syscalls import limits, wire, zeromq, zmtp
from llmasos.syscalls.budgets import ANSWERS, CONNECTIONS, NOTES, RECEIVED, Allowance
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Budget
from llmasos.syscalls.zeromq import LISTEN_QUEUE

if TYPE_CHECKING:  # what encrypts is loaded where the kernel listens to other machines
    from llmasos.kernel.edge.gate import Change, Gate

NOBODY = "the user of this program has no id on this machine (another user namespace has), so it is nobody's program"
ENOUGH = 65_536  # descriptors
LEAST = 256
OWN = 128  # descriptors for drivers, journal, models and logs; less where there are few
NEWCOMERS = 16  # places for OS processes that have no connection yet
TELL_SECONDS = 0.5  # for which a refused connection stays, to hear why
SILENT_SECONDS = 30.0  # for which one stays that says nothing, or stops in the middle of a request
HOLD_ANSWERS = 1 << 20  # bytes of answers that wait for a program above which its next calls do
# Calls without an answer above which its next ones wait: more than can be parked, so the others wait for the disk
# (`fsync` is `always`), and not for what the program does next.
MOST_OWED = 2 * limits.MAX_PARKED_CALLS
SHARE = 0.5  # of the kernel's time that one OS process may have while others call, too,
BURST = 0.01  # seconds that it may be beyond that,
ACTIVE = 0.1  # and seconds for which an OS process counts as one that calls
_MESSAGES = 16  # of one turn, at most,
_TURN = 0.0003  # and seconds
_LONG = 1 << 14  # bytes from which an answer goes by itself
_ACCEPTS = 32  # connections to accept at once
_TOLD = 16  # refused connections that stay at once, beside those that are in
_FIRST = 2  # a program looks whether a kernel listens, then connects
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


def raise_descriptor_limit() -> int:
    """Raise the limit of descriptors as far as this process may, and need; returns it. Raises SyscallError EINVAL: it is
    too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # a system with another bound
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < LEAST:
        raise Errno.EINVAL(f"a kernel needs {LEAST} descriptors at least, and may have {soft}; raise `ulimit -n`")
    return ENOUGH if soft == resource.RLIM_INFINITY else soft


def hidden(path: Path) -> Path:
    """The name of the socket at `path` before anybody is to find it."""
    return path.with_name(f"{path.name}.hidden")


class Reach(NamedTuple):
    """Who may connect to a socket, by the modes of its file: this user; all others; or a group of them."""

    mode: int = 0o600
    group: int | None = None


PRIVATE = Reach()


class Door:
    """One listening socket and its connections.

    `deliver(peer, message)` gets what comes, a frame or the reason why there is none; `gone(peer)` is told when a
    connection that had said something has ended; `note(peer, text)` what the kernel's log should say.
    """

    def __init__(
        self,
        descriptors: int,
        deliver: Callable[[Peer, zmtp.Frame | zmtp.Refused], None],
        gone: Callable[[Peer], None],
        note: Callable[[Peer, str], None],
        *,
        received: Allowance = RECEIVED,
        sends: Allowance = ANSWERS,
        refuses: Callable[[SyscallError], None] = lambda why: None,
        strangers: frozenset[int | None] = frozenset(),
        admits: Callable[[int], bool] | None = None,
    ) -> None:
        """`descriptors`: the limit of the operating system for this process. `received`, `sends`: the bounds of what
        comes, and of what goes. `refuses` is told why a connection is refused. `strangers`: uids that are nobody's.
        `admits(pid)` says which OS processes may connect, and these are not paced; without it, all may."""
        self._deliver, self._gone, self._note = deliver, gone, note
        self._received, self._sends = received, sends
        self._refuses, self._strangers, self._admits = refuses, strangers, admits
        self._descriptors = descriptors
        self.most = descriptors - min(OWN, descriptors // 4) - _TOLD  # connections
        self.refused = 0
        self.refusals: Counter[str] = Counter()  # of other budgets
        self._told_left_out = 0  # lines of the log that were left out, and a later one says so
        self.everybody = Account("all programs")
        self._processes: dict[int | str, Account] = {}
        self._owners: dict[int | str | None, Account] = {}
        self._peers: dict[int, Peer] = {}
        self._inside = 0  # of them, those that are not refused
        self._numbers = 0
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._path = Path()
        self.gate: Gate | None = None
        self._outside: socket.socket | None = None  # where those from other machines come
        self._changes: Callable[[list[Change]], None] = lambda changes: None
        self._spare = -1  # a descriptor to give up when there is no other
        self._turns: dict[Account, dict[Peer, None]] = {}
        self._paused: dict[Account, dict[Peer, None]] = {}
        self._held: set[Peer] = set()  # those whose calls wait until they have read their answers
        self._corked: Peer | None = None  # has its turn, and gets short answers
        self._cork: list[bytes] = []  # at the end of it
        self._stays: list[tuple[float, int]] = []  # heap: when the connection of that number has to be gone
        self._last = self._before = Account("nobody")  # the last two that had a turn
        self._timed = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._closed = False

    # --- listening --------------------------------------------------------------------------------------------------

    def listen(self, path: Path, reach: Reach = PRIVATE) -> None:
        """Listen at `path`, which is found only when whoever connects is heard; `reach` says who may. Where it listened
        before, under a name that is no more, it listens no longer. Raises OSError."""
        self._deafen()
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.setblocking(False)
            hidden(path).unlink(missing_ok=True)
            listener.bind(os.fspath(hidden(path)))
            if reach.group is not None:
                os.chown(hidden(path), -1, reach.group)
            os.chmod(hidden(path), reach.mode)
            listener.listen(LISTEN_QUEUE)
            os.rename(hidden(path), path)
        except BaseException:
            listener.close()
            raise
        self._listener, self._path = listener, path
        self._selector.register(listener, _READ, None)
        if self._spare < 0:
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _deafen(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def open_gate(self, gate: Gate, listener: socket.socket, changes: Callable[[list[Change]], None]) -> None:
        """Let programs on other machines come by TCP, too. `changes` is told what has become of keys."""
        self._outside, self.gate, self._changes = listener, gate, changes
        self._selector.register(self._outside, _READ, None)

    def __len__(self) -> int:
        return self._inside

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # no descriptor is left: whoever comes is cut off, and tries again
                self._turn_away(listener)
                return
            self._admit(connection)

    def _turn_away(self, listener: socket.socket) -> None:
        self.refused += 1
        with suppress(OSError):
            os.close(self._spare)
            self._spare = -1
            listener.accept()[0].close()
        with suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _admit(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._numbers += 1
        try:
            peer = Peer(self._numbers, connection, self._received, self._sends)
            if peer.host and self.gate is not None:
                self.gate.prepare(connection)
                peer.incoming = peer.curve = self.gate.incoming(self._received.each)
        except OSError:  # it has gone
            connection.close()
            return
        if self._admits is not None and not self._admits(peer.os_pid):
            self.refused += 1
            connection.close()
            return
        process = self._account(peer)
        owner = self._owner(peer)
        peer.refused = self._refusal(peer, process)
        self.refused += peer.refused is not None
        if peer.refused is not None and len(self._peers) - self._inside >= _TOLD:
            connection.close()  # there is no room to tell everybody; who is cut off tries again
            self._forget(process)
            return
        self._processes[peer.host or peer.os_pid], self._owners[_whose(peer)] = process, owner
        peer.pays(process, owner, self.everybody)
        self._peers[peer.number] = peer
        self._inside += peer.refused is None
        self._stay(peer, TELL_SECONDS if peer.refused else SILENT_SECONDS)
        self._wait_for(peer, _READ)
        if self.gate is not None and peer.curve is not None:
            self._is_stranger(peer, self.gate)
        else:
            self._offer(peer, zmtp.OPENING)

    def _owner(self, peer: Peer) -> Account:
        whose = _whose(peer)
        name = f"user {whose}" if isinstance(whose, int | None) else whose
        return self._owners.get(whose) or Account(name)

    def _account(self, peer: Peer) -> Account:
        """That of the OS process at the other end. A pid may be another's one day, a pidfd never is."""
        account = self._processes.get(peer.host or peer.os_pid)
        if peer.host:
            return account or Account(f"host {peer.host}")
        if account is None or (account.pidfd >= 0 and zeromq.ended(account.pidfd)):
            found = zeromq.Credentials(peer.os_pid, peer.uid)
            account = Account(f"OS process {peer.os_pid}", zeromq.pidfd(peer.fd, found))
        return account

    def _forget(self, account: Account) -> None:
        """An account without connections ends."""
        if not account.connections and account.pidfd >= 0:
            os.close(account.pidfd)
            account.pidfd = -1

    def _refusal(self, peer: Peer, process: Account) -> SyscallError | None:
        if peer.uid in self._strangers and not peer.host:
            if peer.uid is None:
                return Errno.EAGAIN("the operating system does not say whose program this is; try again")
            return Errno.EPERM(NOBODY)
        count = self._inside + len(self._processes) + 1
        if count <= self.most - NEWCOMERS or (count <= self.most and process.connections < _FIRST):
            return None
        return CONNECTIONS.errno(
            f"{self._inside} programs are connected, and more than {self.most} cannot be (`ulimit -n` is "
            f"{self._descriptors} for this kernel); end some, or boot it with a higher limit"
        )

    def _stay(self, peer: Peer, seconds: float) -> None:
        peer.until = time.monotonic() + seconds
        heapq.heappush(self._stays, (peer.until, peer.number))
        self._timed.set()

    def _may_stay(self, peer: Peer) -> None:
        """The connection has no time to be gone by any more. An idle kernel is not woken for it."""
        peer.until = 0.0
        if self._stays and self._stays[0][1] == peer.number:
            self._timed.set()

    # --- those from other machines ------------------------------------------------------------------------------------

    def _is_stranger(self, peer: Peer, gate: Gate) -> None:
        """It has to show a key, within seconds; if there are too many of these, the oldest goes."""
        from llmasos.kernel.edge.gate import STRANGER_SECONDS, STRANGERS
        from llmasos.syscalls.curve import OPENING

        self._stay(peer, STRANGER_SECONDS)
        gate.strangers[peer] = None
        while len(gate.strangers) > STRANGERS:
            self.turn_away(gate.one_too_many(), f"{STRANGERS} have not shown a key, and newer ones have come")
        self._offer(peer, OPENING)

    def _shown(self, peer: Peer, shown: zmtp.Shown) -> None:
        """It holds a key; whether that may come in."""
        from llmasos.syscalls import curve
        from llmasos.syscalls.curve_keys import text_of

        gate, incoming = self.gate, peer.curve
        assert gate is not None
        assert incoming is not None
        self.look_at_keys()
        if why := gate.refusal(shown.public):
            self._offer(peer, curve.turned_away())
            self.turn_away(peer, f"its key {text_of(shown.public)} is not accepted: {why}")
            return
        gate.strangers.pop(peer, None)
        before, whose = peer.accounts[1], _whose(peer)
        peer.key = key = gate.keys[shown.public]
        peer.uid = key.uid if key.uid is not None else os.getuid()
        owner = self._owners[_whose(peer)] = self._owner(peer)
        peer.moves(owner)
        if not before.connections:
            self._owners.pop(whose, None)
        self._stay(peer, TELL_SECONDS if peer.refused else SILENT_SECONDS)
        self._offer(peer, incoming.welcome())
        self._arrived(peer, zmtp.Ready(shown.identity))

    def turn_away(self, peer: Peer, why: str) -> None:
        """End the connection of a stranger, which log and audit tell."""
        self.refused += 1
        self._tell(peer, f"{peer.shown} is refused: {why}")
        self._refuses(Errno.EPERM(f"{peer.shown}: {why}"))
        self._end(peer)

    def look_at_keys(self) -> None:
        """Read the file of keys if it has changed, and cut off whoever came by one that may no longer."""
        if self.gate is None or not (changes := self.gate.look()):
            return
        for peer in list(self._peers.values()):
            if not self.gate.holds(peer):
                peer.drop()
                self._end(peer)
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
                    await trio.lowlevel.wait_readable(self._selector.fileno())

    async def keep_time(self) -> None:
        """Cut off what has stayed too long, and let those go on that had to pause. Until cancelled."""
        while True:
            await self._timed.wait()
            self._timed = trio.Event()
            while (due := self._next_due()) is not None:
                with trio.move_on_after(max(0.0, due - time.monotonic())):
                    await self._timed.wait()
                    self._timed = trio.Event()
                self._resume()
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
        for key, events in self._selector.select(0):
            peer = key.data
            if peer is None:
                if (listener := self._listener if key.fileobj is self._listener else self._outside) is not None:
                    self._accept(listener)
            elif peer.number in self._peers:
                if events & _WRITE:
                    self._flush(peer)
                if events & _READ:
                    self._turns.setdefault(peer.payer, {})[peer] = None
        for account in list(self._turns):
            waiting = self._turns[account]
            if not waiting:
                del self._turns[account]
                continue
            peer = next(iter(waiting))
            del waiting[peer]
            if self._must_pause(account):
                self._paused.setdefault(account, {})[peer] = None
                self._wait_for(peer, peer.mask & ~_READ)
                self._timed.set()
            elif self._turn(peer):
                waiting[peer] = None  # the last one now
            if not waiting:
                self._turns.pop(account, None)
        return bool(self._turns)

    def _turn(self, peer: Peer) -> bool:
        """Take some of what a connection sends. Whether there may be more."""
        begin = time.thread_time()  # time in which the kernel was not running is nobody's
        self._corked, more = peer, True
        try:
            more = self._take(peer, begin + _TURN)
        except (EOFError, OSError):
            if self.gate is not None and peer in self.gate.strangers:
                self.turn_away(peer, "it has gone before it had shown a key")
            else:
                self._end(peer)
        except zmtp.Broken as broken:
            self.cut(peer, str(broken))
        finally:
            if self._cork:
                self._uncork(peer)
            self._corked = None
        self._charge(peer.payer, time.thread_time() - begin)
        if peer.number not in self._peers:
            return False
        if peer.counted or peer.incoming.held or peer.incoming.reserved:
            peer.count()
            if peer.incoming.reserved and not peer.until:
                self._stay(peer, SILENT_SECONDS)
        return more

    def _take(self, peer: Peer, until: float) -> bool:
        if peer.key is not None:
            self.look_at_keys()
            if peer.number not in self._peers:
                return False
        incoming, room, more = peer.incoming, peer.room, True
        for _ in range(_MESSAGES):
            if (peer.answers > HOLD_ANSWERS or peer.owed > MOST_OWED) and self._admits is None:
                self._hold(peer)
                return False
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
                    self._may_stay(peer)
                self._deliver(peer, arrived)
            else:
                self._arrived(peer, arrived)
            if time.thread_time() > until or peer.number not in self._peers:
                return True
        return True

    def _arrived(self, peer: Peer, arrived: zmtp.Arrived) -> None:
        match arrived:
            case zmtp.Ready():
                peer.identity = arrived.identity
                if (why := peer.refused) is not None:
                    self.send(peer, wire.encode_reply(0, why.errno, why.reason))  # to no call in particular
                    self._refuses(why)
            case zmtp.Pong():
                self._offer(peer, arrived.frame)
            case zmtp.Shown():
                self._shown(peer, arrived)
            case _ if peer.refused is None:
                self._may_stay(peer)
                if isinstance(arrived, zmtp.Refused) and arrived.errno is self._received.errno:
                    self.refusals[self._received.name] += 1
                self._deliver(peer, arrived)

    def _hold(self, peer: Peer) -> None:
        self._held.add(peer)
        self._wait_for(peer, _WRITE)

    def _charge(self, account: Account, seconds: float) -> None:
        now = time.perf_counter()
        debt = max(0.0, account.debt - SHARE * (now - account.settled))
        account.debt = min(debt, BURST) + seconds  # what it had while it was alone is forgiven
        account.settled = account.seen = now
        if account is not self._last:
            self._before, self._last = self._last, account

    def _must_pause(self, account: Account) -> bool:
        if self._admits is not None or account.debt <= BURST:
            return False
        now = time.perf_counter()
        other = self._before if account is self._last else self._last
        return now - other.seen < ACTIVE and account.debt - SHARE * (now - account.settled) > BURST

    def _resume(self) -> None:
        now = time.perf_counter()
        for account in [one for one in self._paused if _rested(one) <= now]:
            for peer in self._paused.pop(account):
                if peer.number in self._peers:
                    self._wait_for(peer, peer.mask | _READ)
                    self._turns.setdefault(account, {})[peer] = None
                    self._look_soon()

    def _next_due(self) -> float | None:
        while self._stays:
            until, number = self._stays[0]
            peer = self._peers.get(number)
            if peer is not None and peer.until == until:
                break
            heapq.heappop(self._stays)
        if self._paused:
            rest = min(map(_rested, self._paused)) - time.perf_counter()
            pause = time.monotonic() + rest
            return min(pause, self._stays[0][0]) if self._stays else pause
        return self._stays[0][0] if self._stays else None

    def _sweep(self) -> None:
        now = time.monotonic()
        while self._stays and self._stays[0][0] <= now:
            until, number = heapq.heappop(self._stays)
            peer = self._peers.get(number)
            if peer is not None and peer.until == until and peer.refused is None:
                self._turn(peer)  # what it has said meanwhile counts, however late the kernel hears of it
            if peer is None or peer.until != until:
                continue
            if self.gate is not None and peer in self.gate.strangers:
                self.turn_away(peer, "it has not shown a key in time")
            else:
                self._end(peer)

    def drain(self) -> None:
        """Deliver all that has arrived, at once. For the end of a connection, when no task may be left to wait for it."""
        for peer in list(self._peers.values()):
            while peer.number in self._peers and self._turn(peer):
                pass

    # --- answers ----------------------------------------------------------------------------------------------------

    def send(self, peer: Peer, frame: bytes) -> bool:
        """Send a message without waiting. False: the peer has gone, or was cut off since it does not read."""
        if peer.number not in self._peers:
            return False
        if peer.curve is not None:
            self.look_at_keys()
            return peer.number in self._peers and self._offer(peer, peer.curve.sealed(frame))
        size = len(frame)
        if size >= _LONG:
            return self._offer(peer, zmtp.head(size)) and self._offer(peer, frame)
        data = (b"\0%c" % size if size < 256 else zmtp.head(size)) + frame
        if peer is self._corked:  # its turn has an end soon
            self._cork.append(data)
            return True
        return self._offer(peer, data)

    def _offer(self, peer: Peer, data: bytes) -> bool:
        """Whether the peer is still there."""
        if self._cork and peer is self._corked:
            self._uncork(peer)
        rest, account, why = peer.offer(data)
        while why:  # what somebody does not read is too much
            payers = (one for one in self._peers.values() if account in one.accounts)
            worst = peer if account is None else max(payers, key=lambda one: one.answers)
            self.refusals[self._sends.name] += 1
            self.cut(worst, why)
            if worst is peer:
                return False
            rest, account, why = peer.offer(bytes(rest))
        if peer.out:
            self._wait_for(peer, peer.mask | _WRITE)
        elif peer in self._held:
            self._flush(peer)
        return True

    def _uncork(self, peer: Peer) -> None:
        cork, self._cork = self._cork, []
        self._offer(peer, cork[0] if len(cork) == 1 else b"".join(cork))

    def _flush(self, peer: Peer) -> None:
        if peer.out:
            peer.write()
        if peer.out:
            self._wait_for(peer, peer.mask | _WRITE)
        elif peer.mask & _WRITE:
            self._wait_for(peer, peer.mask & ~_WRITE)
        if peer in self._held and peer.answers <= HOLD_ANSWERS // 2 and peer.owed <= MOST_OWED:
            self._held.discard(peer)
            self._wait_for(peer, peer.mask | _READ)
            self._turns.setdefault(peer.payer, {})[peer] = None
            self._look_soon()  # there may be whole messages, of which the socket does not tell

    def budgets(self) -> list[Budget]:
        """What programs use of the edge's resources."""
        processes = self._processes.values()
        connections = max((one.connections for one in processes), default=0)
        received = max((one.received for one in processes), default=0)
        answers = max((one.answers for one in processes), default=0)
        notes = max((one.notes for one in processes), default=0)
        everybody, refused = self.everybody, self.refusals
        return [
            CONNECTIONS.told(self._inside, self.refused, connections, self.most),
            RECEIVED.told(everybody.received, refused[RECEIVED.name], received),
            ANSWERS.told(everybody.answers, refused[ANSWERS.name], answers),
            NOTES.told(everybody.notes_now(time.monotonic()), refused[NOTES.name], notes),
        ]

    @property
    def waiting(self) -> int:
        """Bytes of answers that wait."""
        return self.everybody.answers

    # --- the end ----------------------------------------------------------------------------------------------------

    def cut(self, peer: Peer, why: str) -> None:
        """End a connection, and say why in the log."""
        if peer.number not in self._peers:
            return
        if self.gate is not None and peer in self.gate.strangers:
            self.turn_away(peer, why)
            return
        self._tell(peer, f"{peer.shown} is cut off: {why}")
        self._end(peer)

    def _tell(self, peer: Peer, text: str) -> None:
        """A line for the kernel's log, unless there have been too many."""
        now = time.monotonic()
        levels = zip(peer.accounts, (NOTES.process, NOTES.owner, NOTES.all), strict=True)
        if any(account.notes_now(now) >= most for account, most in levels):
            self.refusals[NOTES.name] += 1
            return
        for account in peer.accounts:
            account.notes += 1
        left_out = self.refusals[NOTES.name] - self._told_left_out
        self._told_left_out += left_out
        self._note(peer, f"{text}; {left_out} such lines before this one were left out" if left_out else text)

    def _end(self, peer: Peer) -> None:
        if self._peers.pop(peer.number, None) is None:
            return
        self._may_stay(peer)
        self._inside -= peer.refused is None
        self._wait_for(peer, 0)
        self._held.discard(peer)
        for waiting in (self._turns, self._paused):
            if peer.payer in waiting:
                waiting[peer.payer].pop(peer, None)
        process, owner, _ = peer.accounts
        if self.gate is not None:
            self.gate.strangers.pop(peer, None)
        peer.close()
        self._forget(process)
        named = peer.host or peer.os_pid
        if not process.connections and self._processes.get(named) is process:
            del self._processes[named]
        if not owner.connections:
            del self._owners[_whose(peer)]
        self._gone(peer)

    def _wait_for(self, peer: Peer, mask: int) -> None:
        if mask == peer.mask:
            return
        if not mask:  # a connection that has ended would tell so for ever
            self._selector.unregister(peer.connection)
        elif peer.mask:
            self._selector.modify(peer.connection, mask, peer)
        else:
            self._selector.register(peer.connection, mask, peer)
        peer.mask = mask

    def close(self) -> None:
        """End all. What the operating system has been given is still read by those at the other ends."""
        if self._closed:
            return
        self._closed = True
        self._deafen()
        if self._outside is not None:
            self._selector.unregister(self._outside)
            self._outside.close()
        for peer in list(self._peers.values()):
            self._end(peer)
        with suppress(RuntimeError):  # outside trio nobody waits
            trio.lowlevel.notify_closing(self._selector.fileno())
        self._selector.close()
        if self._spare >= 0:
            os.close(self._spare)


def _whose(peer: Peer) -> int | str | None:
    """By what the account of its owner is found."""
    if not peer.host:
        return peer.uid
    if peer.key is None:
        return "strangers"
    return peer.uid if peer.key.uid is not None else f"key {peer.key.name}"


def _rested(account: Account) -> float:
    """When a paused account may go on."""
    return account.settled + (account.debt - BURST / 2) / SHARE

"""Connections: who is at the other end, what has come from there, what is to go there, and who pays for it.

The operating system says who it is (SO_PEERCRED at the moment of connecting), not the message. A connection's number is
never used again. What a connection makes the kernel keep is charged to it, to its OS process, to its owner and to all
(syscalls/budgets.py), before it is kept.

The operating system tells nothing of a connection from another machine. The key that it shows says who is there
(gate.py), and its host pays in place of an OS process.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from llmasos.syscalls import runtime, zeromq, zmtp
from llmasos.syscalls.budgets import Allowance
from llmasos.syscalls.curve_keys import Key
from llmasos.syscalls.errno import SyscallError

if TYPE_CHECKING:  # what encrypts is loaded where the kernel listens to other machines
    from llmasos.syscalls import curve

_OVERFLOW = Path("/proc/sys/kernel/overflowuid")
NOTES_SECONDS = 10.0
_AT_ONCE = 64  # buffers to hand to the operating system


class Gone(Exception):
    """Nothing more comes by a connection."""


class Account:
    """What somebody uses of the edge's resources: an OS process, an owner, all. `name` is for people."""

    __slots__ = ("answers", "connections", "debt", "name", "noted", "notes", "pidfd", "received", "seen", "settled")

    def __init__(self, name: str, pidfd: int = -1) -> None:
        """`pidfd`: of an OS process; it is closed with the account."""
        self.name, self.pidfd = name, pidfd
        self.connections = self.received = self.answers = 0
        self.notes, self.noted = 0, 0.0  # lines of the log that it has caused since that moment
        # seconds of the kernel's time that it has had and others have not; when that was true; when it last had any
        self.debt = self.settled = self.seen = 0.0

    def notes_now(self, now: float) -> int:
        """Lines of the log that it has caused lately."""
        if now - self.noted > NOTES_SECONDS:
            self.notes, self.noted = 0, now
        return self.notes


class Peer:
    """A connection. `number` names it for the core; `os_pid` is 0 and `uid` None where the operating system does not
    tell; `identity` is the name that it gives itself. One from another machine has a `host`, `curve`, and from when it
    has shown it a `key`; its `tenant` is the one that this key stands for."""

    __slots__ = (
        "accounts", "answers", "connection", "counted", "curve", "deaf", "expelled", "fd", "host", "identity", "incoming",
        "key", "mask", "number", "os_pid", "out", "owed", "received", "refused", "sandbox", "sends", "uid", "until",
        "work", "working",
    )  # fmt: skip

    def __init__(self, number: int, connection: socket.socket, received: Allowance, sends: Allowance) -> None:
        """`received`, `sends`: the bounds of what comes and has not been handled, and of what waits to go."""
        self.number, self.connection, self.fd = number, connection, connection.fileno()
        unix = connection.family == socket.AF_UNIX
        self.os_pid, self.uid = zeromq.credentials(self.fd) if unix else zeromq.Credentials()
        self.host = "" if unix else str(connection.getpeername()[0])
        self.identity = b""
        self.sandbox = 0  # by whose endpoint it came
        self.curve: curve.Incoming | None = None
        self.key: Key | None = None
        self.received, self.sends = received, sends
        self.incoming: zmtp.Incoming = zmtp.Incoming(received.each)
        self.accounts: tuple[Account, ...] = ()  # of its OS process, its owner, all
        self.work: Iterator[None] | None = None  # parts in which its last message is handled
        self.working = 0  # bytes of that
        self.counted = 0  # of received bytes, what the accounts have
        self.out: list[bytes | memoryview] = []  # an empty deque takes 600 bytes
        self.answers = 0  # bytes of `out`
        self.owed = 0  # calls that have not been answered
        self.expelled = False  # the kernel has cut it off
        self.deaf = False  # it has closed its end, or does not take what is sent
        self.mask = 0  # what is waited for: that bytes come, that there is room for those that go
        self.until = 0.0  # when it must have said something, or be gone; 0: it may stay
        self.refused: SyscallError | None = None  # why it cannot stay

    def pays(self, process: Account, owner: Account, everybody: Account) -> None:
        """Say who pays for it from here on."""
        self.accounts = process, owner, everybody
        for account in self.accounts:
            account.connections += 1

    def moves(self, owner: Account) -> None:
        """Another owner pays for it from here on."""
        process, before, everybody = self.accounts
        before.connections, owner.connections = before.connections - 1, owner.connections + 1
        before.received, owner.received = before.received - self.counted, owner.received + self.counted
        before.answers, owner.answers = before.answers - self.answers, owner.answers + self.answers
        self.accounts = process, owner, everybody

    @property
    def tenant(self) -> str:
        return self.key.tenant if self.key is not None else ""

    @property
    def stranger(self) -> bool:
        """Whether it comes from another machine and has not shown a key that lets it in."""
        return self.key is None and bool(self.host)

    @property
    def shown(self) -> str:
        """Who is there, for the kernel's log."""
        if not self.host:
            return f"OS process {self.os_pid}"
        return f"{self.host} (key {self.key.name})" if self.key is not None else f"a stranger from {self.host}"

    @property
    def payer(self) -> Account:
        """Of its OS process."""
        return self.accounts[0]

    @property
    def process(self) -> int:
        """A pidfd of its OS process, or -1."""
        return self.accounts[0].pidfd

    # --- what comes ---

    def room(self, size: int) -> str:
        """Set bytes aside for a request, or say why they cannot be."""
        received = self.received
        for account, most in zip(self.accounts, (received.process, received.owner, received.all), strict=True):
            if most and account.received + size > most:
                return received.over(account.name, account.received, most)
        self._receive(size)
        return ""

    def _receive(self, size: int) -> None:
        self.counted += size
        for account in self.accounts:
            account.received += size

    def begins(self, work: Iterator[None] | None, size: int) -> None:
        """Handle a message of so many bytes in parts, if there are any."""
        if work is not None:
            self.work, self.working = work, size

    def ends(self) -> None:
        self.work, self.working = None, 0

    def count(self) -> None:
        """Charge what it has sent and the kernel has not handled: no more, no less."""
        self.incoming.compact()
        held = self.incoming.held + self.incoming.reserved + self.working
        if held != self.counted:
            self._receive(held - self.counted)

    def read(self) -> bool:
        """Take what has come, up to a bound. False: there is no more. Raises Gone."""
        place = self.incoming.place()
        try:
            if place is not None:
                got, most = self.connection.recv_into(place), len(place)
                self.incoming.filled(got)
            else:
                most = zmtp.CHUNK if self.payer.received < (self.received.process or 1 << 62) else zmtp.FEW
                data = self.connection.recv(most)
                got = len(data)
                self.incoming.put(data)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            raise Gone from None
        if not got:
            raise Gone
        return got == most

    # --- what goes ---

    def offer(self, data: bytes) -> tuple[bytes | memoryview, Account | None, str]:
        """Have some bytes sent, as many as the operating system takes now, and keep the rest. Where these are more than
        may wait nothing more is kept: returns what is over, whose bound it is (None: its own), and why."""
        rest: bytes | memoryview = data
        if not self.out and not self.deaf:
            try:
                sent = self.connection.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:  # nobody is there to read; what it has sent still counts
                self.deaf = True
                with suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)  # should somebody be there, he hears of it
            else:
                if sent == len(data):
                    return b"", None, ""
                rest = memoryview(data)[sent:]
        if self.deaf:
            return b"", None, ""
        account, why = self._over(len(rest))
        if not why:
            self.keep(rest)
            rest = b""
        return rest, account, why

    def keep(self, data: bytes | memoryview) -> None:
        """Bytes that wait to be sent."""
        self.out.append(data)
        self._answer(len(data))

    def _over(self, size: int) -> tuple[Account | None, str]:
        answers = self.sends
        if answers.each and self.answers and self.answers + size > answers.each:  # one may be of any length
            return None, answers.over(f"a connection of {self.shown}", self.answers, answers.each)
        for account, most in zip(self.accounts, (answers.process, answers.owner, answers.all), strict=True):
            if most and account.answers + size > most:
                return account, answers.over(account.name, account.answers, most)
        return None, ""

    def _answer(self, size: int) -> None:
        self.answers += size
        for account in self.accounts:
            account.answers += size

    def write(self) -> None:
        """Give the operating system what it takes of what waits."""
        out = self.out
        try:
            while out:
                sent = self.connection.send(out[0]) if len(out) == 1 else self.connection.sendmsg(out[:_AT_ONCE])
                self._answer(-sent)
                whole = 0
                while sent and sent >= len(out[whole]):
                    sent -= len(out[whole])
                    whole += 1
                del out[:whole]
                if sent:
                    out[0] = memoryview(out[0])[sent:]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.deaf = True
            self.drop()

    def drop(self) -> None:
        """Forget what it has not read."""
        self.out.clear()
        self._answer(-self.answers)

    def close(self) -> None:
        self.drop()
        self._receive(-self.counted)
        for account in self.accounts:
            account.connections -= 1
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)  # a child may hold the descriptor
        self.connection.close()


def unmapped_uid() -> int:
    """The uid by which the operating system shows users that have none here (those of other user namespaces). Raises
    OSError: it does not say; whom to refuse is not guessed."""
    try:
        return int(_OVERFLOW.read_text())
    except (FileNotFoundError, ValueError):  # no Linux, or no /proc
        return 65534


def in_sandbox(peer: Peer) -> bool:
    """Whether an OS process is in a sandbox that was made for it (userland/programs/bubblewrap.py). It has the endpoint
    of that one; a socket of another kernel that it finds in what was bound in is not for it.

    Such a process is in a user namespace of its own, and what it has for a runtime directory holds a socket and no lock;
    it can change neither. Of one that has gone, and may have passed its connection on, nothing is known any more. Of
    other users' processes the operating system does not tell."""
    if sys.platform != "linux" or peer.host or peer.sandbox or peer.uid != os.getuid():
        return False
    process = f"/proc/{peer.os_pid}"
    try:
        if os.readlink(f"{process}/ns/user") == os.readlink("/proc/self/ns/user"):
            return False
        place = f"{process}/root/run/llmasos"
        return os.path.lexists(f"{place}/{runtime.PROGRAMS}") and not os.path.lexists(f"{place}/{runtime.LOCK}")
    except PermissionError:  # it runs a file that it may not read, say; its status is to be read nevertheless
        return _spaces(process) != _spaces("/proc/self")
    except OSError:
        return not os.path.exists(process) and os.path.exists("/proc/self")


def _spaces(process: str) -> int:
    """In how many namespaces, one within the other, an OS process has a pid (proc(5), NSpid); 0: nothing is told."""
    with suppress(OSError), open(f"{process}/status", "rb") as status:
        return next((len(line.split()) - 1 for line in status if line.startswith(b"NSpid:")), 0)
    return 0


class Peers:
    """All connections that have attached or may, by number."""

    def __init__(self) -> None:
        self._by_number: dict[int, Peer] = {}
        self._came = trio.Event()

    def add(self, peer: Peer) -> None:
        self._by_number[peer.number] = peer
        self._came.set()

    async def some(self) -> None:
        """Return when there are any."""
        if not self._by_number:
            self._came = trio.Event()
            await self._came.wait()

    def remove(self, peer: Peer) -> None:
        self._by_number.pop(peer.number, None)

    def numbered(self, number: int) -> Peer | None:
        return self._by_number.get(number)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._by_number.values())

    def __len__(self) -> int:
        return len(self._by_number)

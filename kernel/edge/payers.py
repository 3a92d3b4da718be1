"""Who pays for connections: their OS processes, their owners, and all together; and what each uses of the budgets.

An account ends with its last connection. A pid may be another's one day, a pidfd never is: so an OS process is known by
the descriptor that was taken of it at its first connection.
"""

from __future__ import annotations

import os
import time
from collections import Counter

from llmasos.kernel.edge.peers import NOTES_SECONDS, Account, Peer
from llmasos.syscalls import curve_keys, zeromq
from llmasos.syscalls.budgets import CONNECTIONS, NOTES, Allowance
from llmasos.syscalls.records import Budget


class Payers:
    """The accounts of one door's connections. `refusals` counts by budget what was refused for it."""

    def __init__(self, received: Allowance, sends: Allowance) -> None:
        self._received, self._sends = received, sends
        self.everybody = Account("all programs")
        self.processes: dict[int | str, Account] = {}
        self.owners: dict[int | str | None, Account] = {}
        self.refusals: Counter[str] = Counter()
        self._noted: dict[str, tuple[float, int]] = {}  # lines of the log, by accounts that have ended
        self._told_left_out = 0  # lines of the log that were left out, and a later one says so

    def process(self, peer: Peer) -> Account:
        """That of the OS process at the other end, or of its host. It may be new."""
        account = self.processes.get(peer.host or peer.os_pid)
        if peer.host:
            return account or self._noting(Account(f"host {peer.host}"))
        if account is None or (account.pidfd >= 0 and zeromq.ended(account.pidfd)):
            found = zeromq.Credentials(peer.os_pid, peer.uid)
            account = Account(f"OS process {peer.os_pid}", zeromq.pidfd(peer.fd, found))
        return account

    def owner(self, peer: Peer) -> Account:
        """That of its user, or of its key. It may be new."""
        whose = _whose(peer)
        name = f"user {whose}" if isinstance(whose, int | None) else whose
        return self.owners.get(whose) or self._noting(Account(name))

    def _noting(self, account: Account) -> Account:
        """A new account, to which lines of the log count that it caused before its latest connection ended: who comes and
        goes again and again fills no log."""
        account.noted, account.notes = self._noted.pop(account.name, (0.0, 0))
        return account

    def _ends(self, account: Account) -> None:
        now = time.monotonic()
        if account.notes_now(now):
            self._noted = {name: one for name, one in self._noted.items() if now - one[0] <= NOTES_SECONDS}
            self._noted[account.name] = account.noted, account.notes

    def enter(self, peer: Peer, process: Account) -> None:
        """From here on these pay for a connection."""
        owner = self.owner(peer)
        self.processes[peer.host or peer.os_pid], self.owners[_whose(peer)] = process, owner
        peer.pays(process, owner, self.everybody)

    def left(self, peer: Peer) -> None:
        """A connection has been closed."""
        process, owner, _ = peer.accounts
        self.forget(process)
        named = peer.host or peer.os_pid
        if not process.connections and self.processes.get(named) is process:
            del self.processes[named]
            self._ends(process)
        if not owner.connections:
            del self.owners[_whose(peer)]
            self._ends(owner)

    def forget(self, process: Account) -> None:
        """The account of an OS process ends where it has no connection."""
        if not process.connections and process.pidfd >= 0:
            os.close(process.pidfd)
            process.pidfd = -1

    def known(self, peer: Peer, key: curve_keys.Key) -> None:
        """A stranger has shown a key, by which he belongs to an owner."""
        before, whose = peer.accounts[1], _whose(peer)
        peer.key = key
        peer.uid = key.uid if key.uid is not None else os.getuid()
        owner = self.owners[_whose(peer)] = self.owner(peer)
        peer.moves(owner)
        if not before.connections and self.owners.pop(whose, None) is not None:
            self._ends(before)

    def line(self, peer: Peer, text: str) -> str:
        """A line for the kernel's log that a connection has caused; empty if there have been too many."""
        now = time.monotonic()
        levels = zip(peer.accounts, (NOTES.process, NOTES.owner, NOTES.all), strict=True)
        if any(account.notes_now(now) >= most for account, most in levels):
            self.refusals[NOTES.name] += 1
            return ""
        for account in peer.accounts:
            account.notes += 1
        left_out = self.refusals[NOTES.name] - self._told_left_out
        self._told_left_out += left_out
        return f"{text}; {left_out} such lines before this one were left out" if left_out else text

    def budgets(self, inside: int, refused: int, most: int) -> list[Budget]:
        """What programs use of the edge's resources. `inside`, `refused`, `most`: of connections."""
        processes = self.processes.values()
        connections = max((one.connections for one in processes), default=0)
        received = max((one.received for one in processes), default=0)
        answers = max((one.answers for one in processes), default=0)
        notes = max((one.notes for one in processes), default=0)
        everybody, refusals = self.everybody, self.refusals
        return [
            CONNECTIONS.told(inside, refused, connections, most),
            self._received.told(everybody.received, refusals[self._received.name], received),
            self._sends.told(everybody.answers, refusals[self._sends.name], answers),
            NOTES.told(everybody.notes_now(time.monotonic()), refusals[NOTES.name], notes),
        ]


def _whose(peer: Peer) -> int | str | None:
    """By what the account of its owner is found."""
    if not peer.host:
        return peer.uid
    if peer.key is None:
        return "strangers"
    return peer.uid if peer.key.uid is not None else f"key {peer.key.name}"

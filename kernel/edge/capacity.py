"""Who may come in: the places for connections, and for whom the last of them are kept.

When all are taken, newcomers are let in to hear why they cannot stay. The last places are for OS processes that have no
connection yet, so that one which takes all it can get does not lock out a `kill` or a `halt`; and in a kernel of several
users some of these are for its operators, and each other user has a part.
"""

from __future__ import annotations

from collections import Counter

from llmasos.kernel.edge.connections import Connections
from llmasos.kernel.edge.peers import Account, Peer, in_sandbox
from llmasos.syscalls.budgets import CONNECTIONS
from llmasos.syscalls.errno import Errno, SyscallError

NOBODY = "the user of this program has no id on this machine (another user namespace has), so it is nobody's program"
SANDBOXED = "this program is in a sandbox, which has an endpoint of its own; another kernel's is not for it"
OWN = 128  # descriptors for drivers, journal, models and logs; less where there are few
NEWCOMERS = 16  # places for OS processes that have no connection yet;
OPERATORS = 8  # of them, in a kernel of several users, those that are for its operators
USERS = 8  # in that kernel a user has at most one part of the places in so many
TOLD = 16  # refused connections that stay at once, beside those that are in
_FIRST = 2  # a program looks whether a kernel listens, then connects


class Capacity:
    """The places of one door."""

    def __init__(
        self,
        descriptors: int,
        strangers: frozenset[int | None],
        operators: frozenset[int] | None,
        connections: Connections,
    ) -> None:
        """`descriptors`: the limit of the operating system for this process. `strangers`: uids that are nobody's.
        `operators`: who may have all places; without it everybody may, since all are one user's."""
        self._descriptors, self._strangers, self._operators = descriptors, strangers, operators
        self._connections = connections
        self.most = descriptors - min(OWN, descriptors // 4) - 2 * TOLD  # connections

    def refusal(self, peer: Peer, process: Account, sandboxes: int) -> SyscallError | None:
        """Why a connection cannot stay, whose OS process has this account; that many sandboxes are open."""
        if peer.uid in self._strangers and not peer.host:
            if peer.uid is None:
                return Errno.EAGAIN("the operating system does not say whose program this is; try again")
            return Errno.EPERM(NOBODY)
        if in_sandbox(peer):
            return Errno.EPERM(SANDBOXED)
        inside, payers = self._connections.inside, self._connections.payers
        told = Counter(one.payer for one in self._connections.refused)  # for them, and their processes, room is kept
        alone = sum(account.connections == refused for account, refused in told.items())
        count, most = inside + len(payers.processes) - alone + sandboxes + 1, self.most
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

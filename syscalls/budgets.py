"""What a program can make the kernel spend, and how much of it: one row a resource.

The kernel is one process that all share, so everything that a peer's bytes can fill is bounded by steps: for one
connection (a program), for one OS process, which may have many, for one owner, who may have many of these, and in all.
Who reaches a bound is refused with an errno that names it and whose it is; others do not notice. `docs/budgets.md` and
`stats` come from here, and tests/kernel/test_budgets.py drives each row to its end.

What is bounded by its nature is not here: a name has a most in limits.py, the trace and the kernel log are rings.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmasos.syscalls import limits
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Budget

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Allowance:
    """A resource of the kernel's own. Amounts are bytes where `bytes` says so; 0: not bounded by this table."""

    name: str
    of: str  # what one of `each` is
    each: int
    process: int  # for one OS process
    owner: int
    all: int
    errno: Errno
    counts: str  # what is counted, and where the bound in all comes from if not from here
    then: str  # what happens at its end
    bytes: bool = False

    def over(self, whose: str, used: int, most: int) -> str:
        """Why something is refused, in words."""
        unit = " bytes" if self.bytes else ""
        return f"{self.name} of {whose}: {used:,} of at most {most:,}{unit} are used; {self.then}"

    def told(self, used: int, refused: int, largest: int, most: int = 0) -> Budget:
        """How much of it is used, for `stats`; `most` in all where that is not from here."""
        return Budget(
            self.name, used, most or self.all, refused, self.each, self.process, self.owner, largest, self.bytes
        )

    def refuse(self, whose: str, used: int, most: int) -> SyscallError:
        return self.errno(self.over(whose, used, most))


CONNECTIONS = Allowance(
    "connections", "connection", 0, 0, 0, 0, Errno.EAGAIN,
    "sockets; in all what `ulimit -n` leaves, the last places for OS processes that have none; a user of the machine's "
    "kernel has an eighth",
    "end some programs, or boot the kernel with a higher `ulimit -n`",
)  # fmt: skip
RECEIVED = Allowance(
    "received bytes", "connection", limits.MAX_REQUEST_BYTES, 32 * MIB, 128 * MIB, 256 * MIB, Errno.EAGAIN,
    "requests of which the kernel has a part, at their announced length",
    "try again when they have come whole", bytes=True,
)  # fmt: skip
ANSWERS = Allowance(
    "waiting answers", "connection", limits.MAX_REPLY_BYTES, 128 * MIB, 256 * MIB, 512 * MIB, Errno.EPIPE,
    "answers that their program has not read; above a mebibyte its next calls wait until it reads",
    "it is cut off for not reading them", bytes=True,
)  # fmt: skip
PARKED = Allowance(
    "parked calls", "program", limits.MAX_PARKED_CALLS, 0, 65_536, 131_072, Errno.EAGAIN,
    "calls that wait in the kernel for something to happen",
    "wait for some, or take some back",
)  # fmt: skip
PARKED_BYTES = Allowance(
    "parked bytes", "program", limits.MAX_REQUEST_BYTES, 0, 32 * MIB, 64 * MIB, Errno.EAGAIN,
    "the requests of parked calls, as they came", "wait for some calls, or take some back", bytes=True,
)  # fmt: skip
TRACERS = Allowance(
    "trace readers", "program", 4, 0, 16, 64, Errno.EAGAIN,
    "calls of `trace` that wait for events", "end some readers of the trace",
)  # fmt: skip
LOGS = Allowance(
    "log bytes", "session", 1 * GIB, 0, 2 * GIB, 4 * GIB, Errno.EDQUOT,
    "tokens of processes (4 bytes each), their records, names and rows in the process table",
    "end or truncate some processes", bytes=True,
)  # fmt: skip
PROCESSES = Allowance(
    "processes", "session", 0, 0, 0, 200_000, Errno.EAGAIN,
    "rows of the process table; `pids_max` of a group bounds it further", "kill or wait for some first",
)  # fmt: skip
GROUPS = Allowance(
    "groups", "session", limits.MAX_SESSION_GROUPS, 0, limits.MAX_GROUPS // 4, limits.MAX_GROUPS, Errno.EAGAIN,
    "control groups; operators have no bound of their own", "remove some first",
)  # fmt: skip
GRANTS = Allowance(
    "grants", "process", 1_024, 256, 16_384, 65_536, Errno.EDQUOT,
    "rights on processes that were handed on; of an OS process those that one program of it holds, of an owner those "
    "that its programs gave", "take some back (revoke)",
)  # fmt: skip
SANDBOXES = Allowance(
    "sandboxes", "program", 16, 0, 32, 64, Errno.EAGAIN,
    "endpoints for confined programs, each with a socket that counts as a connection", "end some of them",
)  # fmt: skip
NOTES = Allowance(
    "log lines", "program", 0, 8, 32, 128, Errno.OK,
    "lines of the kernel log that programs cause, in ten seconds", "further lines are counted, not written",
)  # fmt: skip
SHOWN = Allowance(
    "shown files", "call", 0, 8, 16, 40, Errno.EAGAIN,
    "files that programs of other users are showing to a shared kernel, or that it is to write for them, each with a "
    "descriptor or two; the last 16 places are for users who have none", "show it again when others are done",
)  # fmt: skip
COPIES = Allowance(
    "file copies", "user", 0, 0, 256 * GIB, 0, Errno.EDQUOT,
    "copies of the models that a user has shown to a shared kernel; in all what its disk has, less a twentieth. Those "
    "that nothing uses go when there is need of room", "end the processes of some models", bytes=True,
)  # fmt: skip

TABLE: tuple[Allowance, ...] = (
    CONNECTIONS, RECEIVED, ANSWERS, PARKED, PARKED_BYTES, TRACERS, LOGS, PROCESSES, GROUPS, GRANTS, SANDBOXES, NOTES,
    SHOWN, COPIES,
)  # fmt: skip

# What a driver, the kernel's own child, may make it keep; nobody else gets in at their socket.
DRIVER_RECEIVED = Allowance(
    "a driver's received bytes", "driver", limits.MAX_REPLY_BYTES, 2 * limits.MAX_REPLY_BYTES, 0, 0, Errno.EAGAIN,
    "messages of which the kernel has a part", "the driver is ended", bytes=True,
)  # fmt: skip
DRIVER_REQUESTS = Allowance(
    "a driver's waiting requests", "driver", 512 * MIB, 512 * MIB, 0, 0, Errno.EPIPE,
    "requests that the driver has not read", "the driver is ended", bytes=True,
)  # fmt: skip

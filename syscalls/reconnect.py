"""After the kernel has died, or the way to it was cut: is there one, and does it know this program? What both clients
share of it.

A kernel that keeps a journal gives each program a ticket. When such a kernel dies, its journal stays in the runtime
directory; the program waits there for the next kernel, shows the ticket, and sends its unanswered calls again. A kernel
that halts removes its journal, and there is nothing to wait for. Of a kernel on another machine nothing of this can be
seen, nor whether it has died or the way to it was cut: the program tries to connect, and shows the ticket.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from llmasos.syscalls import calls, readiness, runtime, scarce, wire
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import BootInfo
from llmasos.syscalls.remote import KeyRefused, Place, Remote
from llmasos.syscalls.table import Attach

RECONNECT_SECONDS = 30.0
REMOTE_SECONDS = 0.25  # between two attempts to connect to another machine

Notify = Callable[[BootInfo | None], object]
"""Called with None when the kernel has died, and with the BootInfo of the next kernel once that has taken the program
up."""


class Search:
    """The wait for the next kernel of a place, for a number of seconds at most from `now`, or from when one that boots
    has last said how far it has come. Every error is an EPIPE: there is nothing to wait for. `refused` is why the latest
    attempt to connect has failed, where something is known."""

    def __init__(self, place: Place, seconds: float, now: float, notify: Notify | None) -> None:
        self._directory, self._seconds, self._notify = place, seconds, notify
        self._told = False
        self._said = ""  # how far the kernel that boots there had come
        self._next = now  # when to try the other machine again
        self.refused: SyscallError | None = None
        self.until = now + seconds

    def found(self, now: float) -> bool:
        """Whether a kernel listens. False: ask again a little later. Raises EPIPE: none will come, or it took too
        long."""
        self._check_halted()
        if isinstance(self.refused, KeyRefused):
            raise self._refused(self.refused.reason)
        if now >= self.until and not self._comes(now):
            raise self.in_vain()
        if isinstance(self._directory, Remote):
            if found := now >= self._next:
                self._next = now + REMOTE_SECONDS
            self._died()
            return found
        try:
            return calls.kernel_listens(self._directory)
        except SyscallError as error:
            if error.errno is Errno.EAGAIN:  # this program has no descriptor to look
                self.refused = error
                return False
            if error.errno is not Errno.ECONNREFUSED:
                raise SyscallError(Errno.EPIPE, error.reason) from None
        self._check_halted()  # it may have halted between the looks
        self._died()
        return False

    def _comes(self, now: float) -> bool:
        """Whether a kernel is booting there that has said something new since the last time this was asked: it may have
        very many processes to bring back, and gets more time for each such line."""
        said = "" if isinstance(self._directory, Remote) else readiness.noted(self._directory)
        if not said or said == self._said:
            return False
        self._said, self.until = said, now + self._seconds
        return True

    def _check_halted(self) -> None:
        try:
            halted = not isinstance(self._directory, Remote) and runtime.halted(self._directory)
        except OSError as error:  # this program has no descriptor to look
            if error.errno not in scarce.SHORT:
                raise
            halted = False
        if halted:
            raise SyscallError(Errno.EPIPE, f"the kernel of {self._directory} has gone: it has halted")

    def in_vain(self) -> SyscallError:
        if isinstance(self._directory, Remote):
            why = self.refused.reason if self.refused is not None else "it has not answered"
            return SyscallError(
                Errno.EPIPE,
                f"the connection to the kernel at {self._directory} was lost, and for {self._seconds:g} s there was no "
                f"other: {why}",
            )
        what = (
            f"the kernel of {self._directory} has died, and within {self._seconds:g} s no other has taken this program up"
        )
        if self.refused is not None:
            return SyscallError(Errno.EPIPE, f"{what}: {self.refused.reason}")
        return SyscallError(
            Errno.EPIPE,
            f"{what}; start one with `llmasos boot` (what the journal holds comes back) and connect anew",
        )

    def taken_up(self, reply: wire.Reply, call: Attach, pid: int) -> BootInfo | None:
        """The kernel's answer to a program that had `pid`. None: the kernel has not noticed yet that the old connection
        is lost; ask again a little later. Raises EPIPE if it does not know the program, ESTALE if the program knows more
        than the kernel."""
        try:
            boot = wire.result(reply, call)
        except SyscallError as error:
            if error.errno is Errno.EAGAIN:
                return None
            if error.errno is Errno.ESTALE:
                raise SyscallError(Errno.ESTALE, f"{error.reason} (connect has a `ticket`)") from None
            raise self._refused(error.reason) from None
        if boot.pid != pid:
            raise self._refused(f"it gave pid {boot.pid} to what was program {pid}")
        return boot

    def over(self, boot: BootInfo) -> None:
        """The next kernel is there and takes calls."""
        self._died()
        self._tell(boot)

    def _refused(self, why: str) -> SyscallError:
        if isinstance(self._directory, Remote):
            return SyscallError(
                Errno.EPIPE,
                f"the connection to the kernel at {self._directory} was lost, and the kernel that is there does not take "
                f"this program up: {why}; connect anew",
            )
        return SyscallError(
            Errno.EPIPE,
            f"the kernel of {self._directory} has died, and the next one does not take this program up: {why}; "
            "connect anew",
        )

    def _died(self) -> None:
        if not self._told:
            self._told = True
            self._tell(None)

    def _tell(self, boot: BootInfo | None) -> None:
        if self._notify is not None:
            try:
                self._notify(boot)
            except Exception:  # the author of `notify` sees it, and keeps the agents
                logging.getLogger("llmasos").exception("the `notify` of a connection to %s has failed", self._directory)

"""What a fork of the OS process leaves behind in the child: connections that are the parent's.

A child inherits the memory of its parent, but none of its threads, and shares its descriptors. Two processes that read
one connection take each other's answers, and a lock that another thread held at the fork is never let go. So a
connection works only in the process that has made it, as pyzmq's contexts and psycopg's connections do; the child
connects anew. What is guarded by threads or locks of the whole program is made anew in the child (`os.register_at_fork`).
"""

from __future__ import annotations

import os

from llmasos.syscalls.errno import Errno, SyscallError


class Origin:
    """The OS process that made something."""

    __slots__ = ("_pid",)

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def here(self) -> bool:
        """Whether this is that process, and not a fork of it."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """Raise EINVAL in a fork. Comes before any lock: who held it may not be here to let it go."""
        if os.getpid() != self._pid:
            raise SyscallError(
                Errno.EINVAL,
                f"this connection was made before a fork, by OS process {self._pid}, and is of no use in process "
                f"{os.getpid()}; connect anew in the child (System.connect())",
            )

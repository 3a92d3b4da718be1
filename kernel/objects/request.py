"""A system call on its way through the kernel: who asked, what, and what it waits on.

Every request is answered exactly once, with a value or an errno. One that waits is in the line of a channel (wait.py)
and is dispatched again, from the top, when the channel is woken. What it has done by then is an object of the kernel,
`begun`, never a local variable of its handler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmasos.syscalls.table import Call, Entry

if TYPE_CHECKING:
    from llmasos.kernel.groups.group import Group
    from llmasos.kernel.objects.process import Program
    from llmasos.kernel.timers import Timer


class Channel(dict["Request", None]):
    """The line of the requests that wait on something, first come first served: the `chan` of xv6's sleep and wakeup."""

    __slots__ = ()


@dataclass(slots=True, eq=False)
class Request:
    program: Program
    seq: int
    call: Call[Any]
    entry: Entry
    base: Group  # where relative paths of groups begin: the program's own when it called
    drawn: int = 0  # random bits, if it asks for some
    answered: bool = False
    channel: Channel | None = None  # set while it waits
    begun: object | None = None  # what it has begun (kernel/desk.py, Begun)
    deadline: Timer | None = None
    late: bool = False  # the deadline has passed
    waited: bool = False
    audited: int = 0  # how far its audit has come (kernel/objects/auditor.py, Stage)
    absent: bool = False  # made by an earlier connection, and not yet asked for again
    size: int = 0  # bytes of its frame
    files: frozenset[str] | None = None  # paths that its user has shown (events.Syscall)

"""A system call on its way through the kernel: who asked, what, and how it is taken back.

Every request is answered exactly once, with a value or an errno; one that waits is `parked` on its program, with the
function that undoes the waiting if the caller cancels, dies, or a deadline passes first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmasos.syscalls.table import Call, Entry

if TYPE_CHECKING:
    from llmasos.kernel.objects.process import Program
    from llmasos.kernel.timers import Timer


@dataclass(slots=True, eq=False)
class Request:
    program: Program
    seq: int
    call: Call[Any]
    entry: Entry
    answered: bool = False
    undo: Callable[[], None] | None = None  # set while it waits
    waited: bool = False
    absent: bool = False  # made to an earlier kernel, and not yet asked for again
    mark: int = -1  # where a read of the trace began
    timers: list[Timer] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Change:
    """A call that is giving a process another model or another device, one at a time. `resume` is what is left to do of
    it when the process has reached the token boundary it waits for."""

    request: Request
    resume: Callable[[], None]

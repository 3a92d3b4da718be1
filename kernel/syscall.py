"""The dispatch table of system calls: each family's file (kernel/calls) enters its handlers here.

A handler gets the kernel, the request and the time. It returns the call's result, or PARKED if the answer comes later
(`kernel.answer`), or raises SyscallError, which becomes the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from kernel.objects.request import Request
from syscalls.table import Call

if TYPE_CHECKING:
    from kernel.core import Kernel

Handler = Callable[["Kernel", Request, float], Any]

PARKED: Final = object()
HANDLERS: dict[type[Call[Any]], Handler] = {}


def handles(record: type[Call[Any]]) -> Callable[[Handler], Handler]:
    """Enter a function as the handler of a call."""

    def enter(handler: Handler) -> Handler:
        if record in HANDLERS:
            raise ValueError(f"{record.__name__} has two handlers")
        HANDLERS[record] = handler
        return handler

    return enter

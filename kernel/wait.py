"""The one way to wait: xv6's sleep and wakeup, as data.

A handler that cannot go on returns `wait(channel)`. Its request stands in the channel's line until the channel is woken;
then it is dispatched again from the top, in the order in which requests came, as seL4 and Fluke restart calls. So nothing
that was true before the wait is believed after it, and between two events no function of the kernel is half done:
everything that waits is in the tables, and a copy of the core waits for the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from llmasos.kernel.clock import nanoseconds
from llmasos.kernel.objects.request import Channel, Request
from llmasos.kernel.state import System
from llmasos.syscalls.errno import SyscallError


class Waiting(NamedTuple):
    """What a handler returns to wait. After `timeout` seconds the request is dispatched once more as `late`; if it would
    wait even then it fails with ETIME and the reason `why`."""

    channel: Channel
    timeout: float | None = None
    why: str = ""


def wait(channel: Channel, timeout: float | None = None, why: str = "") -> Waiting:
    return Waiting(channel, timeout, why)


def sleep(system: System, request: Request, waiting: Waiting) -> None:
    """Put a request into the line of a channel."""
    request.channel, request.waited = waiting.channel, True
    request.channel[request] = None
    system.spending.park(request)
    if waiting.timeout is not None and request.deadline is None:
        request.deadline = system.timers.at(system.now + nanoseconds(waiting.timeout), _expire, request)
    _show(system, request, waiting.channel)


def wake(system: System, channel: Channel | None, error: SyscallError | None = None) -> None:
    """Let all requests that wait go on, or fail with `error`, at the end of this event. Not for programs that wait for
    their children, whose state shows it."""
    if channel:
        for request in channel:
            request.channel = None
            system.woken.append((request, error))
        channel.clear()


def wake_some(system: System, channel: Channel, concerned: Callable[[Request], bool]) -> None:
    """Let only those go on that are concerned. Where many wait, each for another thing, waking all each time costs
    seconds."""
    for request in list(filter(concerned, channel)):
        leave(system, request)
        system.woken.append((request, None))


def leave(system: System, request: Request) -> None:
    """Take a request out of the line that it stands in, if it stands in one."""
    channel, request.channel = request.channel, None
    if channel is not None:
        channel.pop(request, None)
        if not channel:
            channel.clear()  # gives back the memory of the line
        _show(system, request, channel)


def _expire(system: System, request: Request) -> None:
    request.late = True
    leave(system, request)
    system.woken.append((request, None))


def _show(system: System, request: Request, channel: Channel) -> None:
    """A program that waits for a child is shown as waiting for that."""
    if channel is request.program.ended:
        system.stale[request.program.pid] = request.program

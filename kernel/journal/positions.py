"""Positions in the journal: does a program know more than the journal has?

Each frame has a position, a number that grows. Every answer tells the program the position of the latest frame, and the
program shows it when it comes back to the next kernel. If that one's journal ends before it (the machine died before the
last second was on the disk, the file was damaged, or the disk was full when the kernel died), something that the program
was told did not happen. The low half of a position counts the frames of one kernel; the high half is a random number of
that kernel, as PostgreSQL's timelines are: frames that are lost have other positions than those written in their place.
"""

from __future__ import annotations

from collections.abc import Iterable

KEPT = 16  # kernels whose last positions a journal knows
_COUNT = 32  # bits of the number of a frame
PID_GAP = 10_000  # after a loss pids go on at the next multiple of it: what was given out and is lost is not given again


def first(boot: int) -> int:
    """The position before the first frame of kernel `boot`."""
    return boot << _COUNT


def end(ends: Iterable[int], seen: int) -> int | None:
    """The last position that is left of the kernel whose position `seen` is; None: the journal knows nothing of it.
    `ends` are the last positions of the kernels that a journal knows."""
    return next((one for one in ends if one >> _COUNT == seen >> _COUNT), None)


def told(position: int) -> str:
    """A position for people."""
    return f"{position & ((1 << _COUNT) - 1):,}"


def beyond(pid: int) -> int:
    """The first pid after a loss, if `pid` would be the next."""
    return (pid // PID_GAP + 1) * PID_GAP

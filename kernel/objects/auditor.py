"""What the kernel keeps to audit by: the lines of the event being handled, calls whose line is not written yet, and how
often each owner was refused, and has had lines."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from llmasos.kernel.events import Audit
from llmasos.kernel.objects.request import Channel, Request


class Stage(enum.IntEnum):
    """How far the audit of a call has come."""

    NONE = 0  # it has not begun, or is not audited
    ASKED = 1  # its line is being written, and it waits for that
    BEGUN = 2  # it has begun in this event
    TOLD = 3  # there is a line that it was asked for, or began: its end gets one too
    COUNTED = 4  # its owner has had his lines: it is counted, and its end gets none


@dataclass(slots=True)
class Refusals:
    """How often one owner was refused in the second that began at `since` (nanoseconds)."""

    since: int
    count: int = 0


@dataclass(slots=True)
class Auditor:
    """`required`: the classes of calls (the column `audit` of the ABI table) that are not made before their line is
    written."""

    on: bool = False
    required: Collection[str] = ()
    lines: list[Audit | Request] = field(default_factory=list)  # of the event being handled; calls that begin in it
    outcomes: dict[Request, Audit] = field(default_factory=dict)  # the lines of those that have come to their end
    unwritten: dict[int, tuple[Request, Channel]] = field(default_factory=dict)  # by the number of their line
    refusals: dict[str, Refusals] = field(default_factory=dict)  # by owner
    # By owner and class: when (nanoseconds) its lines so far would all have come, had they come at the rate it may have.
    paid: dict[tuple[str, str], int] = field(default_factory=dict)
    counted: dict[str, Counter[str]] = field(default_factory=dict)  # by owner, what has no line of its own
    trouble: str = ""  # why lines cannot be written
    asked: int = 0  # lines that a call has waited for

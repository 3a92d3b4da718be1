"""Who did what to which object, allowed or refused: the lines of the audit log, which the edge writes.

As in Linux's audit subsystem a record is made at the border, where a call begins and where it is answered, and not in the
handlers. The ABI table says which calls are audited (column `audit`: its class); every refusal (EPERM) is. A line has no
contents: of the arguments only what names objects, and numbers, flags and limits.

Nobody pushes others' lines out of the files by making very many calls that he may make: beyond an allowance of each owner
in each class his lines are counted. What operators do, and classes that are required, always has its line.

A line comes before everything that the kernel does outside: its action stands before the event's others. A call of a
class that is required waits until the edge has said that its line is written (`Audited`), and fails with EIO if that
could not be done; nothing has happened then. A call that waits gets one line when it begins and one when it ends.
"""

from __future__ import annotations

import enum
import functools
from collections import Counter
from typing import Any

import msgspec

from llmasos.kernel.clock import SECOND
from llmasos.kernel.events import Audit, AuditLine, Syscall
from llmasos.kernel.objects.auditor import Refusals, Stage
from llmasos.kernel.objects.owner import Owner
from llmasos.kernel.objects.process import Process
from llmasos.kernel.objects.request import Channel, Request
from llmasos.kernel.outward import called
from llmasos.kernel.state import System
from llmasos.kernel.wait import Waiting, wait, wake
from llmasos.syscalls import pids
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import GrantInfo, GroupSettings, Limits
from llmasos.syscalls.table import BY_RECORD

MOST_REFUSALS = 10  # of one owner in a second that get a line each; others are counted
MOST_LINES = 10_000  # of one owner in one class that may come at once; then
LINE_TIME = SECOND  # one more in so many nanoseconds; others are counted,
COUNT_TIME = 10 * SECOND  # and one line tells how many there were in so many
_MOST_PAID = 1024  # allowances; then those that nobody has used of are forgotten
_UNSEEN = (Errno.ESRCH, Errno.ENOENT)  # what hides others' objects: counted as refusals, whether there is one or not
REFUSALS = "refusals"  # their class
COUNTED = "counted"  # that of calls without a line
ASKED, BEGUN = "asked", "begun"  # instead of an errno: before it is made, and while it waits


def begin(system: System, request: Request) -> Waiting | None:
    """A call of an audited class is about to be made for the first time. Returns what it waits for: its line."""
    auditor = system.auditor
    if request.entry.audit not in auditor.required:
        if _is_listed(system, request.program.owner, request.entry.audit, request.entry.name):
            request.audited = Stage.BEGUN
            auditor.lines.append(request)  # holds the place of its line, ahead of those of its effects
        else:
            request.audited = Stage.COUNTED
        return None
    request.audited = Stage.ASKED
    auditor.asked += 1
    auditor.unwritten[auditor.asked] = request, (channel := Channel())
    auditor.lines.append(Audit(_line(system, request, ASKED), auditor.asked))
    return wait(channel)


def written(system: System, ref: int, trouble: str) -> Request | None:
    """The edge has written the line of a call that waits for it, which goes on; or it could not: the call fails. Returns
    the call, unless it was taken back meanwhile."""
    request, channel = system.auditor.unwritten.pop(ref)
    if request.answered:
        return None
    request.audited = Stage.NONE if trouble else Stage.TOLD
    # Where the log is, is told the operator only.
    why = trouble if request.program.owner.operator else "the audit log cannot be written"
    error = Errno.EIO(f"{request.entry.name} has to be audited and was not made: {why}") if trouble else None
    wake(system, channel, error)
    return request


def end(system: System, request: Request, errno: Errno, value: object, reason: str) -> None:
    """A call is answered."""
    if not system.auditor.on:
        return
    stage, request.audited = request.audited, Stage.NONE
    if stage in (Stage.ASKED, Stage.TOLD):
        system.auditor.lines.append(Audit(_line(system, request, errno.name, value, reason)))
    elif stage is Stage.BEGUN and errno is Errno.OK:
        system.auditor.outcomes[request] = Audit(_line(system, request, errno.name, value))
    elif errno is Errno.EPERM or (errno in _UNSEEN and not request.program.owner.operator):
        refuse(system, _line(system, request, errno.name, None, reason))


def _payer(owner: Owner) -> str:
    """Under whose name lines of an owner are counted: tenants of a user are his to make. (Of the machine's operator they
    are others, with keys.)"""
    return owner.name if owner.base.operator else owner.base.name


def _is_listed(system: System, owner: Owner, of: str, what: str) -> bool:
    """Whether an owner has one more line in a class; if not, what it would have told is counted."""
    if owner.operator:
        return True
    auditor, now = system.auditor, system.now
    key = (who := _payer(owner)), of
    paid = max(auditor.paid.get(key, now), now) + LINE_TIME
    if paid <= now + MOST_LINES * LINE_TIME:
        if len(auditor.paid) >= _MOST_PAID:
            auditor.paid = {one: until for one, until in auditor.paid.items() if until > now}
        auditor.paid[key] = paid
        return True
    if who not in auditor.counted:
        auditor.counted[who] = Counter()
        system.timers.at(now + COUNT_TIME, _tell_counted, who)
    auditor.counted[who][what] += 1
    return False


def _tell_counted(system: System, who: str) -> None:
    if counted := system.auditor.counted.pop(who, None):
        note(system, COUNTED, COUNTED, who=who, details=dict(counted))


def tell_all(system: System) -> None:
    """The kernel halts: what was counted so far is told now."""
    for who in list(system.auditor.counted):
        _tell_counted(system, who)
    for who in list(system.auditor.refusals):
        _count(system, who)


def refuse(system: System, line: AuditLine) -> None:
    """A line for something that was refused, as long as its owner is not refused too often."""
    auditor = system.auditor
    if not auditor.on:
        return
    owner = system.owners.get(line.who)
    who = _payer(owner) if owner is not None else line.who
    found = auditor.refusals.get(who)
    if found is None:
        found = auditor.refusals[who] = Refusals(system.now)
        system.timers.at(system.now + SECOND, _count, who)
    found.count += 1
    if found.count <= MOST_REFUSALS:
        auditor.lines.append(Audit(line))


def _count(system: System, who: str) -> None:
    """A second after an owner's first refusal: note how many refusals had no line of their own."""
    found = system.auditor.refusals.pop(who, None)  # at a halt it was told early
    if found is not None and (more := found.count - MOST_REFUSALS) > 0:
        note(system, REFUSALS, REFUSALS, who=who, details={"count": more})


def note(
    system: System,
    what: str,
    of: str,
    *,
    who: str = "",
    on: dict[str, str | int] | None = None,
    details: dict[str, Any] | None = None,
) -> None:
    """A line for something that no call did."""
    if system.auditor.on:
        system.auditor.lines.append(Audit(AuditLine(what, of, who, on=on or {}, details=details or {})))


def ended(system: System, process: Process, status: int) -> None:
    """A process has ended, of itself or by what others did."""
    if system.auditor.on and _is_listed(system, process.owner, "processes", "ended"):
        on, details = {"pid": _shown(process.pid)}, {"status": status}
        note(system, "ended", "processes", who=process.owner.name, on=on, details=details)


def lines(system: System) -> list[Audit]:
    """The lines of the event that ends now. Calls that have begun in it and wait get one each."""
    auditor = system.auditor
    found: list[Audit] = []
    for one in auditor.lines:
        if isinstance(one, Audit):
            found.append(one)
        elif one.audited is Stage.BEGUN:
            one.audited = Stage.TOLD
            found.append(Audit(_line(system, one, BEGUN)))
        elif one in auditor.outcomes:
            found.append(auditor.outcomes[one])
    auditor.lines, auditor.outcomes = [], {}
    return found


def stranger(system: System, call: Syscall, errno: Errno, reason: str) -> None:
    """A call from a connection that has no program attached was refused."""
    who = system.owners.key(call.uid) or system.owners.operator.name
    refuse(system, AuditLine(BY_RECORD[type(call.call)].name, REFUSALS, who, 0, call.os_pid, {}, {}, errno.name, reason))


def _line(system: System, request: Request, result: str, value: object = None, reason: str = "") -> AuditLine:
    program, entry = request.program, request.entry
    on, details = _named(system, request)
    if isinstance(value, int | list):  # the pids of what it made, or how many it reached
        details["gave"] = [_shown(one) for one in value] if isinstance(value, list) else _shown(value)
    elif isinstance(value, GrantInfo):
        details["handle"] = value.handle
    return AuditLine(
        entry.name,
        entry.audit or REFUSALS,
        program.owner.name,
        pids.number_of(program.pid),
        program.os_pid,
        on,
        details,
        result,
        reason if result == Errno.EPERM.name else "",
    )


# Evaluating the annotations takes longer than most calls do.
_fields = functools.cache(msgspec.structs.fields)


def _named(system: System, request: Request) -> tuple[dict[str, str | int], dict[str, Any]]:
    """The objects that a call names, and those of its other arguments that are no content: numbers, switches, limits."""
    call, named = request.call, {touches.field for touches in request.entry.touches}
    on: dict[str, str | int] = {}
    details: dict[str, Any] = {}
    for field in _fields(type(call)):
        value = getattr(call, field.name)
        if value == field.default:
            continue
        if field.name == "pid":
            space, own = request.program.owner.space, value not in system.table.shared and value <= pids.MOST
            on[field.name] = _shown(pids.pid_of(space, value) if own else value)
        elif field.name in named or field.name in ("model", "to"):
            on[field.name] = called(value, request.files) if field.name == "path" else value
        elif isinstance(value, enum.Enum):
            details[field.name] = value.name
        elif isinstance(value, Limits | GroupSettings):
            details |= {field.name: found} if (found := _limits(value)) else {}
        elif isinstance(value, int | float):
            details[field.name] = value
    return on, details


def _shown(pid: int) -> int | str:
    """A pid as the operator writes it."""
    return pid if pid < pids.MARK else pids.shown(pid)


def _limits(value: Limits | GroupSettings) -> dict[str, Any]:
    """Those that are set."""
    usual = type(value)()
    return {
        name: one.name if isinstance(one, enum.Enum) else one
        for name, one in msgspec.structs.asdict(value).items()
        if one != getattr(usual, name)
    }

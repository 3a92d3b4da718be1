"""The rights family: grant accept grants revoke."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from itertools import islice
from operator import attrgetter

from llmasos.kernel.grants import cut
from llmasos.kernel.objects.grant import Grant
from llmasos.kernel.objects.process import LLMProcess, Program
from llmasos.kernel.objects.request import Request
from llmasos.kernel.rights import called, owns
from llmasos.kernel.seeds import mix
from llmasos.kernel.state import System
from llmasos.syscalls import pids
from llmasos.syscalls.budgets import GRANTS
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.limits import MAX_GRANT_DEPTH
from llmasos.syscalls.records import GrantInfo
from llmasos.syscalls.table import Accept, Grants, Needs, Revoke
from llmasos.syscalls.table import Grant as GrantCall

_NUMBER_BYTES = 8  # of a ticket: the handle; behind it the secret
_MOST = 2**31 - 1  # the greatest handle: people write them down
_SEE = int(Needs.SEE)


def grant(system: System, request: Request, call: GrantCall, process: LLMProcess) -> GrantInfo:
    """Row 100 of the table, `Grant`."""
    if process.birth is not None:
        raise Errno.EBUSY(f"process {process.pid} is still waiting for its model")
    maker, grants = request.program.owner.key, system.grants
    parent, rights, to = (
        _source(system, request.program, process, int(call.rights)),
        int(call.rights),
        _key(system, call.to),
    )
    if parent is not None and parent.depth >= MAX_GRANT_DEPTH:
        why = (
            f"grant {parent.number} was passed on {parent.depth} times, and can not be once more; ask whose process it is"
        )
        raise Errno.EDQUOT(why)
    for whose, used, most in (
        (f"process {process.pid}", len(grants.on(process.pid)), GRANTS.each),
        (f"owner {request.program.owner.name}", grants.made[maker], GRANTS.owner),
        ("all owners", len(grants), GRANTS.all),
    ):
        if used >= most:
            grants.refused += 1
            raise GRANTS.refuse(whose, used, most)
    made = Grant(_handle(grants.get, request.drawn), process, rights | _SEE, maker, to, parent, request.drawn | 1)
    grants.add(made)
    return _info(system, request.program, made, _ticket(made))


def _handle(taken: Callable[[int], Grant | None], drawn: int) -> int:
    number = mix(drawn, 0) % _MOST + 1
    while taken(number) is not None:
        number = number % _MOST + 1
    return number


def _source(system: System, program: Program, process: LLMProcess, rights: int) -> Grant | None:
    """The handle of which a grant is to be made; None: the program needs none. EPERM."""
    if owns(program, process):
        return None
    for held in system.grants.held(program.pid).values():
        if held.thing is process and not rights & ~held.rights:
            return held
    words = " and ".join(need.name or "" for need in Needs if need & rights and need is not Needs.ALL)
    pid = called(system, program, process.pid)
    raise Errno.EPERM(f"no grant of yours has the rights {words} on process {pid}, so that they could be passed on")


def _key(system: System, to: str) -> str:
    """The key of the owner that somebody has written."""
    uid, _, tenant = to.partition("/")
    if int(uid) > pids.MOST_UID:
        raise Errno.EINVAL(f"no user has the id {uid}; the greatest is {pids.MOST_UID}")
    key = system.owners.key(int(uid))
    return f"{key or system.owners.operator.name}/{tenant}" if tenant else key


def accept(system: System, request: Request, call: Accept) -> GrantInfo:
    """Row 101 of the table, `Accept`."""
    program, number = request.program, int.from_bytes(call.ticket[:_NUMBER_BYTES], "big")
    found = system.grants.get(number)
    if (
        found is None
        or not found.secret
        or found.to != program.owner.key
        or not hmac.compare_digest(call.ticket, _ticket(found))
    ):
        raise Errno.ESRCH("no grant waits under this ticket: it was used, or taken back, or is somebody else's")
    if len(system.grants.held(program.pid)) >= GRANTS.process:
        system.grants.refused += 1
        raise GRANTS.refuse(f"program {program.pid}", GRANTS.process, GRANTS.process)
    system.grants.hold(found, program)
    return _info(system, program, found)


def grants(system: System, request: Request, call: Grants) -> list[GrantInfo]:
    """Row 102 of the table, `Grants`."""
    program = request.program
    all_of_them = sorted(system.grants, key=attrgetter("number"))
    seen = (one for one in all_of_them if one.number > call.after and _concerns(program, one))
    return [_info(system, program, one) for one in islice(seen, call.limit)]


def revoke(system: System, request: Request, call: Revoke) -> int:
    """Row 103 of the table, `Revoke`."""
    found = system.grants.get(call.handle)
    if found is None or not _concerns(request.program, found):
        raise _no_grant(call.handle)
    return cut(system, found, "was taken back")


def _no_grant(handle: int) -> SyscallError:
    return Errno.ESRCH(f"no grant {handle}: it was taken back, or has ended, or never was; `grants` lists them")


def _concerns(program: Program, one: Grant) -> bool:
    """Whether a program holds a grant, or one that it was made of, or the process is its own. So it may take it back."""
    at: Grant | None = one
    while at is not None:
        if at.holder is program:
            return True
        at = at.parent
    return owns(program, one.thing)


def _ticket(one: Grant) -> bytes:
    return one.number.to_bytes(_NUMBER_BYTES, "big") + one.secret.to_bytes(8, "big")


def _info(system: System, program: Program, one: Grant, ticket: bytes = b"") -> GrantInfo:
    above = one.parent.number if one.parent is not None and _concerns(program, one.parent) else 0
    holder = one.holder.pid if one.holder is not None else 0
    to = one.to or system.owners.operator.name
    return GrantInfo(one.number, one.thing.pid, one.rights, to, holder, above, ticket)

"""The rights family: grant accept grants revoke sandbox_open sandbox_close."""

from __future__ import annotations

import hmac
import itertools

from llmasos.kernel import desk, sandboxes
from llmasos.kernel.clock import nanoseconds, seconds
from llmasos.kernel.grants import cut, unused
from llmasos.kernel.groups.group import Group
from llmasos.kernel.objects.grant import Grant, Thing, covers
from llmasos.kernel.objects.process import LLMProcess, Program
from llmasos.kernel.objects.request import Request
from llmasos.kernel.objects.sandbox import Sandbox
from llmasos.kernel.rights import called, concerns, owns
from llmasos.kernel.seeds import mix
from llmasos.kernel.state import System
from llmasos.kernel.wait import Waiting, wait
from llmasos.syscalls import pids
from llmasos.syscalls.budgets import GRANTS
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.limits import MAX_GRANT_DEPTH
from llmasos.syscalls.records import GrantInfo, SandboxInfo
from llmasos.syscalls.table import Accept, Grants, Needs, Revoke, SandboxClose, SandboxOpen
from llmasos.syscalls.table import Grant as GrantCall

_NUMBER_BYTES = 8  # of a ticket: the handle; behind it the secret
_SEE = int(Needs.SEE)


def grant(
    system: System, request: Request, call: GrantCall, process: LLMProcess | None, group: Group | None
) -> GrantInfo:
    """Row 100 of the table, `Grant`."""
    program, rights, thing = request.program, int(call.rights), process or group
    if thing is None or (process is not None and group is not None):
        raise Errno.EINVAL("a grant is on a process or on a group: name one of them")
    if process is not None and process.birth is not None:
        raise Errno.EBUSY(f"process {process.pid} is still waiting for its model")
    sandbox = _sandbox(system, program, call.sandbox) if call.sandbox else None
    if bool(call.to) == (sandbox is not None):
        raise Errno.EINVAL("a grant is for an owner or for a sandbox: name one of them")
    parent, to = _source(system, program, thing, rights), _key(system, call.to) if call.to else program.owner.key
    if parent is not None and parent.depth >= MAX_GRANT_DEPTH - (sandbox is not None):
        raise Errno.EDQUOT(f"it was passed on {parent.depth} times, and can not be once more; ask its owner")
    _check_room(system, request, thing)
    until = system.wall + nanoseconds(call.seconds) if call.seconds else 0
    if parent is not None and parent.until:
        until = min(until or parent.until, parent.until)
    number, holder = unused(system, request.drawn), program if sandbox is not None else None
    secret = request.drawn | 1 if sandbox is None else 0
    hands = rights | _SEE, program.owner.key, to, parent, secret, holder, until
    made = Grant(number, thing, *hands, sandbox.number if sandbox is not None else 0)
    system.grants.add(made)
    for one in sandbox.programs.values() if sandbox is not None else ():
        sandboxes.pass_on(system, made, one, mix(request.drawn, one.pid))
    return _info(system, program, made, _ticket(made) if sandbox is None else b"")


def _check_room(system: System, request: Request, thing: Thing) -> None:
    grants, owner = system.grants, request.program.owner
    for whose, used, most in (
        (_named(system, request.program, thing), len(grants.on(thing)), GRANTS.each),
        (f"owner {owner.name}", grants.made[owner.key], GRANTS.owner),
        ("all owners", len(grants), GRANTS.all),
    ):
        if used >= most:
            grants.refused += 1
            raise GRANTS.refuse(whose, used, most)


def _named(system: System, program: Program, thing: Thing) -> str:
    return f"group {thing.path}" if isinstance(thing, Group) else f"process {called(system, program, thing.pid)}"


def _source(system: System, program: Program, thing: Thing, rights: int) -> Grant | None:
    """The grant of which another is to be made; None: the program needs none. EPERM."""
    if owns(program, thing):
        return None
    for held in system.grants.held(program.pid).values():
        if _reaches(held.thing, thing) and not rights & ~held.rights:
            return held
    words = " and ".join(need.name or "" for need in Needs if need & rights and need is not Needs.ALL)
    named = _named(system, program, thing)
    raise Errno.EPERM(f"no grant of yours has the rights {words} on {named}, so that they could be passed on")


def _reaches(held: Thing, thing: Thing) -> bool:
    if isinstance(thing, Group):
        return isinstance(held, Group) and thing.below(held)
    return covers(held, thing)


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
    program, after = request.program, call.after
    found = {} if program.confined else {one.number: one for one in system.grants.after(program.owner, after, call.limit)}
    for held in system.grants.held(program.pid).values():
        found |= {one.number: one for one in held.within() if one.number > after}
    return [_info(system, program, found[number]) for number in itertools.islice(sorted(found), call.limit)]


def revoke(system: System, request: Request, call: Revoke) -> int:
    """Row 103 of the table, `Revoke`."""
    found = system.grants.get(call.handle)
    if found is None or not concerns(request.program, found):
        raise _no_grant(call.handle)
    return cut(system, found, "was taken back")


def _no_grant(number: int) -> SyscallError:
    return Errno.ESRCH(f"no grant {number}: it was taken back, or has ended, or never was; `grants` lists them")


def _ticket(one: Grant) -> bytes:
    return one.number.to_bytes(_NUMBER_BYTES, "big") + one.secret.to_bytes(8, "big")


def _info(system: System, program: Program, one: Grant, ticket: bytes = b"") -> GrantInfo:
    above = one.parent.number if one.parent is not None and concerns(program, one.parent) else 0
    holder = one.holder.pid if one.holder is not None else 0
    to = one.to or system.owners.operator.name
    pid, group = (0, one.thing.path) if isinstance(one.thing, Group) else (one.thing.pid, "")
    hands = pid, one.rights, to, holder, above, ticket, group
    left = max(0, one.until - system.wall - (system.now - system.wall_told)) if one.until else 0
    return GrantInfo(one.number, *hands, seconds(one.until), one.sandbox, seconds(left))


# --- sandboxes ------------------------------------------------------------------------------------------------------


class Opening(desk.Begun):
    """A sandbox whose endpoint is being made."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    def undo(self, system: System, error: SyscallError) -> None:
        if system.sandboxes.get(self.sandbox.number) is self.sandbox:
            sandboxes.close(system, self.sandbox)


def sandbox_open(system: System, request: Request, call: SandboxOpen) -> SandboxInfo | Waiting:
    """Row 104 of the table, `SandboxOpen`."""
    if not isinstance(request.begun, Opening):
        request.begun = Opening(sandboxes.start(system, request.program, request.drawn))
    sandbox = request.begun.sandbox
    if sandbox.trouble:
        raise Errno.EIO(f"the sandbox can have no socket: {sandbox.trouble}", "the sandbox can have no socket")
    if not sandbox.directory:
        return wait(sandbox.opened)
    return SandboxInfo(sandbox.number, sandbox.directory)


def sandbox_close(system: System, request: Request, call: SandboxClose) -> None:
    """Row 105 of the table, `SandboxClose`."""
    sandbox = _sandbox(system, request.program, call.sandbox)
    for one in sandboxes.granted(system, sandbox):
        cut(system, one, "has ended with the sandbox")
    sandboxes.close(system, sandbox)


def _sandbox(system: System, program: Program, number: int) -> Sandbox:
    found = system.sandboxes.get(number)
    if found is None or found.starter is not program:
        raise Errno.ESRCH(f"no sandbox {number} of this program: it was closed, or is another's")
    return found

"""Sandboxes from the first call to the end: who may attach there, what he gets, and what goes with it.

A grant that its starter made for the sandbox is held by the starter; each program that attaches there gets one made of
it. So nothing of the rights of a sandbox is new: `revoke`, an expiry, the starter's end cut them as any others.
"""

from __future__ import annotations

from llmasos.kernel.events import CloseSandbox, OpenSandbox, SandboxOpened, Syscall
from llmasos.kernel.grants import unused
from llmasos.kernel.objects.grant import Grant
from llmasos.kernel.objects.process import Program
from llmasos.kernel.objects.sandbox import Sandbox
from llmasos.kernel.seeds import mix
from llmasos.kernel.state import System
from llmasos.kernel.wait import wake
from llmasos.syscalls.budgets import GRANTS, SANDBOXES
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import Right


def start(system: System, program: Program, number: int) -> Sandbox:
    """A new one, for which the edge makes an endpoint. EAGAIN: there are too many."""
    of_owner = sum(one.starter.owner is program.owner for one in system.sandboxes)
    for whose, used, most in (
        (f"program {program.pid}", len(system.sandboxes.of(program)), SANDBOXES.each),
        (f"owner {program.owner.name}", of_owner, SANDBOXES.owner),
        ("all owners", len(system.sandboxes), SANDBOXES.all),
    ):
        if used >= most:
            system.sandboxes.refused += 1
            raise SANDBOXES.refuse(whose, used, most)
    while not number or system.sandboxes.get(number) is not None:
        number += 1
    sandbox = Sandbox(number, program)
    system.sandboxes.add(sandbox)
    open_again(system, sandbox)
    return sandbox


def open_again(system: System, sandbox: Sandbox) -> None:
    """Have the edge make its endpoint."""
    system.act(OpenSandbox(sandbox.number, sandbox.starter.owner.uid))


def opened(system: System, event: SandboxOpened) -> None:
    """The edge has made its endpoint, or cannot."""
    sandbox = system.sandboxes.get(event.number)
    if sandbox is not None:
        sandbox.directory, sandbox.trouble = event.directory, event.error
        wake(system, sandbox.opened)


def close(system: System, sandbox: Sandbox) -> None:
    """Its endpoint goes, and its rights; its programs follow, when the edge has cut their connections."""
    system.sandboxes.remove(sandbox)
    system.act(CloseSandbox(sandbox.number))


def let_go(system: System, program: Program) -> None:
    """A program has ended: the sandboxes that it has started are closed, and it is in none."""
    if not system.sandboxes:
        return
    for sandbox in system.sandboxes.of(program):
        close(system, sandbox)
    if (within := system.sandboxes.get(program.sandbox)) is not None:
        within.programs.pop(program.pid, None)


def find(system: System, event: Syscall) -> Sandbox:
    """The one by whose endpoint a call has come. EPERM."""
    sandbox = system.sandboxes.get(event.sandbox)
    if sandbox is None:
        raise Errno.EPERM("the sandbox of this endpoint has been closed")
    if system.owners.key(event.uid) != sandbox.starter.owner.base.key:
        raise Errno.EPERM("this endpoint is for programs of the user who made it")
    return sandbox


def confine(system: System, sandbox: Sandbox, program: Program, drawn: int) -> None:
    """A program has come by the endpoint of a sandbox: it is confined, and gets what that was granted. EDQUOT."""
    given = granted(system, sandbox)
    if len(given) > GRANTS.process or len(system.grants) + len(given) > GRANTS.all:
        system.grants.refused += 1
        raise GRANTS.refuse("all owners", len(system.grants), GRANTS.all)
    program.sandbox, program.confined = sandbox.number, True
    program.rights &= int(Right.QUERY | Right.CONTROL)
    sandbox.programs[program.pid] = program
    for place, one in enumerate(given):
        pass_on(system, one, program, mix(drawn, place))


def granted(system: System, sandbox: Sandbox) -> list[Grant]:
    """What its programs get."""
    held = system.grants.held(sandbox.starter.pid).values()
    return [one for one in held if one.sandbox == sandbox.number]


def pass_on(system: System, grant: Grant, program: Program, drawn: int) -> None:
    """A program of a sandbox gets what this was granted."""
    number = unused(system, drawn)
    given = grant.thing, grant.rights, grant.maker, program.owner.key, grant, 0, program, grant.until
    system.grants.add(Grant(number, *given))

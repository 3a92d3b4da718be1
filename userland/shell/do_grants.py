"""The commands for rights in other hands: grant, accept, grants, revoke."""

from __future__ import annotations

import pwd

from llmasos.syscalls.errno import Errno
from llmasos.syscalls.pids import parse, shown
from llmasos.syscalls.rights_words import rights_of, words_of
from llmasos.syscalls.table import Accept, Grant, Revoke
from llmasos.userland.programs import grants
from llmasos.userland.programs.figures import seconds_of
from llmasos.userland.programs.listing import Asked, document, plain
from llmasos.userland.shell.grammar import Line, UsageError
from llmasos.userland.shell.session import Session, does, each


@does("grant")
def _grant(shell: Session, line: Line) -> None:
    named, rights = line.text("PID"), rights_of(line.words or ("read",))
    pid, group = (0, named) if "/" in named else (shell.pid(named, agent=True), "")
    length = seconds_of(line.text("--for")) if line.has("--for") else 0.0
    made = shell.kernel(Grant(pid, _owner(line.text("WHO")), rights, group, length))
    ticket = made.ticket.hex()
    if line.has("--json"):
        document(shell.screen, {**plain(made), "ticket": ticket})
        return
    shell.screen.line(ticket)
    back = f"`revoke {shown(made.handle)}` takes it back"
    shell.remark(f"a program of {made.to} takes it with `accept TICKET`, once; {back}")


def _owner(who: str) -> str:
    """A user's id, and his tenant if one is named. The name of a user is looked up here."""
    user, slash, tenant = who.partition("/")
    if not user.isdecimal():
        try:
            user = str(pwd.getpwnam(user).pw_uid)
        except KeyError:
            raise UsageError(f"no user of this machine is called {user}: name one, or a user id") from None
    return f"{user}{slash}{tenant}"


@does("accept")
def _accept(shell: Session, line: Line) -> None:
    try:
        ticket = bytes.fromhex(line.text("TICKET"))
    except ValueError:
        raise UsageError("a ticket is what `grant` has printed: digits and the letters a to f") from None
    taken = shell.kernel(Accept(ticket))
    on = f"process {shown(taken.pid)}" if taken.pid else f"group {taken.group}"
    shell.screen.line(f"{on}: {words_of(taken.rights)}")


@does("grants")
def _grants(shell: Session, line: Line) -> None:
    grants.LISTING.show(shell.screen, grants.read(shell.kernel), Asked.of(line))


@does("revoke")
def _revoke(shell: Session, line: Line) -> int:
    return each(shell, line, lambda word: _take_back(shell, word))


def _take_back(shell: Session, word: str) -> None:
    if not (handle := parse(word)):
        raise Errno.EINVAL(f"a handle is a number that `grants` lists, found {word!r}")
    shell.kernel(Revoke(handle))

"""The commands for rights in other hands: grant, accept, grants, revoke."""

from __future__ import annotations

from llmasos.syscalls.errno import Errno
from llmasos.syscalls.pids import shown
from llmasos.syscalls.rights_words import rights_of, words_of
from llmasos.syscalls.table import Accept, Grant, Revoke
from llmasos.userland.programs import grants
from llmasos.userland.programs.listing import Asked, document, plain
from llmasos.userland.shell.grammar import Line, UsageError
from llmasos.userland.shell.session import Session, does, each


@does("grant")
def _grant(shell: Session, line: Line) -> None:
    pid = shell.pid(line.text("PID"), agent=True)
    made = shell.kernel(Grant(pid, line.text("WHO"), rights_of(line.words or ("read",))))
    ticket = made.ticket.hex()
    if line.has("--json"):
        document(shell.screen, {**plain(made), "ticket": ticket})
        return
    shell.screen.line(ticket)
    shell.remark(f"a program of {made.to} takes it with `accept TICKET`, once; `revoke {made.handle}` takes it back")


@does("accept")
def _accept(shell: Session, line: Line) -> None:
    try:
        ticket = bytes.fromhex(line.text("TICKET"))
    except ValueError:
        raise UsageError("a ticket is what `grant` has printed: digits and the letters a to f") from None
    taken = shell.kernel(Accept(ticket))
    shell.screen.line(f"process {shown(taken.pid)}: {words_of(taken.rights)}")


@does("grants")
def _grants(shell: Session, line: Line) -> None:
    grants.LISTING.show(shell.screen, grants.read(shell.kernel), Asked.of(line))


@does("revoke")
def _revoke(shell: Session, line: Line) -> int:
    return each(shell, line, lambda word: _take_back(shell, word))


def _take_back(shell: Session, word: str) -> None:
    if not word.isdecimal() or not int(word):
        raise Errno.EINVAL(f"a handle is a number that `grants` lists, found {word!r}")
    shell.kernel(Revoke(int(word)))

"""Scripts: `llmasos shell FILE`, `-c CMD`, a script with `#!`, and what is piped into the shell.

Commands are read and run one after the other, as by any shell: an alias holds from the next line on, and a line that is
wrong is reached before it is refused.
"""

from __future__ import annotations

from collections.abc import Iterable

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.shell import pipes, syntax
from llmasos.userland.shell.evaluate import execute
from llmasos.userland.shell.failing import Left
from llmasos.userland.shell.quoting import Incomplete
from llmasos.userland.shell.session import Session
from llmasos.userland.shell.words import COMMANDS


def run_lines(shell: Session, lines: Iterable[str], *, leaves: bool = False, tested: bool = False) -> int:
    """Run the commands of a text, each as soon as its lines are whole; returns the status of the last. `leaves`: `return`
    in it leaves it. `tested`: its status is looked at. Raises E2BIG."""
    status, begun, first = 0, "", 1
    for number, line in enumerate(pipes.bounded(lines), 1):
        first = number if not begun else first
        begun += line if line.endswith("\n") else line + "\n"
        if len(begun) > pipes.MAX_TEXT:
            raise SyscallError(Errno.E2BIG, f"the command of line {first} is longer than {pipes.MAX_TEXT >> 20} MiB")
        if not whole(shell, begun):
            continue
        text, begun = begun.rstrip("\n"), ""
        shell.line = first
        try:
            status = execute(shell, text, returns=leaves, tested=tested)
        except Left as left:
            return left.amount
        if shell.status is not None:
            return shell.status
    if begun.strip():
        shell.line = first
        status = execute(shell, begun.rstrip("\n"), returns=leaves, tested=tested)  # says what is missing
    return status if shell.status is None else shell.status


def whole(shell: Session, text: str) -> bool:
    """Whether a text can be run as it is: whole, or wrong in a way that more lines do not mend."""
    try:
        syntax.read(text.rstrip("\n"), COMMANDS, shell.variables.aliases)
    except Incomplete:
        return False
    except SyscallError:
        return True
    return True

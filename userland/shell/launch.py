"""Programs of the host as commands: found, and at a terminal each a job of its own, which Ctrl-Z stops."""

from __future__ import annotations

import sys
import threading

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.shell import hosts, meaning
from llmasos.userland.shell.failing import guarded
from llmasos.userland.shell.foreground import foreground, new_job
from llmasos.userland.shell.grammar import Argument, UsageError
from llmasos.userland.shell.session import Session


def program(shell: Session, words: list[Argument], given: dict[str, str], *, host: bool) -> int:
    """A program of the host, in a job of its own at a terminal."""
    name = words[0].text
    if not host and name in hosts.MEANT_OTHERWISE:
        raise UsageError(f"{name!r} is the machine's own, and {hosts.MEANT_OTHERWISE[name]}; `!{name}` if you mean it")
    path = hosts.found(name, shell)
    if path is None:
        where = "on PATH" if "/" not in name else "there"
        reason = f"there is no program {name!r} {where}" if host else meaning.no_command(name)
        if host and name.startswith(("!", "$")):
            reason = "`!!` and its like are not here: Up and Ctrl-R find earlier lines, and `history` lists them"
        shell.complain(UsageError(reason))
        return hosts.NOT_FOUND
    argv = [name, *meaning.matching_files(words[1:])]
    return _started(shell, path, argv, given)


def python(shell: Session, argv: list[str]) -> int:
    """Run a Python program, by the Python that runs this one."""
    return _started(shell, sys.executable, [sys.executable, *argv], {})


def typed(shell: Session) -> int:
    """Print what the person types, up to Ctrl-D. The host's cat reads it: it has the terminal, its modes and its keys."""
    path = hosts.found("cat", shell)
    if path is None:
        raise SyscallError(Errno.ENOENT, "there is no program 'cat' on PATH, which reads what is typed")
    return _started(shell, path, ["cat"], {})


def _started(shell: Session, path: str, argv: list[str], given: dict[str, str]) -> int:
    if shell.job is not None or not (shell.controls and shell.main):
        return _guarded_program(shell, path, argv, given)
    job = new_job(shell, " ".join(argv), foreground=True)
    view = shell.view()
    view.job = job
    statuses: list[int] = []

    def act() -> None:
        statuses.append(guarded(view, lambda: _guarded_program(view, path, argv, given)))

    shell.terminal.restore() if shell.terminal is not None else None
    thread = threading.Thread(target=act, name="llmasos-program", daemon=True)
    return foreground(shell, job, lambda: job.begin([thread], lambda: statuses[0]))


def _guarded_program(shell: Session, path: str, argv: list[str], given: dict[str, str]) -> int:
    try:
        return hosts.run(shell, path, argv, given)
    except SyscallError as error:
        shell.complain(error)
        return hosts.NOT_EXECUTABLE

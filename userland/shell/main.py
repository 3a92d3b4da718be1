"""The shell's main program: lines from a terminal, with editing, history and completion; a script; or a pipe.

From a pipe (`echo ps | llmasos shell`) commands run in turn with plain output, and the exit status is 0 only if all of
them succeed; that of a script (`llmasos shell FILE`, `-c CMD`) is the status of its last command, as with any shell. On a
terminal an error is a line, and the shell goes on.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TextIO, cast

from llmasos.syscalls import runtime
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import Kind, State
from llmasos.syscalls.table import Models
from llmasos.userland.programs import log, ps
from llmasos.userland.programs.boot import boot_if_none, booted_words, take_over
from llmasos.userland.programs.screen import Screen
from llmasos.userland.sdk.system import System
from llmasos.userland.shell import (
    do_cat,
    do_compact,
    do_control,
    do_grants,
    do_images,
    do_language,
    do_look,
    do_sandbox,
    do_shell,
    do_talk,
    do_wait,
)
from llmasos.userland.shell.evaluate import execute, interrupted, leave
from llmasos.userland.shell.files import opened
from llmasos.userland.shell.jobs import Pipeline
from llmasos.userland.shell.script import run_lines
from llmasos.userland.shell.session import DO, Session, stopped_agents

if TYPE_CHECKING:
    from llmasos.userland.shell.situation import Situation

__all__ = [
    "DO", "Session", "do_cat", "do_compact", "do_control", "do_grants", "do_images", "do_language", "do_look",
    "do_sandbox", "do_shell", "do_talk", "do_wait",
    "open_private", "open_shell",
]  # fmt: skip
NAMED = 5  # agents
RC = "shellrc"
GREETING = "`help` lists the commands; `spawn alice` starts an agent, `say alice hello` talks to it."
GONE = (
    "the shell stays: once a kernel runs again (`llmasos boot --detach`), the next command connects anew; `exit` leaves"
)


def open_shell(where: Path, *, file: str = "", command: str | None = None, arguments: Sequence[str] = ()) -> int:
    """A shell on the kernel of a runtime directory; returns the exit status. If none runs there, boots one that stays.
    With a `file` or a `command`, runs that with its `arguments` ($1, ...). Raises ENOENT or EPERM for the file."""
    screen, where = Screen(), where.absolute()  # `cd` leaves it where it is
    booted = boot_if_none(where, say=screen.note)
    with System.connect(where, name="shell") as system:
        boot = system.kernel.boot
        for line in booted_words(boot) if booted else take_over(where, boot, screen.note):
            screen.note(line)
        if booted:
            _say_what_is_back(screen, system)
        if file or command is not None:
            return _script(system, file, command, arguments)
        return _serve(system, stays=True)


def _say_what_is_back(screen: Screen, system: System) -> None:
    """Which agents the kernel that was booted has from the one before, and what it could not read of them."""
    with suppress(SyscallError):
        agents = ps.processes(system.kernel, lambda row: row.kind is Kind.LLM and row.state is not State.ZOMBIE)
        if agents:
            names = ", ".join(printable(row.name or str(row.pid), one_line=True) for row in agents[:NAMED])
            more = ", ..." if len(agents) > NAMED else ""
            screen.note(f"{'1 agent is' if len(agents) == 1 else f'{len(agents)} agents are'} back: {names}{more}")
        for line in log.read(system.kernel):
            if line.level in ("warning", "error") and line.text.startswith("journal:"):
                screen.note(line.text)


def _say_who_stays(screen: Screen, system: System) -> None:
    with suppress(SyscallError):  # the kernel has gone, and that has been said
        agents = ps.processes(system.kernel, lambda row: row.kind is Kind.LLM and row.state is not State.ZOMBIE)
        if agents:
            many = f"{len(agents)} agents live on" if len(agents) > 1 else "one agent lives on"
            screen.line(f"{many}; `llmasos` comes back, `llmasos halt` ends everything", "dim")


def open_private(where: Path, *, file: str = "", command: str | None = None, arguments: Sequence[str] = ()) -> int:
    """A shell on a kernel that ends with it, in a place of its own if the user's kernel runs in the usual one. Raises
    EBUSY if another kernel runs in a directory that was named."""
    if runtime.holder(where) is not None:
        if where.absolute() == runtime.default().absolute() and where in (runtime.usual(), runtime.system()):
            with TemporaryDirectory(prefix="llmasos-") as place:
                return open_private(Path(place) / "run", file=file, command=command, arguments=arguments)
        why = f"a kernel runs in {where} already; a private one wants a place of its own (--runtime DIR)"
        raise Errno.EBUSY(why)
    screen = Screen()
    screen.line("booting a kernel that ends with this shell ...", "dim")
    usual = runtime.configuration()
    flags = ["--config", os.fspath(usual)] if usual is not None else []
    with System.connect(where, boot=True, flags=flags, name="shell") as system:
        if file or command is not None:
            return _script(system, file, command, arguments)
        log.show(screen, log.read(system.kernel))
        return _serve(system)


def _script(system: System, file: str, command: str | None, arguments: Sequence[str]) -> int:
    shell = Session(system, Screen(), _next_line, interactive=False)
    shell.variables.arguments = list(arguments)
    if command is not None:
        return leave(shell, run_lines(shell, command.splitlines()))
    shell.variables.name = shell.script = file
    with opened(file, "<") as lines:
        return leave(shell, run_lines(shell, lines, leaves=True))


def _serve(system: System, *, stays: bool = False) -> int:
    """`stays`: the kernel does not end with this shell, and agents may stay in it."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return _interact(system, stays=stays)
    shell = Session(system, Screen(), _next_line, interactive=False)
    run_lines(shell, sys.stdin, leaves=True)
    status = leave(shell, shell.status if shell.status is not None else int(shell.failures > 0))
    if stays and sys.stdin.isatty():
        _say_who_stays(shell.screen, system)
    return status


def _next_line(prompt: str) -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def _interact(system: System, *, stays: bool) -> int:
    from llmasos.userland.shell.editing import Current, Editor, is_text
    from llmasos.userland.shell.situation import Situation
    from llmasos.userland.shell.tty import Terminal

    current = Current()
    screen = Screen(cast(TextIO, current))
    shell = Session(system, screen, _next_line, interactive=True)
    with ExitStack() as later, Terminal() as terminal, Situation(shell) as situation:
        shell.terminal = terminal
        editor = Editor(shell, situation, current, lambda text: screen.line(text, "yellow"))
        shell.ask_line, shell.history = editor.ask, editor.lines
        screen.line(GREETING, "dim")
        _say_who_is_stopped(shell)
        _read_own_settings(shell)
        _begin(shell, situation)
        while shell.status is None:
            try:
                _tell_of_jobs(shell)
                shell.outage.prompting = True
                try:
                    line = editor.line()
                finally:
                    shell.outage.prompting = False
            except KeyboardInterrupt:
                interrupted(shell)
            except EOFError:
                shell.status = 0
            else:
                if shell.outage.gone and line.strip():
                    _look_anew(shell, situation, later)
                cut = shell.outage.cut
                with terminal.commanding():
                    execute(shell, line, whole_text=is_text(shell, line))
                if shell.outage.cut > cut:
                    editor.forget_typed()
                    if not cut:
                        screen.line(GONE, "dim")
        shell.status = leave(shell, shell.status)
        for job in shell.jobs:
            if isinstance(job, Pipeline):
                job.leave()
        if stays:
            _say_who_stays(screen, shell.system)
    return shell.status


def _read_own_settings(shell: Session) -> None:
    """The aliases and functions that a person keeps in `shellrc`, beside the kernel's configuration."""
    path = runtime.own_settings(RC)
    if path is not None:
        shell.script = os.fspath(path)
        try:
            with opened(shell.script, "<") as lines:
                run_lines(shell, lines, leaves=True)
        except SyscallError as error:
            shell.screen.error(str(error))
        shell.script = ""


def _say_who_is_stopped(shell: Session) -> None:
    """What an earlier shell has stopped is no job of this one, and is easily forgotten."""
    with suppress(SyscallError):
        stopped = stopped_agents(shell)
        if stopped:
            who = f"{', '.join(stopped[:NAMED])}{', ...' if len(stopped) > NAMED else ''}"
            many = f"{len(stopped)} agents are stopped ({who}): `cont NAME` lets" if len(stopped) > 1 else ""
            shell.screen.line(f"{many or f'an agent is stopped: `cont {who}` lets'} it go on", "dim")


def _begin(shell: Session, situation: Situation) -> None:
    """Watch over the kernel, and load what the first `say` needs."""
    shell.outage.changed = situation.look
    shell.outage.watch()
    shell.warming = threading.Thread(target=_warm, args=(shell.system,), daemon=True)
    shell.warming.start()


def _tell_of_jobs(shell: Session) -> None:
    try:
        for text in shell.finished_jobs():
            shell.screen.line(text, "dim")
    except SyscallError as error:
        shell.screen.error(str(error))
        if not shell.alive():
            shell.outage.lost()


def _look_anew(shell: Session, situation: Situation, later: ExitStack) -> None:
    """The kernel has gone; go on with the next one, if one runs in its place. `later` closes the connection."""
    where = shell.kernel.runtime
    if runtime.holder(where) is None:
        return
    try:
        system = later.enter_context(System.connect(where, name="shell"))
    except SyscallError as error:
        shell.screen.error(str(error))
        return
    except KeyboardInterrupt:  # the command says that the kernel has gone
        return
    shell.moved(system)
    _begin(shell, situation)
    situation.look()
    shell.screen.line(f"[connected anew, to the kernel that runs now (pid {system.kernel.boot.os_pid})]", "dim")


def _warm(system: System) -> None:
    """Load the tokenizer while the person types: that takes a second or more, and the first `say` needs it. That `say`
    also reports its errors."""
    with suppress(SyscallError):
        for info in system.kernel(Models()):
            if info.name == system.kernel.boot.default_model and Path(info.path).is_dir():
                system.language(info)

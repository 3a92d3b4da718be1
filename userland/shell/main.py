"""The shell's main program: lines from a terminal, with editing, history and completion, or from a pipe.

From a pipe (`echo ps | llmasos shell`) commands run in turn with plain output, and the exit status is 0 only if all of
them succeed. On a terminal an error is a line, and the shell goes on.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from llmasos.syscalls import runtime
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Kind, State
from llmasos.syscalls.table import Models, StatsCall
from llmasos.userland.programs import log, ps
from llmasos.userland.programs.boot import boot_if_none, booted_words, take_over
from llmasos.userland.programs.figures import number
from llmasos.userland.programs.screen import Screen
from llmasos.userland.sdk.system import System
from llmasos.userland.shell import do_compact, do_control, do_images, do_look, do_talk
from llmasos.userland.shell.session import DO, Session
from llmasos.userland.shell.words import COMMANDS

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History

__all__ = ["DO", "Session", "do_compact", "do_control", "do_images", "do_look", "do_talk", "open_private", "open_shell"]
REFRESH_SECONDS = 1.0
GREETING = "`help` lists the commands; `spawn alice` starts an agent, `say alice hello` talks to it."


def open_shell(where: Path) -> int:
    """A shell on the kernel of a runtime directory; returns the exit status. If none runs there, boots one that stays."""
    screen = Screen()
    booted = boot_if_none(where)
    with System.connect(where, name="shell") as system:
        boot = system.kernel.boot
        for line in booted_words(boot) if booted else take_over(where, boot):
            screen.note(line)
        status = _serve(system)
        if sys.stdin.isatty():
            _say_who_stays(screen, system)
        return status


def _say_who_stays(screen: Screen, system: System) -> None:
    with suppress(SyscallError):  # the kernel has gone, and that has been said
        agents = ps.processes(system.kernel, lambda row: row.kind is Kind.LLM and row.state is not State.ZOMBIE)
        if agents:
            many = f"{len(agents)} agents live on" if len(agents) > 1 else "one agent lives on"
            screen.line(f"{many}; `llmasos` comes back, `llmasos halt` ends everything", "dim")


def open_private(where: Path) -> int:
    """A shell on a kernel that ends with it. Raises EBUSY if another kernel runs in that runtime directory."""
    if runtime.holder(where) is not None:
        why = f"a kernel runs in {where} already; a private one wants a place of its own (--runtime DIR)"
        raise Errno.EBUSY(why)
    screen = Screen()
    screen.line("booting a kernel that ends with this shell ...", "dim")
    usual = runtime.configuration()
    flags = ["--config", os.fspath(usual)] if usual is not None else []
    with System.connect(where, boot=True, flags=flags, name="shell") as system:
        log.show(screen, log.read(system.kernel))
        return _serve(system)


def _serve(system: System) -> int:
    if sys.stdin.isatty() and sys.stdout.isatty():
        return _interact(system)
    shell = Session(system, Screen(), _next_line, interactive=False)
    for line in sys.stdin:
        shell.execute(line)
        if shell.status is not None:
            return shell.status
    return 1 if shell.failures else 0


def _next_line(prompt: str) -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def _interact(system: System) -> int:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.patch_stdout import patch_stdout

    asking: PromptSession[str] = PromptSession()
    shell = Session(system, Screen(), asking.prompt, interactive=True)
    prompt = _prompt(shell)
    shell.screen.line(GREETING, "dim")
    shell.warming = threading.Thread(target=_warm, args=(system,), daemon=True)
    shell.warming.start()
    while shell.status is None:
        try:
            for text in shell.finished_jobs():
                shell.screen.line(text, "dim")
            with patch_stdout(raw=True):
                shell.outage.prompting = True
                try:
                    line = prompt.prompt()
                finally:
                    shell.outage.prompting = False
        except KeyboardInterrupt:
            continue
        except EOFError:
            shell.status = 0
        except SyscallError as error:  # the kernel has gone, and no command has noticed
            shell.screen.error(str(error))
            shell.status = 1
        else:
            shell.execute(line)
    return shell.status


def _warm(system: System) -> None:
    """Load the tokenizer while the person types: that takes a second or more, and the first `say` needs it. That `say`
    also reports its errors."""
    with suppress(SyscallError):
        for info in system.kernel(Models()):
            if info.name == system.kernel.boot.default_model and Path(info.path).is_dir():
                system.language(info)


def _prompt(shell: Session) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
    from prompt_toolkit.formatted_text import HTML, FormattedText
    from prompt_toolkit.styles import Style

    from llmasos.userland.shell.completion import ShellCompleter

    def toolbar() -> FormattedText:
        return FormattedText([("class:bottom-toolbar.text", f" {_situation(shell)} ")])

    return PromptSession(
        HTML("<b><ansicyan>llmasos</ansicyan></b>&gt; "),
        history=_history(shell.screen),
        completer=ShellCompleter(COMMANDS, shell.glance),
        auto_suggest=AutoSuggestFromHistory(),
        complete_while_typing=False,
        bottom_toolbar=toolbar,
        refresh_interval=REFRESH_SECONDS,
        style=Style.from_dict({"bottom-toolbar": "noreverse fg:ansibrightblack"}),
        enable_suspend=True,
    )


def _situation(shell: Session) -> str:
    """The line under the prompt: `3 agents: 2 running, 1 stopped | tiny 12/2048 pages | 812 tokens decoded`."""
    if shell.outage.down:
        return "no kernel: waiting for the next one"
    try:
        agents = ps.processes(shell.glance, lambda row: row.kind is Kind.LLM)
        models = [model for model in shell.glance(Models()) if model.frames]
        counters = shell.glance(StatsCall())
    except SyscallError as error:
        return str(error)
    working = sum(row.decoding and row.state is not State.STOPPED for row in agents)
    stopped = sum(row.state is State.STOPPED for row in agents)
    parts = [f"{len(agents)} agent{'' if len(agents) == 1 else 's'}: {working} decoding, {stopped} stopped"]
    parts += [f"{m.name} {m.frames - m.frames_free - m.frames_cached}/{m.frames} pages" for m in models]
    parts.append(f"{number(counters.tokens_decoded)} tokens decoded")
    return "  |  ".join(parts)


def _history(screen: Screen) -> History:
    """The lines of earlier sessions, in $XDG_STATE_HOME/llmasos/history, readable by the user alone."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    path = state / "llmasos" / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
    except OSError as error:
        screen.line(f"the history of this session will not be kept: {error}", "yellow")
        return InMemoryHistory()
    return FileHistory(path)

"""A shell session: one connection to the kernel, one screen, and the answers in the background.

What people spawn at the prompt belongs to their session, not to the shell: it is detached, and lives on after Ctrl-D.
What a script spawns ends with it, unless it is detached. Commands run one at a time in the foreground; background answers
need no thread here, because the kernel lets the processes decode.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Finish, ProcessInfo, State
from llmasos.syscalls.table import Call, Getinfo
from llmasos.userland.programs import ps
from llmasos.userland.programs.screen import Screen
from llmasos.userland.sdk.system import Process, System
from llmasos.userland.shell.grammar import Line, UsageError, parse
from llmasos.userland.shell.outage import Outage
from llmasos.userland.shell.words import COMMANDS

R = TypeVar("R")
INTERRUPTED = 130  # 128 + SIGINT
GLANCE_SECONDS = 1.0


@dataclass(frozen=True)
class Remembered:
    """What a shell remembers of an agent: its handle, the token bound of an answer, its system prompt, and whether to
    show its thoughts."""

    agent: Process | None = None
    max_tokens: int | None = None  # None: the process's own
    instructions: str = ""
    thoughts: bool = True


class Session:
    """The state of a shell. `status` is None until the shell ends; `failures` counts the commands that failed."""

    def __init__(self, system: System, screen: Screen, ask_line: Callable[[str], str], *, interactive: bool) -> None:
        self.system = system
        self.kernel = system.kernel
        self.screen = screen
        self.ask_line = ask_line  # a line from the person, after a prompt; EOFError where there are no more
        self.interactive = interactive
        self.outage = Outage(system, screen, interactive=interactive)
        self.status: int | None = None
        self.failures = 0
        self.jobs: dict[int, str] = {}  # pid -> name, of the processes that answer in the background
        self.warming: threading.Thread | None = None  # loads the tokenizer library, which two threads must not do at once
        self._remembered: dict[int, Remembered] = {}

    def execute(self, text: str) -> None:
        """Run one command line. Errors are printed and counted, never raised."""
        try:
            line = parse(text, COMMANDS)
            if line is not None:
                DO[line.command.name](self, line)
        except SyscallError as error:
            self.screen.error(str(error))
            if error.errno is Errno.EPIPE and not self._alive():
                self.status = 1
        except KeyboardInterrupt:
            self.screen.line()
            if not self.interactive:
                self.status = INTERRUPTED
        except BrokenPipeError:
            self.status = 1
        else:
            return
        self.failures += 1

    def pid(self, word: str, *, exited: bool = False) -> int:
        """The pid that a word means: a number, or the name of one process (for a driver also its device's).

        With `exited`, an exited process that has not been reaped counts if no living one has the name. Raises EINVAL, or
        ESRCH for a name.
        """
        if word.isascii() and word.isdigit():
            number = int(word)
            if number < 1:
                raise UsageError(f"a pid is 1 or greater, found {word}")
            return number
        called = ps.processes(self.kernel, lambda row: row.name == word or row.name == f"driver:{word}")
        living = [row for row in called if row.state is not State.ZOMBIE]
        named = living or (called if exited else [])
        if len(named) == 1:
            return named[0].pid
        if not named:
            raise SyscallError(Errno.ESRCH, f"no process is called {word!r}; `ps` lists them")
        pids = ", ".join(str(row.pid) for row in named)
        raise UsageError(f"{len(named)} processes are called {word!r} ({pids}); say which by its pid")

    def lets_live(self, line: Line) -> bool:
        """Whether what a command starts outlives this shell."""
        return self.interactive or line.has("--detach")

    def warmed(self) -> System:
        """The system, once the tokenizer library is loaded."""
        if self.warming is not None:
            self.warming.join()
        return self.system

    def agent(self, pid: int) -> Process:
        """A handle on an LLM process of any program. Raises ESRCH, EINVAL."""
        self.warmed()
        kept = self._remembered.get(pid)
        return kept.agent if kept is not None and kept.agent is not None else self.system.process(pid)

    def remember(self, agent: Process, max_tokens: int | None, instructions: str, *, thoughts: bool = True) -> None:
        """Remember an agent of this shell."""
        self._remembered[agent.pid] = Remembered(agent, max_tokens, instructions, thoughts)

    def remembered(self, pid: int) -> Remembered:
        """What this shell remembers of an agent; the defaults for another program's."""
        return self._remembered.get(pid, Remembered())

    def info(self, pid: int, *, timeout: float | None = None) -> ProcessInfo:
        return self.kernel(Getinfo(pid=pid), timeout=timeout)

    def glance(self, call: Call[R], /) -> R:
        """A system call for what is shown beside the prompt: a kernel that does not answer costs that, not the line."""
        return self.kernel(call, timeout=GLANCE_SECONDS)

    def finished_jobs(self) -> list[str]:
        """A line for each background answer that has ended since the last call. None while no kernel runs."""
        lines: list[str] = []
        if self.outage.down:
            return lines
        for pid, name in list(self.jobs.items()):
            try:
                info = self.info(pid)
            except SyscallError as error:
                if error.errno is not Errno.ESRCH:
                    raise
                del self.jobs[pid]
                lines.append(f"[{pid}] {name}: gone")
                continue
            if info.state is State.ZOMBIE:
                del self.jobs[pid]
                lines.append(f"[{pid}] {name}: exited with {info.exit_status}")
            elif not info.decoding:
                del self.jobs[pid]
                how = "done" if info.finish in (Finish.STOP, Finish.NONE) else f"ended ({info.finish})"
                lines.append(f"[{pid}] {name}: {how}, {info.length} tokens; `cat {pid}` shows it")
        return lines

    def _alive(self) -> bool:
        try:
            self.kernel(Getinfo())
        except SyscallError:
            return False
        return True


Action = Callable[[Session, Line], None]
DO: dict[str, Action] = {}


def does(name: str) -> Callable[[Action], Action]:
    """Enter a function as the action of the command `name`."""

    def enter(action: Action) -> Action:
        if name not in COMMANDS or name in DO:
            raise ValueError(f"command {name!r} is not declared, or is done twice")
        DO[name] = action
        return action

    return enter

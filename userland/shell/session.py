"""A shell session: one connection to the kernel, its jobs and variables, and the streams of the command that runs.

What people spawn at the prompt belongs to their session, not to the shell: it is detached, and lives on after Ctrl-D.
What a script spawns ends with it, unless it is detached. Commands run one at a time in the foreground, in the main
thread; background answers need no thread here, because the kernel lets the processes decode. Members of a pipeline run in
threads, each with a view of the session that has its own streams and variables.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TextIO, TypeVar

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.pids import parse, shown
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import Finish, Kind, ProcessInfo, State
from llmasos.syscalls.table import Call, Getinfo
from llmasos.userland.programs import ps
from llmasos.userland.programs.screen import Screen
from llmasos.userland.shell import pipes
from llmasos.userland.shell.grammar import Line, UsageError
from llmasos.userland.shell.jobs import Answer, Job, Jobs, Pipeline
from llmasos.userland.shell.outage import Outage
from llmasos.userland.shell.remedy import told
from llmasos.userland.shell.tty import Terminal
from llmasos.userland.shell.variables import Variables
from llmasos.userland.shell.words import COMMANDS

if TYPE_CHECKING:
    from llmasos.userland.sdk.answers import Listening
    from llmasos.userland.sdk.system import Process, System

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


@dataclass
class Life:
    """`status` is None until the shell, or the subshell, ends; `failures` counts the commands that failed."""

    status: int | None = None
    failures: int = 0


class Session:
    """The state of a shell, or the view that a member of a pipeline has of it.

    A command reads `input` (None: nothing was given to it) and prints to `screen`; `piped`: what it prints goes to
    another command, a file or a variable, and is bare text then. `controls`: it is a person's shell at a terminal.
    """

    def __init__(self, system: System, screen: Screen, ask_line: Callable[[str], str], *, interactive: bool) -> None:
        self.system = system
        self.kernel = system.kernel
        self.screen = self.front = screen  # `front` is what the person sees, wherever a command prints to
        self.ask_line = ask_line  # a line from the person, after a prompt; EOFError where there are no more
        self.interactive = interactive
        self.terminal: Terminal | None = None
        self.outage = Outage(system, screen, interactive=interactive)
        self.life = Life()
        self.jobs = Jobs()
        self.variables = Variables()
        self.history: Callable[[], list[str]] = list  # the lines of this session and earlier ones, the oldest first
        self.input: TextIO | None = None
        self.piped = False
        self.verb = False  # it is a verb of the command line
        self.job: Pipeline | None = None  # that this command is a member of
        self.main = True  # no subshell
        self.script = ""  # the file that is run, if one is, and the line in it
        self.line = 1
        self.tested = False  # the status of the command that runs is looked at, so that a failure in it is none
        self.warming: threading.Thread | None = None  # loads the tokenizer library, which two threads must not do at once
        self.plain: set[str] = set()  # models of which it was told why they are spoken to in plain text
        self._remembered: dict[int, Remembered] = {}

    def moved(self, system: System) -> None:
        """Go on with another kernel. What this shell remembers of the agents of the one that has gone is forgotten;
        variables, aliases and functions stay."""
        self.system, self.kernel = system, system.kernel
        self._remembered.clear()
        for job in self.jobs:
            if isinstance(job, Answer):
                self.jobs.remove(job)
        self.outage = Outage(system, self.screen, interactive=self.interactive)

    @property
    def status(self) -> int | None:
        """None until it ends."""
        return self.life.status

    @status.setter
    def status(self, status: int | None) -> None:
        self.life.status = status

    @property
    def failures(self) -> int:
        """The commands that failed."""
        return self.life.failures

    @failures.setter
    def failures(self, failures: int) -> None:
        self.life.failures = failures

    @property
    def controls(self) -> bool:
        return self.terminal is not None

    def execute(self, text: str) -> int:
        """Run a script. Errors are printed and counted, never raised. Returns the status of the last command."""
        from llmasos.userland.shell.evaluate import execute  # late: it imports this module

        return execute(self, text)

    def view(self) -> Session:
        """The same session for a command with streams of its own."""
        return copy.copy(self)

    def subshell(self) -> Session:
        """The same session for a member of a pipeline, or `(...)`: what it sets, and its exit, is its own."""
        made = copy.copy(self)
        made.variables, made.life, made.main = self.variables.copy(), Life(), False
        return made

    def redirected(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        """Print elsewhere from here on: a view's."""
        self.screen = Screen(out or self.screen.out, err or self.screen.err)
        self.piped = self.piped or out is not None

    def complain(self, error: SyscallError) -> None:
        """Print an error of a command that goes on."""
        before = "llmasos: " if self.verb else f"{self.script}: line {self.line}: " if self.script else ""
        self.screen.error(f"{before}{told(error)}")

    def remark(self, text: str) -> None:
        """Print a dim line that is no part of what a command says: where that goes to another command, on stderr."""
        if self.piped:
            self.screen.error(text)
        else:
            self.screen.line(text, "dim")

    def read_input(self, what: str) -> str:
        """All that was given to the command; empty if nothing was."""
        return "" if self.input is None else pipes.read_all(self.input, what)

    def pid(self, word: str, *, exited: bool = False, agent: bool = False) -> int:
        """The pid that a word means: a number (with `UID:` before it that of another user's process), or the name of one
        process.

        A device's name means its driver, whoever else is called so, but not where an `agent` is wanted. With `exited`,
        an exited process that has not been reaped counts if no living one has the name. Raises EINVAL, or ESRCH for a
        name.
        """
        number = parse(word)
        if number is not None:
            if number < 1:
                raise UsageError(f"a pid is 1 or greater, found {word}")
            return number
        if word.startswith("%"):
            job = self.jobs.find(word)
            if isinstance(job, Answer):
                return job.pid
            raise UsageError(f"job {word} is a pipeline of several; say which process by its pid or name")
        called = ps.processes(self.kernel, lambda row: row.name == word or _drives(row, word))
        living = [row for row in called if row.state is not State.ZOMBIE]
        named = living or (called if exited else [])
        meant = [row for row in named if (row.kind is Kind.LLM if agent else _drives(row, word))]
        named = meant or named
        if len(named) == 1:
            return named[0].pid
        if not named:
            raise SyscallError(Errno.ESRCH, f"no process is called {word!r}; `ps` lists them")
        pids = ", ".join(shown(row.pid) for row in named)
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

    def in_background(self, pid: int, name: str, listening: Listening | None = None, shown: int = 0) -> Answer:
        """An agent answers, and nobody listens."""
        self.variables.last = str(pid)
        return self.jobs.answer(pid, name, listening, shown)

    def finished_jobs(self) -> list[str]:
        """A line for each job that has ended since the last call. None while no kernel runs."""
        if self.outage.down or self.outage.gone:
            return []
        lines = [(job, self._ended(job)) for job in self.jobs]
        for job, line in lines:
            if line:
                self.jobs.remove(job)
        return [line for _, line in lines if line]

    def _ended(self, job: Job) -> str:
        """What to say of a job that has ended; empty for one that has not."""
        if isinstance(job, Pipeline):
            if not job.done:
                return ""
            how = "done" if job.status == 0 else f"exit status {job.status}"
            return f"%{job.number} {printable(job.source, one_line=True)}: {how}"
        head = f"[{job.pid}] {job.name}"
        try:
            info = self.info(job.pid)
        except SyscallError as error:
            if error.errno is not Errno.ESRCH:
                raise
            return f"{head}: gone"
        if info.state is State.ZOMBIE:
            return f"{head}: exited with {info.exit_status}"
        if info.decoding or job.stopped:
            return ""
        how = "done" if info.finish in (Finish.STOP, Finish.NONE) else f"ended ({info.finish})"
        why = f", {printable(info.reason, one_line=True)};" if info.reason else ","
        return f"{head}: {how}{why} {info.length} tokens; `cat {job.pid}` shows it"

    def alive(self) -> bool:
        """Whether the kernel answers."""
        try:
            self.kernel(Getinfo())
        except SyscallError:
            return False
        return True


def stopped_agents(shell: Session) -> list[str]:
    """The agents that are stopped, by name, or by pid where several have one."""
    rows = ps.processes(shell.kernel, lambda row: row.kind is Kind.LLM and row.state is not State.ZOMBIE)
    names = [row.name for row in rows]
    stopped = [row for row in rows if row.state is State.STOPPED]
    return [
        printable(row.name, one_line=True) if row.name and names.count(row.name) == 1 else str(row.pid) for row in stopped
    ]


def matching(shell: Session, pattern: str, *, exited: bool = False) -> list[int]:
    """The pids of the agents whose names match a pattern."""
    rows = ps.processes(shell.kernel, lambda row: row.kind is Kind.LLM and fnmatchcase(row.name, pattern))
    return [row.pid for row in rows if exited or row.state is not State.ZOMBIE]


def _named(shell: Session, word: str, *, exited: bool) -> list[str]:
    """A word of a verb: the pids of what it matches, if it is a pattern that matches something."""
    found = matching(shell, word, exited=exited) if set(word) & set("*?[") else []
    return [str(pid) for pid in found] or [word]


def each(shell: Session, line: Line, act: Callable[[str], int | None]) -> int:
    """Carry out an action for each word, as kill(1) does: an error is printed, and the others have their turn. Returns 1
    if there was one, else the last status. Raises the error of a single word, and EPIPE: the kernel has gone."""
    status, failed = 0, False
    words = list(line.words)
    if shell.verb:  # in a shell the patterns have been replaced already
        words = [one for word in words for one in _named(shell, word, exited=line.command.name == "wait")]
    for word in words:
        try:
            status = act(word) or 0
        except SyscallError as error:
            if len(words) == 1 or error.errno is Errno.EPIPE:
                raise
            shell.complain(error)
            failed = True
    return 1 if failed else status


def _drives(row: ProcessInfo, device: str) -> bool:
    return row.kind is Kind.DRIVER and row.name in (device, f"driver:{device}")


Action = Callable[[Session, Line], int | None]
"""Carries out a command; returns its exit status (None: 0). Errors are raised."""
DO: dict[str, Action] = {}


def does(name: str) -> Callable[[Action], Action]:
    """Enter a function as the action of the command `name`."""

    def enter(action: Action) -> Action:
        if name not in COMMANDS or name in DO:
            raise ValueError(f"command {name!r} is not declared, or is done twice")
        DO[name] = action
        return action

    return enter

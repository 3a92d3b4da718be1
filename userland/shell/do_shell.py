"""The commands of the shell itself: jobs fg bg disown history watch source alias unalias."""

from __future__ import annotations

import shlex
import time

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Signal
from llmasos.syscalls.table import Kill
from llmasos.userland.programs import ps
from llmasos.userland.programs.listing import Asked
from llmasos.userland.shell.evaluate import execute
from llmasos.userland.shell.files import opened
from llmasos.userland.shell.foreground import foreground
from llmasos.userland.shell.grammar import Line, UsageError
from llmasos.userland.shell.jobs import Answer, Job
from llmasos.userland.shell.jobs_table import LISTING, JobRow
from llmasos.userland.shell.listening import resume
from llmasos.userland.shell.script import run_lines
from llmasos.userland.shell.session import INTERRUPTED, Session, does, each, stopped_agents

WATCH_SECONDS, WATCH_LEAST = 2.0, 0.1
SHOWN_LINES = 50  # of the history

# --- jobs -----------------------------------------------------------------------------------------------------------


@does("jobs")
def _jobs(shell: Session, line: Line) -> None:
    asked = Asked.of(line)
    tabled = asked != Asked()
    for text in shell.finished_jobs():
        (shell.screen.note if tabled else shell.screen.line)(text)
    rows = [_row(shell, job) for job in shell.jobs]
    if tabled:
        LISTING.show(shell.screen, rows, asked)
        return
    for row in rows:
        how = f"{row.state}, {row.decoded} tokens decoded" if row.pid else row.state
        shell.screen.write(f"%{row.job}  ", "dim")
        shell.screen.line(f"{row.command}: {how}")


def _row(shell: Session, job: Job) -> JobRow:
    if isinstance(job, Answer):
        info = shell.info(job.pid)
        return JobRow(job.number, ps.state(info), job.pid, info.usage.decoded, job.source)
    return JobRow(job.number, "stopped" if job.stopped else "running", 0, 0, job.source)


def _job(shell: Session, line: Line) -> Job:
    """The job that a line means. Raises ESRCH; of an agent that another shell has stopped with what to do instead."""
    word = line.text("JOB")
    try:
        return shell.jobs.find(word)
    except SyscallError as error:
        stopped = [name for name in stopped_agents(shell) if word in ("", "%", "%%", "%+", name)]
        if error.errno is not Errno.ESRCH or not stopped:
            raise
        them = ", ".join(stopped)
        reason = f"{error.reason}; stopped before this shell: {them}; `cont {stopped[0]}` lets it go on, `cat -f` follows"
        raise SyscallError(Errno.ESRCH, reason) from None


@does("fg")
def _fg(shell: Session, line: Line) -> int:
    job = _job(shell, line)
    if not shell.main:
        raise UsageError("fg: a job goes to the foreground at the prompt, not in a pipeline")
    if isinstance(job, Answer):
        resume(shell, job)
        return 0
    shell.screen.line(job.source, "dim")
    return foreground(shell, job, lambda: job.go_on(foreground=True))


@does("bg")
def _bg(shell: Session, line: Line) -> None:
    job = _job(shell, line)
    if isinstance(job, Answer):
        if job.out is not None:
            reason = f"the rest of what {job.name} says goes to a file, which this shell writes; `fg` goes on with it"
            raise SyscallError(Errno.ENOTSUP, reason)
        shell.kernel(Kill(job.pid, Signal.CONT))
        job.stopped = False
    else:
        job.go_on(foreground=False)
    shell.screen.line(f"{job.source} goes on in the background", "dim")


@does("disown")
def _disown(shell: Session, line: Line) -> int:
    if not line.words:
        line.words.append("")
    return each(shell, line, lambda word: _disowned(shell, word))


def _disowned(shell: Session, word: str) -> None:
    if word.startswith("%") or not word:
        job = shell.jobs.find(word)
        if not isinstance(job, Answer):
            reason = f"job %{job.number} is carried by this shell, and ends with it; disown its agents, by pid or name"
            raise SyscallError(Errno.ENOTSUP, reason)
        pid = job.pid
    else:
        pid = shell.pid(word, agent=True)
    shell.agent(pid).detach()
    shell.jobs.forget_answer(pid)


# --- repeating, reading ---------------------------------------------------------------------------------------------


@does("watch")
def _watch(shell: Session, line: Line) -> int:
    seconds = line.decimal("-n", WATCH_SECONDS, least=WATCH_LEAST)
    count = line.integer("--count", 0, least=1)
    # As watch(1): one word is a line of its own, several are words.
    text = line.words[0] if len(line.words) == 1 else shlex.join(line.words)
    done = 0
    try:
        while True:
            if shell.screen.terminal:
                shell.screen.clear()
                shell.screen.line(f"every {seconds:g} s: {text}   (Ctrl-C ends)", "dim")
            status = execute(shell, text)
            done += 1
            if shell.status is not None or done == count or (status and shell.outage.gone):
                return status
            if status == INTERRUPTED:
                return 0 if shell.interactive else status
            time.sleep(seconds)
            if shell.job is not None and shell.job.interrupted:
                return status
    except KeyboardInterrupt:
        shell.screen.line()
        if not shell.interactive:
            raise
        return 0


@does("source")
def _source(shell: Session, line: Line) -> int:
    before = shell.variables.arguments
    script, number = shell.script, shell.line
    shell.script = line.text("FILE")
    if line.words:
        shell.variables.arguments = line.words
    try:
        with opened(line.text("FILE"), "<") as file:
            return run_lines(shell, file, leaves=True, tested=shell.tested)
    finally:
        shell.variables.arguments = before
        shell.script, shell.line = script, number


@does("history")
def _history(shell: Session, line: Line) -> None:
    lines = shell.history()
    shown = line.integer("N", SHOWN_LINES, least=1)
    for number, text in list(enumerate(lines, 1))[-shown:]:
        shell.screen.write(f"{number:>6}  ", "dim")
        shell.screen.line(text.replace("\n", "\n        "))


# --- names ----------------------------------------------------------------------------------------------------------


@does("alias")
def _alias(shell: Session, line: Line) -> int:
    aliases = shell.variables.aliases
    if not line.words:
        for name in sorted(aliases):
            shell.screen.line(f"alias {name}={shlex.quote(aliases[name])}")
    for word in line.words:
        name, equals, value = word.partition("=")
        if equals:
            if not name or not name.replace("-", "").replace("_", "").isalnum():
                raise UsageError(f"an alias is letters, digits, `-` and `_`, found {name!r}; `alias NAME='COMMAND'`")
            aliases[name] = value
        elif name in aliases:
            shell.screen.line(f"alias {name}={shlex.quote(aliases[name])}")
        else:
            raise UsageError(f"there is no alias {name!r}; `alias` lists them")
    return 0


@does("unalias")
def _unalias(shell: Session, line: Line) -> None:
    for name in line.words:
        if shell.variables.aliases.pop(name, None) is None:
            raise UsageError(f"there is no alias {name!r}; `alias` lists them")

"""The commands of the shell itself: jobs fg bg disown history watch source alias unalias set unset export shift
break continue return echo true false."""

from __future__ import annotations

import shlex
import time

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Signal
from llmasos.syscalls.table import Kill
from llmasos.userland.programs import ps
from llmasos.userland.shell.evaluate import Left, execute, foreground
from llmasos.userland.shell.files import opened
from llmasos.userland.shell.grammar import Line, UsageError
from llmasos.userland.shell.jobs import Answer
from llmasos.userland.shell.listening import resume
from llmasos.userland.shell.script import run_lines
from llmasos.userland.shell.session import INTERRUPTED, Session, does
from llmasos.userland.shell.variables import NAMES, SWITCHES

WATCH_SECONDS, WATCH_LEAST = 2.0, 0.1
SHOWN_LINES = 50  # of the history

# --- jobs -----------------------------------------------------------------------------------------------------------


@does("jobs")
def _jobs(shell: Session, line: Line) -> None:
    for text in shell.finished_jobs():
        shell.screen.line(text)
    for job in shell.jobs:
        if isinstance(job, Answer):
            info = shell.info(job.pid)
            how = f"{ps.state(info)}, {info.usage.decoded} tokens decoded"
        else:
            how = "stopped" if job.stopped else "running"
        shell.screen.write(f"%{job.number}  ", "dim")
        shell.screen.line(f"{job.source}: {how}")


@does("fg")
def _fg(shell: Session, line: Line) -> int:
    job = shell.jobs.find(line.text("JOB"))
    if not shell.main:
        raise UsageError("fg: a job goes to the foreground at the prompt, not in a pipeline")
    if isinstance(job, Answer):
        resume(shell, job)
        return 0
    shell.screen.line(job.source, "dim")
    job.go_on(foreground=True)
    return foreground(shell, job)


@does("bg")
def _bg(shell: Session, line: Line) -> None:
    job = shell.jobs.find(line.text("JOB"))
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
def _disown(shell: Session, line: Line) -> None:
    word = line.text("PID")
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
    if line.words:
        shell.variables.arguments = line.words
    try:
        with opened(line.text("FILE"), "<") as file:
            return run_lines(shell, file, leaves=True)
    finally:
        shell.variables.arguments = before


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


@does("set")
def _set(shell: Session, line: Line) -> None:
    """`set -e`, `set +e`, `set -o pipefail`, `set -- a b`; alone, the variables."""
    words = list(line.words)
    variables = shell.variables
    if not words:
        for name in sorted(variables.values):
            shell.screen.line(f"{name}={shlex.quote(variables.values[name])}")
    while words:
        word = words.pop(0)
        if word == "--":
            variables.arguments, words = words, []
        elif word in ("-o", "+o"):
            if not words:
                for name in NAMES:
                    shell.screen.line(f"{name:<10} {'on' if name in variables.switches else 'off'}")
                return
            _switch(shell, words.pop(0), on=word == "-o")
        elif word[:1] in ("-", "+") and len(word) > 1:
            for letter in word[1:]:
                _switch(shell, SWITCHES.get(letter, letter), on=word[0] == "-")
        else:
            raise UsageError(f"set takes -e, -x, -o pipefail, + for - to take one back, or -- WORDS; found {word!r}")


def _switch(shell: Session, name: str, *, on: bool) -> None:
    if name not in NAMES:
        raise UsageError(f"set has no switch {name!r}; there are {', '.join(NAMES)}")
    (shell.variables.switches.add if on else shell.variables.switches.discard)(name)


@does("unset")
def _unset(shell: Session, line: Line) -> None:
    for name in line.words:
        shell.variables.values.pop(name, None)
        shell.variables.exported.discard(name)
        shell.variables.functions.pop(name, None)


@does("export")
def _export(shell: Session, line: Line) -> None:
    for word in line.words:
        name, equals, value = word.partition("=")
        if not name.isidentifier():
            raise UsageError(f"a variable is letters, digits and `_`, found {name!r}")
        if equals:
            shell.variables.values[name] = value
        shell.variables.exported.add(name)


@does("shift")
def _shift(shell: Session, line: Line) -> None:
    count = line.integer("N", 1, least=0)
    if count > len(shell.variables.arguments):
        raise UsageError(f"shift: there are {len(shell.variables.arguments)} arguments, found {count}")
    del shell.variables.arguments[:count]


# --- flow -----------------------------------------------------------------------------------------------------------


@does("break")
def _break(shell: Session, line: Line) -> None:
    raise Left("break", line.integer("N", 1, least=1))


@does("continue")
def _continue(shell: Session, line: Line) -> None:
    raise Left("continue", line.integer("N", 1, least=1))


@does("return")
def _return(shell: Session, line: Line) -> None:
    raise Left("return", line.integer("STATUS", shell.variables.status, least=0))


@does("echo")
def _echo(shell: Session, line: Line) -> None:
    words = list(line.words)
    end = "\n"
    if words[:1] == ["-n"]:
        words, end = words[1:], ""
    shell.screen.write(" ".join(words) + end)


@does("true")
def _true(shell: Session, line: Line) -> None:
    pass


@does("false")
def _false(shell: Session, line: Line) -> int:
    return 1

"""The interpreter: carries out the records of tree.py, as the POSIX shell does.

A foreground command of this shell runs in the main thread, where Ctrl-C reaches it as KeyboardInterrupt. The members of a
pipeline run in threads, joined by pipes of the operating system; there Ctrl-C becomes SIGINT to the job's agents and
programs. A status is 0 for success, 1 for an error of a call, 2 for a wrong line, 127 and 126 for a program that is not
there or cannot run, 128 + a signal's number.
"""

from __future__ import annotations

import glob
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from functools import partial
from itertools import pairwise
from typing import TextIO

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Signal
from llmasos.syscalls.table import StatsCall
from llmasos.userland.programs.figures import duration, number
from llmasos.userland.programs.screen import Unwritable
from llmasos.userland.shell import directory, expansion, files, hosts, meaning, pipes, syntax
from llmasos.userland.shell.grammar import Argument, UsageError, line_of, status_of
from llmasos.userland.shell.jobs import Pipeline as Job
from llmasos.userland.shell.scanner import ASSIGNMENT
from llmasos.userland.shell.session import DO, INTERRUPTED, Session
from llmasos.userland.shell.tree import (
    AndOr,
    Case,
    For,
    Function,
    Group,
    If,
    Node,
    Pipeline,
    Redirect,
    Script,
    Simple,
    Substitution,
    While,
    Word,
)
from llmasos.userland.shell.tty import Interrupted, Suspended
from llmasos.userland.shell.words import COMMANDS

BROKEN_PIPE = 141  # 128 + SIGPIPE
STOPPED = 128 + signal.SIGTSTP
MAX_DEPTH = 50  # of functions that call functions, and of substitutions
_local = threading.local()


class Ended(Exception):
    """The shell, or subshell, ends; its `status` says how."""


class CutOff(Interrupted):
    """The kernel has gone for good: a line at the prompt ends, and the shell stays. As Ctrl-C, it ends loops."""


class Left(Exception):
    """`break` and `continue` leave `levels` loops; `return` leaves a function, or a file that is read."""

    def __init__(self, how: str, amount: int) -> None:
        super().__init__(f"{how} outside of what it leaves")
        self.how, self.amount = how, amount


# --- whole texts ----------------------------------------------------------------------------------------------------


def execute(shell: Session, text: str, *, whole_text: bool = False, returns: bool = False, tested: bool = False) -> int:
    """Run a script. Errors are printed and counted, never raised. Returns the status of the last command. `whole_text`:
    free text in it goes on to its end (a text that was pasted). With `returns`, `return` raises Left. `tested`: its
    status is looked at."""
    try:
        tree = syntax.read(text, COMMANDS, shell.variables.aliases, whole_text=whole_text, first_line=shell.line)
        status = run(shell, tree, tested=tested)
    except SyscallError as error:  # of the reader: nothing has run
        status = failed(shell, error)
        shell.failures += 1
        _leave_by_errexit(shell, status)
    except RecursionError:
        status = failed(shell, UsageError("the script calls itself too deeply"))
        shell.failures += 1
    except Ended:
        return shell.status or 0
    except Left as left:
        if returns and left.how == "return":
            raise
        shell.screen.error(f"EINVAL: {left.how}: there is nothing here to leave")
        status = 2
        shell.failures += 1
    except Suspended:
        status = STOPPED
    except CutOff:  # its error is printed
        shell.outage.cut += 1
        status = 1
        shell.failures += 1
    except KeyboardInterrupt as interrupt:
        if not isinstance(interrupt, Interrupted) and shell.screen.terminal:
            shell.screen.line()
        status = INTERRUPTED
        shell.failures += 1
        if not shell.interactive:
            shell.status = INTERRUPTED
    except BrokenPipeError:
        shell.status = status = 1
        shell.failures += 1
    shell.variables.status = status
    return status


def leave(shell: Session, status: int) -> int:
    """The shell, or a subshell, ends: run what `trap ... EXIT` says, which may end it with another status."""
    text = shell.variables.traps.pop("EXIT", "")
    if text:
        shell.variables.status = status
        ended, shell.status = shell.status, None
        execute(shell, text)
        status = status if shell.status is None else shell.status
        shell.status = ended if shell.status is None else shell.status
    return status


def interrupted(shell: Session) -> bool:
    """After Ctrl-C: run what `trap ... INT` says; False if it says nothing."""
    if not shell.main or "INT" not in shell.variables.traps:
        return False
    shell.variables.status = INTERRUPTED
    execute(shell, shell.variables.traps["INT"])
    return True


def heed(shell: Session) -> None:
    """Have SIGINT ignored, or not, as `trap` says; programs that are started from here on too."""
    if shell.main:
        ignored = shell.variables.traps.get("INT") == ""
        signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)


def _leave_by_errexit(shell: Session, status: int) -> None:
    if "errexit" in shell.variables.switches and shell.status is None:
        shell.status = status


def failed(shell: Session, error: SyscallError) -> int:
    """Print an error; returns the status that it is. If the kernel has gone, a script ends; somebody's shell stays."""
    if not (isinstance(error, Unwritable) and error.told):
        shell.complain(error)
    if isinstance(error, expansion.Unset) and not shell.interactive:
        shell.status = 1
    if error.errno is Errno.EPIPE and not shell.alive():
        if shell.interactive:
            shell.outage.lost()
        else:
            shell.status = 1
    return status_of(error)


# --- lists ----------------------------------------------------------------------------------------------------------


def run(shell: Session, script: Script, *, tested: bool = False) -> int:
    """Run a script. `tested`: its status is looked at, so a failure is no failure. Raises Ended, Left."""
    status = 0
    for item in script.items:
        status = _in_background(shell, item) if item.background else _item(shell, item, tested=tested)
        shell.variables.status = status
        if shell.status is not None:
            raise Ended
    return status


def _item(shell: Session, item: AndOr, *, tested: bool) -> int:
    status = _pipeline(shell, item.first, tested=tested or bool(item.rest))
    for position, (operator, pipeline) in enumerate(item.rest, 1):
        shell.variables.status = status
        if (status == 0) == (operator == "&&"):
            status = _pipeline(shell, pipeline, tested=tested or position < len(item.rest))
    return status


def _in_background(shell: Session, item: AndOr) -> int:
    """`... &`: an answer goes on by itself; everything else is carried by a thread of this shell."""
    members = item.first.members
    alone = members[0] if len(members) == 1 and not item.rest and not item.first.timed else None
    if isinstance(alone, Simple) and _form(alone) is not None:
        return _counted(shell, lambda: _simple(shell, alone, background=True), tested=False)
    job = _new_job(shell, _source(item), foreground=False)
    view = shell.subshell()
    view.job = job
    statuses: list[int] = []

    def act() -> None:
        directory.own()
        statuses.append(leave(view, _guarded(view, lambda: _item(view, item, tested=True))))

    shell.jobs.add(job)
    job.begin([threading.Thread(target=act, name="llmasos-job", daemon=True)], lambda: statuses[0])
    shell.variables.last = f"%{job.number}"
    if shell.interactive:
        shell.remark(f"%{job.number} {job.source}: in the background, carried by this shell; it ends with it")
    return 0


def _form(simple: Simple) -> bool | None:
    """True if a command can answer in the background by itself."""
    name = simple.words[0].plain if simple.words and not simple.host else None
    form = COMMANDS.get(name) if name else None
    return True if form is not None and form.background else None


def _source(item: AndOr) -> str:
    def of(pipeline: Pipeline) -> str:
        return " | ".join(
            member.source if isinstance(member, Simple) else type(member).__name__.lower() for member in pipeline.members
        )

    return " ".join([of(item.first), *(f"{operator} {of(pipeline)}" for operator, pipeline in item.rest)])


# --- pipelines ------------------------------------------------------------------------------------------------------


def _pipeline(shell: Session, pipeline: Pipeline, *, tested: bool) -> int:
    def carried_out() -> int:
        with _timed(shell) if pipeline.timed else ExitStack():
            if len(pipeline.members) == 1:
                return _node(shell, pipeline.members[0], tested=tested or pipeline.negated)
            return _members(shell, pipeline)

    compound = len(pipeline.members) == 1 and not isinstance(pipeline.members[0], Simple)
    tested = tested or pipeline.negated
    status = _counted(shell, carried_out, tested=tested, compound=compound)
    return int(status == 0) if pipeline.negated else status


def _counted(shell: Session, act: Callable[[], int], *, tested: bool, compound: bool = False) -> int:
    """Run a command; its error is printed, and counts as a failure unless it is tested. The commands within a `compound`
    one have been counted already; only its own error, such as that of a redirection, is."""
    try:
        status = act()
        tested = tested or compound
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        if not interrupted(shell):
            raise
        status = INTERRUPTED
    except SyscallError as error:
        status = _told(shell, error)
    except OSError as error:
        status = failed(shell, SyscallError(Errno.EIO, f"{error.filename or 'a stream'}: {error.strerror or error}"))
    if status and not tested:
        shell.failures += 1
        _leave_by_errexit(shell, status)
    return status


def _told(shell: Session, error: SyscallError) -> int:
    """Print the error of a command; returns the status that it is. Raises CutOff if the kernel has gone."""
    status = failed(shell, error)
    if shell.outage.gone and error.errno is Errno.EPIPE:
        raise CutOff from None
    return status


@contextmanager
def _timed(shell: Session) -> Iterator[None]:
    """`time`: the seconds that it took, and the tokens that were decoded meanwhile, by whichever process."""
    began, before = time.monotonic(), shell.kernel(StatsCall()).tokens_decoded
    try:
        yield
    finally:
        took = time.monotonic() - began
        decoded = shell.kernel(StatsCall()).tokens_decoded - before
        shell.screen.note(f"real {duration(took)}, {number(decoded)} tokens decoded in the system")


def _new_job(shell: Session, source: str, *, foreground: bool) -> Job:
    shell.jobs.sweep(shell.kernel)
    job = Job(shell.kernel, shell.jobs.free(), source, shell.terminal if shell.main else None)
    if not foreground:
        job.background()
    return job


def _members(shell: Session, pipeline: Pipeline) -> int:
    """The members of a pipeline, at once. Raises KeyboardInterrupt, after all have ended."""
    if shell.job is None and shell.input is None and all(_idles(member) for member in pipeline.members):
        return _linked(shell, pipeline)
    statuses = [0] * len(pipeline.members)
    job = shell.job or _new_job(shell, _source(AndOr(pipeline)), foreground=True)
    views = _joined(shell, job, len(pipeline.members))

    def act(position: int) -> None:
        view = views[position]
        directory.own()
        statuses[position] = leave(view, _guarded(view, lambda: _node(view, pipeline.members[position], tested=True)))
        pipes.close(
            view.screen.out if position < len(views) - 1 else None,
            view.input if position > 0 else None,
        )

    def result() -> int:
        if "pipefail" in shell.variables.switches:
            return next((status for status in reversed(statuses) if status), 0)
        return statuses[-1]

    threads = [
        threading.Thread(target=act, args=(position,), name="llmasos-pipe", daemon=True) for position in range(len(views))
    ]
    if shell.job is not None:  # within another job, in a thread of it
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return result()
    job.begin(threads, result)
    return foreground(shell, job)


def _idles(member: Node) -> bool:
    """Whether a member of a pipeline is an agent with nothing to say yet."""
    plain = isinstance(member, Simple) and member.text is None and not member.redirects and not member.host
    return plain and isinstance(member, Simple) and bool(member.words) and member.words[0].plain == "spawn"


def _linked(shell: Session, pipeline: Pipeline) -> int:
    """`spawn a | spawn b`: agents each of which will be told what the one before it says, as a job in the background."""
    from llmasos.userland.shell.carrying import carry  # late: commands stand above the interpreter

    job = _new_job(shell, _source(AndOr(pipeline)), foreground=False)
    view = shell.view()
    view.job = job
    agents = []
    for member in pipeline.members:
        status = _node(view, member, tested=True)
        if status:
            return status
        agents.append(shell.agent(int(shell.variables.last)))
    threads = [
        threading.Thread(
            target=partial(carry, view, first, second, last=second is agents[-1]), name="llmasos-carry", daemon=True
        )
        for first, second in pairwise(agents)
    ]
    shell.jobs.add(job)
    job.begin(threads, lambda: 0)
    shell.variables.last = f"%{job.number}"
    shell.remark(
        f"%{job.number} what each says is told to the next, carried by this shell: it ends with the shell, and by "
        f"`kill %{job.number}`; `say {agents[0].pid} ...` begins"
    )
    return 0


def _joined(shell: Session, job: Job, count: int) -> list[Session]:
    """Views for the members of a pipeline, with pipes between them."""
    views: list[Session] = []
    given = shell.input
    for position in range(count):
        view = shell.subshell()
        view.job, view.input = job, given
        if position < count - 1:
            given, out = pipes.pipe()
            view.redirected(out)
        views.append(view)
    return views


def _guarded(view: Session, act: Callable[[], int]) -> int:
    """Carry out what a thread is for; whatever ends it becomes a status."""
    try:
        return act()
    except BrokenPipeError:
        return BROKEN_PIPE
    except SyscallError as error:
        return failed(view, error)
    except Ended:
        return view.status or 0
    except Left as left:
        return left.amount if left.how == "return" else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # nobody else sees what a thread raises
        view.screen.error(f"EIO: {type(error).__name__}: {error}")
        return 1


def foreground(shell: Session, job: Job) -> int:
    """Wait for a job; returns its status, or STOPPED if it has been stopped. Ctrl-C interrupts all its members. Raises
    KeyboardInterrupt, after they have ended."""
    while True:
        try:
            with shell.terminal.suspendable() if shell.terminal is not None else ExitStack():
                job.changed.wait()
        except KeyboardInterrupt:
            job.signal(Signal.INT)
            continue
        except Suspended:
            pass
        if job.interrupted and not job.done and not job.stopped:
            job.signal(Signal.INT)  # a program of the host had the terminal, and Ctrl-C
            job.changed.clear()
            if not job.done:
                continue
        break
    job.background()
    if not job.done:
        job.stop()
        shell.jobs.add(job)
        shell.screen.line()
        shell.screen.line(
            f"%{job.number} {job.source}: stopped; `fg` goes on, `bg` lets it go on in the background", "dim"
        )
        return STOPPED
    shell.jobs.remove(job)
    if job.interrupted:
        raise KeyboardInterrupt
    return job.status


# --- commands -------------------------------------------------------------------------------------------------------


def _node(shell: Session, node: Node, *, tested: bool) -> int:
    match node:
        case Simple():
            return _simple(shell, node, tested=tested)
        case Function():
            if node.name in COMMANDS:
                raise UsageError(f"{node.name!r} is a command of the shell; give the function another name")
            shell.variables.functions[node.name] = node.body
            return 0
    with ExitStack() as stack:
        if node.redirects:
            shell = _redirected(shell, node.redirects, stack)
        match node:
            case If():
                return _if(shell, node, tested=tested)
            case While():
                return _while(shell, node, tested=tested)
            case For():
                return _for(shell, node, tested=tested)
            case Case():
                return _case(shell, node, tested=tested)
            case Group():
                return _group(shell, node, tested=tested)


def _if(shell: Session, node: If, *, tested: bool) -> int:
    for condition, body in node.branches:
        if run(shell, condition, tested=True) == 0:
            return run(shell, body, tested=tested)
    return run(shell, node.otherwise, tested=tested) if node.otherwise is not None else 0


def _while(shell: Session, node: While, *, tested: bool) -> int:
    def turns() -> Iterator[None]:
        while (run(shell, node.condition, tested=True) == 0) is not node.until:
            yield

    return _loop(shell, node.body, turns(), tested=tested)


def _for(shell: Session, node: For, *, tested: bool) -> int:
    values = list(shell.variables.arguments) if node.words is None else _values(shell, node.words)

    def turns() -> Iterator[None]:
        for value in values:
            shell.variables.values[node.name] = value
            yield

    return _loop(shell, node.body, turns(), tested=tested)


def _loop(shell: Session, body: Script, turns: Iterator[None], *, tested: bool) -> int:
    """Run a body once for each turn."""
    status = 0
    for _ in turns:
        _check(shell)
        try:
            status = run(shell, body, tested=tested)
        except Left as left:
            if not _goes_on(left):
                break
    return status


def _case(shell: Session, node: Case, *, tested: bool) -> int:
    output = _output(shell)
    value = expansion.text(shell.variables, node.word, output)
    for patterns, body in node.clauses:
        if any(fnmatchcase(value, expansion.pattern(shell.variables, one, output)) for one in patterns):
            return run(shell, body, tested=tested)
    return 0


def _values(shell: Session, words: list[Word]) -> list[str]:
    """What `for` goes through: a pattern stands for the files that match it, else for the agents whose names do."""
    values: list[str] = []
    for argument in [argument for word in words for argument in _arguments(shell, word)]:
        found = sorted(glob.glob(argument.pattern)) if argument.pattern else []
        if argument.pattern and not found and "/" not in argument.pattern:
            found = [name for name in dict.fromkeys(meaning.names(shell)) if fnmatchcase(name, argument.pattern)]
        values += found or [argument.text]
    return values


def _goes_on(left: Left) -> bool:
    """Whether the loop goes on after `break` or `continue` in its body. Raises what is meant for an outer one."""
    if left.how == "return":
        raise left
    if left.amount > 1:
        raise Left(left.how, left.amount - 1)
    return left.how == "continue"


def _check(shell: Session) -> None:
    """A loop in a job ends with the job."""
    if shell.job is not None and shell.job.interrupted:
        raise KeyboardInterrupt


def _group(shell: Session, node: Group, *, tested: bool) -> int:
    if not node.apart:
        return run(shell, node.body, tested=tested)
    return _apart(shell, shell.subshell(), node.body, tested=tested)


def _apart(shell: Session, inner: Session, script: Script, *, tested: bool) -> int:
    """Run a script in a subshell of this thread."""
    inner.main = shell.main
    try:
        with directory.kept():
            try:
                status = run(inner, script, tested=tested)
            except Ended:
                status = inner.status or 0
            return leave(inner, status)
    finally:
        if "INT" in inner.variables.traps:
            heed(shell)


def _simple(shell: Session, simple: Simple, *, background: bool = False, tested: bool = False) -> int:
    """A simple command. Raises SyscallError and whatever the command raises."""
    shell.line = simple.line
    with ExitStack() as stack:
        view = _redirected(shell, simple.redirects, stack) if simple.redirects else shell
        try:
            return _carried_out(shell, view, simple, background=background, tested=tested)
        except Unwritable:  # the file of a redirection says so when it is closed
            raise
        except SyscallError as error:
            return _told(view, error)


def _carried_out(shell: Session, view: Session, simple: Simple, *, background: bool, tested: bool) -> int:
    words = [argument for word in simple.words for argument in _arguments(view, word, whole=_declared(simple, word))]
    given = [(name, expansion.text(shell.variables, word, _output(view))) for name, word in simple.assignments]
    if not words:
        shell.variables.values.update(given)
        return _substituted(simple) and shell.variables.status
    text = None if simple.text is None else expansion.text(shell.variables, simple.text, _output(view))
    if "xtrace" in shell.variables.switches:
        shown = [word.text for word in words] + ([] if text is None else [text])
        view.screen.error("+ " + " ".join(shown))
    name = words[0].text
    if not simple.host and name in shell.variables.functions:
        return _call(view, shell.variables.functions[name], words[1:], given, tested=tested)
    if not simple.host and name in COMMANDS:
        with _assigned(shell, given):
            return _command(view, name, words[1:], text, background=background, tested=tested)
    return _program(view, words, dict(given), host=simple.host)


def _declared(simple: Simple, word: Word) -> bool:
    """Whether a word sets a variable, as in `local x=$y`: then it is not split."""
    return simple.words[0].plain in ("local", "export", "alias") and ASSIGNMENT.match(word.source) is not None


def _substituted(simple: Simple) -> bool:
    """Whether `$?` of an assignment is that of a `$(...)` in it."""
    return any(isinstance(part, Substitution) for _, word in simple.assignments for part in word.parts)


def _call(shell: Session, body: Node, words: list[Argument], given: list[tuple[str, str]], *, tested: bool) -> int:
    """Call a function: with arguments of its own, and the shell's variables."""
    depth = getattr(_local, "depth", 0)
    if depth >= MAX_DEPTH:
        raise UsageError(
            f"functions call each other more than {MAX_DEPTH} deep; a function that calls itself needs an end"
        )
    before, shell.variables.arguments = shell.variables.arguments, [word.text for word in words]
    shell.variables.scopes.append({})
    _local.depth = depth + 1
    try:
        with _assigned(shell, given):
            return _node(shell, body, tested=tested)
    except Left as left:
        if left.how != "return":
            raise
        return left.amount
    finally:
        shell.variables.put_back(shell.variables.scopes.pop())
        shell.variables.arguments = before
        _local.depth = depth


@contextmanager
def _assigned(shell: Session, given: list[tuple[str, str]]) -> Iterator[None]:
    """`NAME=VALUE command`: for that command alone."""
    values = shell.variables.values
    before = {name: values.get(name) for name, _ in given}
    values.update(given)
    try:
        yield
    finally:
        shell.variables.put_back(before)


def _command(
    shell: Session, name: str, words: list[Argument], text: str | None, *, background: bool, tested: bool
) -> int:
    """A command of this shell; one whose pid is a pattern is carried out for each process that matches."""
    form = COMMANDS[name]
    piped = shell.input is not None
    status = 0
    for chosen in meaning.each_of(shell, name, words):
        line = line_of(form, chosen, text, background=background, piped=piped)
        shell.tested = tested
        status = DO[name](shell, line) or 0
    return status


def _program(shell: Session, words: list[Argument], given: dict[str, str], *, host: bool) -> int:
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
    job = _new_job(shell, " ".join(argv), foreground=True)
    view = shell.view()
    view.job = job
    statuses: list[int] = []

    def act() -> None:
        statuses.append(_guarded(view, lambda: _guarded_program(view, path, argv, given)))

    shell.terminal.restore() if shell.terminal is not None else None
    job.begin([threading.Thread(target=act, name="llmasos-program", daemon=True)], lambda: statuses[0])
    return foreground(shell, job)


def _guarded_program(shell: Session, path: str, argv: list[str], given: dict[str, str]) -> int:
    try:
        return hosts.run(shell, path, argv, given)
    except SyscallError as error:
        shell.complain(error)
        return hosts.NOT_EXECUTABLE


# --- words, streams -------------------------------------------------------------------------------------------------


def _arguments(shell: Session, word: Word, *, whole: bool = False) -> list[Argument]:
    if whole:
        return [Argument(expansion.text(shell.variables, word, _output(shell)), quoted=True)]
    return expansion.arguments(shell.variables, word, _output(shell))


def _output(shell: Session) -> expansion.Output:
    """What runs the `$(...)` of a command."""

    def output(script: Script) -> str:
        depth = getattr(_local, "depth", 0)
        if depth >= MAX_DEPTH:
            raise UsageError(f"$(...) stands within itself more than {MAX_DEPTH} deep")
        inner = shell.subshell()
        reading, writing = pipes.pipe()
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.append(_heard(reading)), name="llmasos-output", daemon=True)
        reader.start()
        inner.redirected(writing)
        _local.depth = depth + 1
        try:
            shell.variables.status = _apart(shell, inner, script, tested=True)
        finally:
            _local.depth = depth
            pipes.close(writing)
            reader.join()
        if len(said[0]) > pipes.MAX_TEXT:
            raise SyscallError(Errno.E2BIG, f"$(...) keeps {pipes.MAX_TEXT >> 20} MiB; this printed more")
        return said[0]

    return output


def _heard(reading: TextIO) -> str:
    with reading:
        return reading.read(pipes.MAX_TEXT + 1)


def _redirected(shell: Session, redirects: list[Redirect], stack: ExitStack) -> Session:
    """A view with the streams that `redirects` name, which `stack` closes."""
    view = shell.view()
    for redirect in redirects:
        if redirect.operator == "2>&1":
            view.redirected(err=view.screen.out)
            continue
        if redirect.operator == ">&2":
            view.redirected(view.screen.err)
            continue
        said = expansion.text(shell.variables, redirect.target, _output(shell))
        if redirect.operator in ("<<<", "<<"):
            stream = pipes.from_text(said + ("\n" if redirect.operator == "<<<" else ""))
        else:
            stream = files.opened(said, redirect.operator)
        if redirect.operator.startswith("2"):
            stack.enter_context(files.closing_errors(said, stream, shell.screen))
        else:
            stack.enter_context(files.closing(said, stream))
        if redirect.operator.startswith("<"):
            view.input = stream
        elif redirect.operator.startswith("2"):
            view.redirected(err=stream)
        else:
            view.redirected(stream, stream if redirect.operator.startswith("&") else None)
    return view

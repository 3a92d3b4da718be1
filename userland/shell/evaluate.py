"""The interpreter: carries out the records of tree.py, as the POSIX shell does.

A foreground command of this shell runs in the main thread, where Ctrl-C reaches it as KeyboardInterrupt. The members of a
pipeline run in threads, joined by pipes of the operating system; there Ctrl-C becomes SIGINT to the job's agents and
programs. A status is 0 for success, 1 for an error of a call, 2 for a wrong line, 127 and 126 for a program that is not
there or cannot run, 128 + a signal's number.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import StatsCall
from llmasos.userland.programs.figures import duration, number
from llmasos.userland.programs.screen import Unwritable
from llmasos.userland.shell import directory, expansion, meaning, pipelines, syntax
from llmasos.userland.shell.failing import (
    MAX_DEPTH,
    STOPPED,
    CutOff,
    Ended,
    Left,
    deeper,
    failed,
    goes_on,
    guarded,
    leave_by_errexit,
    reported,
)
from llmasos.userland.shell.foreground import new_job
from llmasos.userland.shell.grammar import Argument, UsageError, line_of
from llmasos.userland.shell.launch import program
from llmasos.userland.shell.scanner import ASSIGNMENT
from llmasos.userland.shell.session import DO, INTERRUPTED, Session
from llmasos.userland.shell.streams import output_of, redirected
from llmasos.userland.shell.tree import (
    AndOr,
    Case,
    For,
    Function,
    Group,
    If,
    Node,
    Pipeline,
    Script,
    Simple,
    Substitution,
    While,
    Word,
)
from llmasos.userland.shell.tty import Interrupted, Suspended
from llmasos.userland.shell.words import COMMANDS

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
        leave_by_errexit(shell, status)
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
    job = new_job(shell, pipelines.source(item), foreground=False)
    view = shell.subshell()
    view.job = job
    statuses: list[int] = []

    def act() -> None:
        directory.own()
        statuses.append(leave(view, guarded(view, lambda: _item(view, item, tested=True))))

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


def _members(shell: Session, pipeline: Pipeline) -> int:
    def carry_out(view: Session, member: Node) -> int:
        return _node(view, member, tested=True)

    if pipelines.links(shell, pipeline):
        return pipelines.linked(shell, pipeline, carry_out)
    return pipelines.joined(
        shell, pipeline, lambda view, member: leave(view, guarded(view, lambda: carry_out(view, member)))
    )


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
        status = reported(shell, error)
    except OSError as error:
        status = failed(shell, SyscallError(Errno.EIO, f"{error.filename or 'a stream'}: {error.strerror or error}"))
    if status and not tested:
        shell.failures += 1
        leave_by_errexit(shell, status)
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
            shell = redirected(shell, node.redirects, _output(shell), stack)
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
    values = list(shell.variables.arguments)
    if node.words is not None:
        values = meaning.values(shell, [one for word in node.words for one in _arguments(shell, word)])

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
            if not goes_on(left):
                break
    return status


def _case(shell: Session, node: Case, *, tested: bool) -> int:
    output = _output(shell)
    value = expansion.text(shell.variables, node.word, output)
    for patterns, body in node.clauses:
        if any(fnmatchcase(value, expansion.pattern(shell.variables, one, output)) for one in patterns):
            return run(shell, body, tested=tested)
    return 0


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
        view = redirected(shell, simple.redirects, _output(shell), stack) if simple.redirects else shell
        try:
            return _carried_out(shell, view, simple, background=background, tested=tested)
        except Unwritable:  # the file of a redirection says so when it is closed
            raise
        except SyscallError as error:
            return reported(view, error)


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
    return program(view, words, dict(given), host=simple.host)


def _declared(simple: Simple, word: Word) -> bool:
    """Whether a word sets a variable, as in `local x=$y`: then it is not split."""
    return simple.words[0].plain in ("local", "export", "alias") and ASSIGNMENT.match(word.source) is not None


def _substituted(simple: Simple) -> bool:
    """Whether `$?` of an assignment is that of a `$(...)` in it."""
    return any(isinstance(part, Substitution) for _, word in simple.assignments for part in word.parts)


def _call(shell: Session, body: Node, words: list[Argument], given: list[tuple[str, str]], *, tested: bool) -> int:
    """Call a function: with arguments of its own, and the shell's variables."""
    with deeper(f"functions call each other more than {MAX_DEPTH} deep; a function that calls itself needs an end"):
        before, shell.variables.arguments = shell.variables.arguments, [word.text for word in words]
        shell.variables.scopes.append({})
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


# --- words ----------------------------------------------------------------------------------------------------------


def _arguments(shell: Session, word: Word, *, whole: bool = False) -> list[Argument]:
    if whole:
        return [Argument(expansion.text(shell.variables, word, _output(shell)), quoted=True)]
    return expansion.arguments(shell.variables, word, _output(shell))


def _output(shell: Session) -> expansion.Output:
    """What runs the `$(...)` of a command."""
    return output_of(shell, lambda inner, script: _apart(shell, inner, script, tested=True))

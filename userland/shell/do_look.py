"""The commands that look: ps top groups models devices stats uptime dmesg strace trace jobs read help clear."""

from __future__ import annotations

from contextlib import nullcontext

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.limits import MAX_TIMEOUT, MAX_TOKENS_PER_CALL
from llmasos.syscalls.table import BootInfoCall, Read, StatsCall
from llmasos.userland.programs import groups, log, models, ps, strace, system
from llmasos.userland.programs.screen import Screen
from llmasos.userland.shell.grammar import Command, Line, UsageError
from llmasos.userland.shell.session import Session, does
from llmasos.userland.shell.words import COMMANDS, GROUPS
from llmasos.userland.top import main as top


@does("ps")
def _ps(shell: Session, line: Line) -> None:
    if line.has("PID"):
        shell.screen.pairs(ps.details(shell.info(shell.pid(line.text("PID")))))
    else:
        shell.screen.table(ps.table(ps.processes(shell.kernel)))


@does("top")
def _top(shell: Session, line: Line) -> None:
    once = line.has("--once") or not shell.interactive
    if line.has("FILE"):
        if line.has("--record"):
            raise UsageError("top opens a recording or makes one, not both: leave out FILE or --record")
        top.replay(shell.screen, line.text("FILE"), once=once)
        return
    seconds = line.decimal("--seconds", top.SECONDS, least=top.SECONDS_MIN, most=MAX_TIMEOUT)
    top.run(shell.screen, shell.kernel, seconds=seconds, once=once, record=line.text("--record"))


@does("groups")
def _groups(shell: Session, line: Line) -> None:
    shell.screen.table(groups.table(groups.read(shell.kernel, line.text("PATH", "/"))))


@does("models")
def _models(shell: Session, line: Line) -> None:
    asked = models.Asked(
        action=line.text("ACTION"),
        names=line.words,
        found=line.has("--found"),
        as_json=line.has("--json"),
        yes=line.has("--yes"),
        estimate=line.text("--estimate"),
        dtype=line.text("--dtype"),
        device=line.text("--device"),
        context=line.integer("--context", 0, least=1),
    )
    ask = shell.ask_line if shell.interactive else None
    status = models.run(shell.screen, asked, shell.kernel.runtime, lambda: nullcontext(shell.kernel), ask)
    shell.failures += bool(status)


@does("devices")
def _devices(shell: Session, line: Line) -> None:
    shell.screen.table(system.devices(shell.kernel(BootInfoCall()).devices))


@does("stats")
def _stats(shell: Session, line: Line) -> None:
    shell.screen.pairs(system.stats(shell.kernel(StatsCall())))


@does("uptime")
def _uptime(shell: Session, line: Line) -> None:
    shell.screen.line(system.uptime(shell.kernel(BootInfoCall()), shell.kernel(StatsCall())))


@does("dmesg")
def _dmesg(shell: Session, line: Line) -> None:
    if not line.has("-f"):
        log.show(shell.screen, log.read(shell.kernel))
        return
    with until_interrupt(shell):
        log.follow(shell.screen, shell.kernel)


@does("strace")
def _strace(shell: Session, line: Line) -> None:
    word = line.text("PID", "all")
    pid = 0 if word == "all" else shell.pid(word)
    if pid:
        shell.info(pid)  # raises ESRCH now, instead of waiting in silence
    count = line.integer("--count", 0, least=1)
    with until_interrupt(shell):
        strace.follow(shell.screen, shell.kernel, pid, shell.kernel.pid, count=count)


@does("trace")
def _trace(shell: Session, line: Line) -> None:
    count = line.integer("--count", 0, least=1)
    with until_interrupt(shell):
        strace.follow(shell.screen, shell.kernel, 0, shell.kernel.pid, count=count)


@does("jobs")
def _jobs(shell: Session, line: Line) -> None:
    for text in shell.finished_jobs():
        shell.screen.line(text)
    for pid, name in shell.jobs.items():
        info = shell.info(pid)
        shell.screen.line(f"[{pid}] {name}: {ps.state(info)}, {info.usage.decoded} tokens decoded")


@does("read")
def _read(shell: Session, line: Line) -> None:
    limit = line.integer("N", MAX_TOKENS_PER_CALL)
    pid, position = shell.pid(line.text("PID")), line.integer("FROM", 0)
    if position < 0 or limit < 1:
        reason = f"read wants FROM of at least 0 and N of at least 1, found {position} and {limit}"
        raise SyscallError(Errno.EINVAL, reason)
    result = shell.kernel(Read(pid=pid, position=position, limit=limit, timeout=0.0))
    width = shell.screen.width
    row = ""
    at = position
    for number, token in enumerate(result.tokens, start=position):
        if row and 8 + len(row) + len(str(token)) + 1 > width:
            _tokens(shell.screen, at, row)
            row, at = "", number
        row += f" {token}"
    if row:
        _tokens(shell.screen, at, row)


def _tokens(screen: Screen, position: int, row: str) -> None:
    screen.write(f"{position:>6} ", "dim")
    screen.line(row)


@does("clear")
def _clear(shell: Session, line: Line) -> None:
    shell.screen.clear()


@does("help")
def _help(shell: Session, line: Line) -> None:
    name = line.text("COMMAND")
    if not name:
        _overview(shell.screen)
    elif name in COMMANDS:
        _explain(shell.screen, COMMANDS[name])
    else:
        raise SyscallError(Errno.EINVAL, f"there is no command {name!r}; `help` lists them")


def _overview(screen: Screen) -> None:
    width = max(len(name) for name in COMMANDS)
    for title, names in GROUPS:
        screen.line(title, "bold")
        for name in names:
            screen.write(f"  {name.ljust(width)}", "cyan")
            screen.line(f"  {COMMANDS[name].summary}")
    screen.line("`help COMMAND` explains one. `&` at the end of say or spawn leaves the answer to the background.", "dim")
    screen.line("`# ...` behind a command is a comment; behind say and spawn it is part of their text.", "dim")


def _explain(screen: Screen, command: Command) -> None:
    screen.prose(command.usage, "bold cyan", "      ")
    screen.prose(f"  {command.summary[0].upper()}{command.summary[1:]}.", indent="  ")
    if command.details:
        screen.prose(f"  {command.details}", indent="  ")
    for option in command.options:
        form = f"{option.flag} {option.kind.value}" if option.kind else option.flag
        screen.prose(f"  {form:<20} {option.help}", indent=" " * 23)


class until_interrupt:
    """Ctrl-C ends the body, which is no failure of the command. In a script it ends the script."""

    def __init__(self, shell: Session) -> None:
        self._shell = shell

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if kind is KeyboardInterrupt and self._shell.interactive:
            self._shell.screen.line()
            return True
        return False

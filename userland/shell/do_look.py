"""The commands that look: ps top groups models devices stats uptime dmesg strace trace read inventory audit help man
clear."""

from __future__ import annotations

from contextlib import nullcontext

from msgspec.structs import replace

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.limits import MAX_TIMEOUT, MAX_TOKENS_PER_CALL
from llmasos.syscalls.records import ReadResult
from llmasos.syscalls.table import BootInfoCall, Inventory, Read, StatsCall
from llmasos.userland.programs import groups, log, ps, strace, system
from llmasos.userland.programs.listing import Asked, document
from llmasos.userland.programs.screen import Screen
from llmasos.userland.shell import lines, man
from llmasos.userland.shell.grammar import Line, UsageError
from llmasos.userland.shell.pager import paged
from llmasos.userland.shell.session import Session, does


@does("ps")
def _ps(shell: Session, line: Line) -> None:
    if not line.has("PID"):
        _table(shell, line)
        return
    info = shell.info(shell.pid(line.text("PID")))
    if line.has("-o") or line.has("--sort"):
        ps.LISTING.show(shell.screen, [info], Asked.of(line))
    elif line.has("--json"):
        document(shell.screen, info)
    else:
        shell.screen.pairs(ps.details(info))


def _table(shell: Session, line: Line) -> None:
    """The process table. People see agents that have exited if they ask for them, programs (`--json`) always."""
    rows = ps.processes(shell.kernel)
    shown = rows if line.has("--all") or line.has("--json") else [row for row in rows if not ps.exited(row)]
    ps.LISTING.show(shell.screen, shown, Asked.of(line))
    if len(shown) < len(rows):
        shell.remark(ps.not_shown(len(rows) - len(shown)))
    if not line.has("--json") and (others := ps.unseen(shell.kernel, rows)):
        shell.remark(others)


@does("top")
def _top(shell: Session, line: Line) -> None:
    from llmasos.userland.top import main as top  # late: it is large, and most commands are small

    once = line.has("--once") or shell.piped
    if line.has("FILE"):
        if line.has("--record"):
            raise UsageError("top opens a recording or makes one, not both: leave out FILE or --record")
        top.replay(shell.screen, line.text("FILE"), once=once)
        return
    seconds = line.decimal("--seconds", top.SECONDS, least=top.SECONDS_MIN, most=MAX_TIMEOUT)
    top.run(shell.screen, shell.kernel, seconds=seconds, once=once, record=line.text("--record"))


@does("groups")
def _groups(shell: Session, line: Line) -> None:
    groups.LISTING.show(shell.screen, groups.read(shell.kernel, line.text("PATH", "/")), Asked.of(line))


@does("models")
def _models(shell: Session, line: Line) -> int:
    from llmasos.userland.programs import models  # late: it knows the disk, and most commands do not want to

    ask = shell.ask_line if shell.interactive else None
    return models.run(shell.screen, models.request(line), shell.kernel.runtime, lambda: nullcontext(shell.kernel), ask)


@does("inventory")
def _inventory(shell: Session, line: Line) -> None:
    from llmasos.userland.programs import inventory  # late: seldom wanted

    inventory.LISTING.show(shell.screen, shell.kernel(Inventory()), Asked.of(line))


@does("audit")
def _audit(shell: Session, line: Line) -> int:
    from llmasos.userland.programs import audit  # late: seldom wanted

    return audit.run(shell.screen, line, shell.kernel.runtime, lambda: shell.kernel(BootInfoCall()).audit)


@does("devices")
def _devices(shell: Session, line: Line) -> None:
    system.DEVICES.show(shell.screen, shell.kernel(BootInfoCall()).devices, Asked.of(line))


@does("stats")
def _stats(shell: Session, line: Line) -> None:
    counters = shell.kernel(StatsCall())
    if line.has("--json"):
        document(shell.screen, counters)
    else:
        shell.screen.pairs(system.stats(counters))


@does("uptime")
def _uptime(shell: Session, line: Line) -> None:
    boot, counters = shell.kernel(BootInfoCall()), shell.kernel(StatsCall())
    if line.has("--json"):
        devices = {device.name: device.state for device in boot.devices}
        seconds, processes, decoded = counters.uptime, counters.processes, counters.tokens_decoded
        document(
            shell.screen,
            {"uptime": seconds, "processes": processes, "tokens_decoded": decoded, "devices": devices},
        )
    else:
        shell.screen.line(system.uptime(boot, counters))


@does("dmesg")
def _dmesg(shell: Session, line: Line) -> None:
    if not line.has("-f"):
        with paged(shell.screen):
            log.show(shell.screen, log.read(shell.kernel), as_json=line.has("--json"))
        return
    with until_interrupt(shell):
        log.follow(shell.screen, shell.kernel, as_json=line.has("--json"))


@does("strace")
def _strace(shell: Session, line: Line) -> None:
    word = line.text("PID", "all")
    pid = 0 if word == "all" else shell.pid(word)
    if pid:
        shell.info(pid)  # raises ESRCH now, instead of waiting in silence
    count = line.integer("--count", 0, least=1)
    with until_interrupt(shell):
        strace.follow(
            shell.screen,
            shell.kernel,
            pid,
            shell.kernel.pid,
            count=count,
            whole=line.has("-v"),
            as_json=line.has("--json"),
        )


@does("trace")
def _trace(shell: Session, line: Line) -> None:
    count = line.integer("--count", 0, least=1)
    with until_interrupt(shell):
        strace.follow(shell.screen, shell.kernel, 0, shell.kernel.pid, count=count, as_json=line.has("--json"))


def _read_log(shell: Session, pid: int, position: int, limit: int) -> ReadResult:
    """So many tokens, or as many as there are; an answer of the kernel may have fewer."""
    result = shell.kernel(Read(pid=pid, position=position, limit=limit, timeout=0.0))
    tokens = list(result.tokens)
    while result.tokens and len(tokens) < limit and position + len(tokens) < result.length:
        result = shell.kernel(Read(pid=pid, position=position + len(tokens), limit=limit - len(tokens), timeout=0.0))
        tokens += result.tokens
    return replace(result, position=position, tokens=tokens)


@does("read")
def _read(shell: Session, line: Line) -> int:
    if lines.wants_a_line(shell, line):
        return lines.read_line(shell, line)
    if not line.has("PID") or len(line.words) > 2:
        raise UsageError(f"read wants PID FROM N, or NAMES and an input to read a line of. Usage: {line.command.usage}")
    pid = shell.pid(line.text("PID"), agent=True)
    line.values |= dict(zip(("FROM", "N"), line.words, strict=False))
    position, limit = line.integer("FROM", 0), line.integer("N", MAX_TOKENS_PER_CALL)
    if position < 0 or limit < 1:
        reason = f"read wants FROM of at least 0 and N of at least 1, found {position} and {limit}"
        raise SyscallError(Errno.EINVAL, reason)
    result = _read_log(shell, pid, position, limit)
    if line.has("--json"):
        document(shell.screen, result)
        return 0
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
    return 0


def _tokens(screen: Screen, position: int, row: str) -> None:
    screen.write(f"{position:>6} ", "dim")
    screen.line(row)


@does("clear")
def _clear(shell: Session, line: Line) -> None:
    shell.screen.clear()


@does("help")
def _help(shell: Session, line: Line) -> None:
    man.show(shell.screen, man.page(line.text("COMMAND")))


@does("man")
def _man(shell: Session, line: Line) -> None:
    man.show(shell.screen, man.asked(line))


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

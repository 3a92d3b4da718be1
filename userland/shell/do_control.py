"""The commands that control: stop cont kill nice realtime migrate exec fork rename limits group join policy pagein evict
advise run exit halt."""

from __future__ import annotations

import msgspec

from llmasos.modelfiles.called import called
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.limits import MAX_FORK, MIN_BUDGET, MIN_PERIOD, NICE_MAX, NICE_MIN
from llmasos.syscalls.policy_file import changed_since, located_policy, whole_policy
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import Kind, Limits, SchedClass, Signal, State
from llmasos.syscalls.table import (
    Advise,
    BootInfoCall,
    Evict,
    Fork,
    GroupMove,
    GroupRemove,
    Kill,
    Models,
    Rename,
    Sched,
    Setlimits,
    Setsched,
    Shred,
)
from llmasos.userland.programs import groups, ps, system
from llmasos.userland.programs.figures import size
from llmasos.userland.programs.listing import document, plain
from llmasos.userland.programs.power import halt
from llmasos.userland.programs.program import checked
from llmasos.userland.shell.arrival import arrival
from llmasos.userland.shell.grammar import Line, UsageError
from llmasos.userland.shell.jobs import Pipeline
from llmasos.userland.shell.session import Session, does, each


@does("stop")
def _stop(shell: Session, line: Line) -> int:
    return each(shell, line, lambda word: _send(shell, word, Signal.STOP))


@does("cont")
def _cont(shell: Session, line: Line) -> int:
    return each(shell, line, lambda word: _send(shell, word, Signal.CONT))


@does("kill")
def _kill(shell: Session, line: Line) -> int:
    if line.has("-l"):
        for one in Signal:
            shell.screen.line(f"{one.value:>2} {one.name}")
        return 0
    if line.has("--shred"):
        if line.has("-s") or line.has("SIGNAL"):
            raise UsageError("kill takes --shred or a signal, not both")
        return each(shell, line, lambda word: _shred(shell, word))
    signal = signal_named(line.text("-s") or line.text("SIGNAL", "TERM"))
    return each(shell, line, lambda word: _send(shell, word, signal))


def _send(shell: Session, word: str, signal: Signal) -> None:
    """Send a signal to a process, or to all members of a job."""
    job = shell.jobs.find(word) if word.startswith("%") else None
    if isinstance(job, Pipeline):
        job.signal(signal)
    else:
        shell.kernel(Kill(pid=shell.pid(word), signal=signal))


def _shred(shell: Session, word: str) -> None:
    pid = shell.pid(word)
    found = shell.kernel(Shred(pid=pid))
    for title, lines in (("gone", found.gone), ("not reached", found.left)):
        for text in lines:
            shell.screen.line(f"{pid}: {title}: {text}", indent="    ")
    if not found.sure:
        shell.screen.line(
            f"{pid}: not sure: old blocks of the disk may hold a wrapped key, and what unwraps it is, or was, on that "
            "disk too; it is sure where the master key lies elsewhere ([seal] key)",
            indent="    ",
        )


def signal_named(word: str) -> Signal:
    """`9`, `KILL`, `SIGKILL`, `kill`. Raises EINVAL with the list."""
    name = word.upper().removeprefix("SIG")
    if name in Signal.__members__:
        return Signal[name]
    if word.isdigit() and int(word) in {signal.value for signal in Signal}:
        return Signal(int(word))
    known = ", ".join(f"{signal.name} ({signal.value})" for signal in Signal)
    raise UsageError(f"there is no signal {word!r}; there are {known}")


@does("nice")
def _nice(shell: Session, line: Line) -> None:
    if line.has("-n") == line.has("VALUE"):
        raise UsageError("nice needs one value: `nice PID VALUE`, or `nice -n VALUE PID`")
    if not line.has("PID"):
        raise UsageError(f"nice needs PID. Usage: {line.command.usage}")
    value = line.integer("-n" if line.has("-n") else "VALUE", 0)
    if not NICE_MIN <= value <= NICE_MAX:
        raise UsageError(f"a nice value is from {NICE_MIN} (largest share) to {NICE_MAX} (smallest), found {value}")
    shell.kernel(Setsched(pid=shell.pid(line.text("PID")), nice=value))


@does("realtime")
def _realtime(shell: Session, line: Line) -> None:
    if line.has("--off") and (line.has("--budget") or line.has("--period")):
        raise UsageError("realtime: --off takes neither --budget nor --period")
    pid = shell.pid(line.text("PID"), agent=True)
    budget, period = line.decimal("--budget", 0.0, least=MIN_BUDGET), line.decimal("--period", 0.0, least=MIN_PERIOD)
    wanted = SchedClass.FAIR if line.has("--off") else SchedClass.REALTIME
    shell.kernel(Setsched(pid=pid, sched_class=wanted, budget=budget, period=period))


@does("migrate")
def _migrate(shell: Session, line: Line) -> None:
    pid, device = shell.pid(line.text("PID"), agent=True), line.text("DEVICE")
    with arrival(shell):
        shell.kernel(Setsched(pid=pid, device=device))
    info = shell.info(pid)
    if line.has("--json"):
        document(shell.screen, info)
        return
    name = printable(info.name, one_line=True)
    shell.screen.line(f"[{pid}] {name} is on {info.device}: {info.length} tokens, {info.cached} of them cached")


@does("exec")
def _exec(shell: Session, line: Line) -> None:
    agent = shell.agent(shell.pid(line.text("PID"), agent=True))
    with arrival(shell):
        length = agent.exec(line.text("MODEL"), dtype=line.text("--dtype"))
    if line.has("--json"):
        document(shell.screen, shell.info(agent.pid))
        return
    name = printable(shell.info(agent.pid).name, one_line=True)
    model = printable(called(agent.model.name), one_line=True)
    shell.screen.line(f"[{agent.pid}] {name} runs {model} ({agent.model.dtype}): {length} tokens")


@does("fork")
def _fork(shell: Session, line: Line) -> None:
    pid, count = shell.pid(line.text("PID"), agent=True), line.integer("N", 1, least=1, most=MAX_FORK)
    called_so = name_for_a_process(line.text("--name")) if line.has("--name") else ""
    children = shell.kernel(Fork(pid=pid, count=count, detached=shell.lets_live(line), name=called_so))
    rows = [shell.info(child) for child in children]
    for info in rows:
        if info.decoding:
            shell.in_background(info.pid, printable(info.name, one_line=True))
    if line.has("--json"):
        document(shell.screen, rows)
        return
    for info in rows:
        shell.screen.write(f"[{info.pid}]", "bold")
        name = printable(info.name, one_line=True)
        shell.screen.line(f" {name}: copy of {pid}, {info.shared_pages} of {info.pages} pages shared")
    if not called_so:
        shell.screen.line(f"they have one name: say which you mean by its pid, as in `say {children[0]} ...`", "dim")


def name_for_a_process(name: str) -> str:
    """A name that is not taken for a pid, a job or an option. Raises UsageError."""
    if not name or name.isdigit() or name.startswith(("-", "%")):
        raise UsageError(f"a name may not be empty, a number, or begin with `-` or `%`, found {name!r}")
    return name


@does("rename")
def _rename(shell: Session, line: Line) -> None:
    pid = shell.pid(line.text("PID"), agent=True)
    shell.kernel(Rename(pid, name_for_a_process(line.text("NAME"))))


@does("limits")
def _limits(shell: Session, line: Line) -> None:
    pid = shell.pid(line.text("PID"), agent=True)
    now = shell.kernel(Setlimits(pid=pid))
    wanted = msgspec.structs.replace(
        now,
        context=line.integer("--context", now.context, least=0),
        tokens=line.integer("--tokens", now.tokens, least=0),
        pages=line.integer("--pages", now.pages, least=0),
    )
    if wanted != now:
        shell.kernel(Setlimits(pid=pid, limits=wanted))
    notes = _without_effect(shell, pid, wanted)
    if line.has("--json"):
        document(shell.screen, {**plain(wanted), "notes": notes})
        return
    _show(shell, wanted)
    for note in notes:
        shell.screen.line(note, "yellow")


def _without_effect(shell: Session, pid: int, wanted: Limits) -> list[str]:
    """What a limit that is in force does not do, though a person may think so."""
    info = shell.info(pid)
    notes = []
    if 0 < wanted.context <= info.length:
        notes.append(
            f"its log has {info.length} tokens already: they stay, and it takes no more while --context is "
            f"{wanted.context}"
        )
    window = next((m.context for m in shell.kernel(Models()) if info.model in (m.name, m.path) and m.device), 0)
    if 0 < window < wanted.context:
        notes.append(f"its model's window is {window} tokens, and bounds its context before --context {wanted.context}")
    if 0 < wanted.tokens <= info.usage.decoded:
        notes.append(f"it has decoded {info.usage.decoded} tokens already, so it decodes no more")
    if 0 < wanted.pages < info.pages:
        notes.append(f"it maps {info.pages} pages already: they stay, and it maps no more")
    return notes


def _show(shell: Session, wanted: Limits) -> None:
    shell.screen.pairs(
        [
            ("context", f"{wanted.context} tokens" if wanted.context else "the model's"),
            ("tokens", f"{wanted.tokens} decoded" if wanted.tokens else "no limit"),
            ("pages", str(wanted.pages) if wanted.pages else "no limit"),
        ]
    )


@does("group")
def _group(shell: Session, line: Line) -> None:
    path = line.text("PATH")
    if line.has("--remove"):
        if line.words:
            raise UsageError("group: --remove goes without settings")
        shell.kernel(GroupRemove(path))
    else:
        found = groups.change(shell.kernel, path, line.words)
        notes = groups.without_effect(shell.kernel, found.settings) if line.words else []
        if line.has("--json"):
            document(shell.screen, {**plain(found), "notes": notes} if notes else found)
            return
        shell.screen.pairs(groups.details(found))
        for note in notes:
            shell.screen.line(note, "yellow")


@does("join")
def _join(shell: Session, line: Line) -> None:
    shell.kernel(GroupMove(shell.pid(line.text("PID")), line.text("PATH")))


@does("policy")
def _policy(shell: Session, line: Line) -> None:
    policies = shell.kernel(BootInfoCall()).policies

    def named(word: str) -> str:
        return located_policy(whole_policy(line.text(word), policies))

    name = named("NAME")
    if name and ":" not in name and name not in policies:
        raise UsageError(f"there is no policy {name!r}; there are {', '.join(policies)}, and your own: FILE.py:CLASS")
    sched = Sched(
        device=line.text("--device"),
        policy=name,
        max_runs=_at_least_one(line, "--max-runs"),
        step_tokens=_at_least_one(line, "--step-tokens"),
        victims=named("--victims"),
        evictions=named("--evictions"),
    )
    now = shell.kernel(sched)
    notes = [note for one in (name, sched.victims, sched.evictions) if (note := changed_since(one))]
    if line.has("--json"):
        document(shell.screen, {**plain(now), "policies": policies} | ({"notes": notes} if notes else {}))
        return
    shell.screen.pairs(system.scheduling(now, policies))
    for note in notes:
        shell.screen.line(note, "yellow")


def _at_least_one(line: Line, option: str) -> int:
    """The option's value; 0 (no change) if it is not given."""
    try:
        return line.integer(option, 0, least=1)
    except UsageError as error:
        raise UsageError(f"{error.reason}; `policy` alone shows the present values") from None


def _located(shell: Session, line: Line) -> str:
    """The MODEL of a line as the kernel takes it."""
    from llmasos.userland.sdk.options import located  # late: most commands know no models

    return shell.system.run(located(line.text("MODEL")))


@does("pagein")
def _pagein(shell: Session, line: Line) -> None:
    with arrival(shell):
        info = shell.system.load(line.text("MODEL"), line.text("--dtype"), line.text("--device"))
    if line.has("--json"):
        document(shell.screen, info)
        return
    name = printable(called(info.name), one_line=True)
    shell.screen.line(f"{name} is in memory on {info.device}: {info.dtype}, {size(info.weight_bytes)} of weights")


@does("evict")
def _evict(shell: Session, line: Line) -> None:
    shell.kernel(
        Evict(
            model=_located(shell, line),
            device=line.text("--device"),
            dtype=line.text("--dtype"),
            force=line.has("--force"),
        )
    )


@does("advise")
def _advise(shell: Session, line: Line) -> None:
    advice = system.advice_named(line.text("ADVICE"))
    shell.kernel(Advise(_located(shell, line), advice, line.text("--device"), line.text("--dtype")))


@does("run")
def _run(shell: Session, line: Line) -> int:
    from llmasos.userland.shell.launch import python  # late: most verbs start no program of the host

    path = checked(shell.kernel.runtime, line.text("FILE"))
    status = python(shell, [str(path), *line.words])
    if status:
        shell.screen.error(f"{line.text('FILE')}: exit status {status}")
    return status


@does("exit")
def _exit(shell: Session, line: Line) -> None:
    default = 1 if shell.failures and not shell.interactive else 0
    status = line.integer("STATUS", default)
    if not 0 <= status <= 255:
        raise UsageError(f"an exit status is from 0 to 255, found {status}")
    shell.status = status


@does("halt")
def _halt(shell: Session, line: Line) -> None:
    keep = line.has("--keep")
    agents = sum(row.kind is Kind.LLM and row.state is not State.ZOMBIE for row in ps.processes(shell.kernel))
    if agents and not keep and shell.interactive and not line.has("--yes"):
        ends = "one agent ends" if agents == 1 else f"{agents} agents end"
        said = shell.ask_line(f"{ends} with it (`halt --keep` leaves them to the next kernel); halt? [y/N] ")
        if said.strip().lower() not in ("y", "yes"):
            shell.screen.line("nothing was halted")
            return
    try:
        halt(shell.kernel.runtime, keep=keep)
    except SyscallError:
        shell.status = 1
        raise
    shell.screen.line("the kernel has halted" + ("; the next one goes on with its agents" if keep else ""))
    shell.status = 1 if shell.failures and not shell.interactive else 0

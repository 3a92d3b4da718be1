"""From the journal to the live kernel: what a boot brings back, and how programs take up where they were.

Processes come back under their pids and wait for their models, which load in the background. A decode under way goes on
by itself and draws the tokens that it would have drawn. The kernel expects programs back for a while; then it ends them
as if their connection had ended. A program that comes back shows its ticket, an HMAC of its pid under a key that the
journal keeps, and makes its unanswered calls again under their old numbers. A call that has an answer gets it once more,
one that waited for a decode goes on waiting, and everything else is done now, because it had not been done.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from llmasos.kernel import desk, grants, sandboxes
from llmasos.kernel.clock import nanoseconds
from llmasos.kernel.events import CutOff, Syscall
from llmasos.kernel.groups.group import Group
from llmasos.kernel.journal import positions
from llmasos.kernel.journal.records import Granted, traits_of
from llmasos.kernel.journal.state import SavedProcess, SavedProgram, State
from llmasos.kernel.journal.tickets import PID_BYTES, ticket
from llmasos.kernel.life import Awaited, end_program, forget_old, lives_on, set_deadline
from llmasos.kernel.marks import changed
from llmasos.kernel.objects.device import Device
from llmasos.kernel.objects.grant import Grant
from llmasos.kernel.objects.log_records import NO_RECORDS, LogRecords
from llmasos.kernel.objects.process import INIT_PID, WAITS, Account, Decoding, LLMProcess, Program
from llmasos.kernel.objects.request import Request
from llmasos.kernel.objects.reserve import Reserve, make_reserve
from llmasos.kernel.objects.sandbox import Sandbox
from llmasos.kernel.recovery import rejoin
from llmasos.kernel.rights import called
from llmasos.kernel.sched.force import note, reschedule
from llmasos.kernel.sched.realtime import check_reserve, grant
from llmasos.kernel.state import System
from llmasos.kernel.wait import sleep, wait
from llmasos.syscalls import pids
from llmasos.syscalls import table as calls
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import GroupSettings, Kind, SchedClass, Usage, WaitFor
from llmasos.syscalls.records import State as ProcessState
from llmasos.syscalls.table import BY_RECORD

_TOLD = 256  # processes that come back between two looks whether to say so
_MOST_WAIT = 1 << 61  # nanoseconds that a record may tell

# --- tickets --------------------------------------------------------------------------------------------------------


def take_up(system: System, event: Syscall, shown: bytes, seen: int) -> Program:
    """Bind the program of a ticket to a new connection. ESRCH: it is not known; EAGAIN: it is attached already; ESTALE:
    it was told what the journal does not have, `seen` being the last position that it was told (-1: it does not say)."""
    pid = int.from_bytes(shown[:PID_BYTES], "big")
    valid = bool(system.secret) and len(shown) > PID_BYTES
    if not valid or not hmac.compare_digest(shown, ticket(system.secret, pid, system.owners.key(event.uid), event.key)):
        raise Errno.ESRCH("the ticket is of no program of this kernel; attach without it and begin anew")
    _check_seen(system, pid, seen)
    found, number = system.table.find(pid), pids.number_of(pid)
    program = found if isinstance(found, Program) and not found.leaving else None
    elsewhere = program is not None and program.sandbox != event.sandbox  # a sandbox has its own and no others
    if program is None or elsewhere or (event.tenant and program.owner.tenant != event.tenant):
        raise Errno.ESRCH(
            f"program {number} has ended, or did not come back within {system.config.grace:g} s after the kernel was "
            f"booted, or {system.config.cut_grace:g} s after its connection was cut; attach without its ticket"
        )
    if program.grace is None and event.key and may_come_back(system, program):
        system.act(CutOff(program.peer, "its program has come by another connection"))
        lose(system, program)  # it knows of the cut before its kernel does
    if program.grace is None:
        raise Errno.EAGAIN(f"program {number} is attached by another connection, whose end has not been noticed yet")
    program.grace.cancel()
    system.away.pop(pid, None)
    program.grace, program.peer, program.os_pid = None, event.peer, event.os_pid
    program.told = seen >= 0
    if program.key != event.key:  # an older kernel did not write it down
        program.key = event.key
        changed(system, program)
    system.stale[pid] = program
    system.programs[event.peer] = program
    system.log("info", f"program {pid} ({program.name}) is back", program)
    system.emit("journal.attach", pid, amount=event.os_pid)
    return program


def _check_seen(system: System, pid: int, seen: int) -> None:
    """Refuse a program that knows more than the journal. From then on no pid is given out that it may know."""
    journal = system.journal
    end = positions.end((*journal.ends, journal.position), seen)
    if seen <= 0 or (end is not None and seen <= end):
        return
    for space, number in journal.pids_from.items():
        system.table.resume(space, number)
    found = "nothing of that kernel" if end is None else f"that kernel's records up to {positions.told(end)}"
    text = f"program {pid} was told of record {positions.told(seen)}, the journal has {found}"
    system.log("error", f"journal: {text}: what came after it is lost")
    raise Errno.ESTALE(
        f"{text}: answers that it has had are lost; attach with the ticket and `seen` 0 to go on with what there is"
    )


def may_come_back(system: System, program: Program) -> bool:
    """Whether a program whose connection was cut can show who it is."""
    return bool(system.secret and program.name) and system.config.cut_grace > 0 and not system.halting


def lose(system: System, program: Program) -> None:
    """The connection of a program was cut, and it may come back by another one. Its processes and its calls go on; which
    answers have arrived nobody knows, so those that it asks for again it gets again, as after a boot."""
    del system.programs[program.peer]
    program.peer = program.os_pid = 0
    system.away[program.pid] = system.stale[program.pid] = program
    for request in program.parked.values():
        request.absent = True
    program.to_replay = {answer.seq for answer in program.answers}
    expected = program, "its connection was cut"
    program.grace = system.timers.at(system.now + nanoseconds(system.config.cut_grace), _stays_away, expected)
    grace = f"{system.config.cut_grace:g} s"
    system.log("warning", f"program {program.pid} ({program.name}) was cut off; it has {grace} to come back", program)


def keys_gone(system: System, gone: Callable[[bytes], bool]) -> None:
    """Programs that came by a key of these, and are away, come back no more."""
    for program in [one for one in system.table if isinstance(one, Program) and one.grace is not None]:
        if program.key and gone(program.key):
            end_program(system, program, 0, "its key was revoked while it was away")


def _stays_away(system: System, expected: tuple[Program, str]) -> None:
    """A program has not come back in time, and ends. `expected`: it, and since what it was expected."""
    program, since = expected
    system.log("warning", f"program {program.pid} ({program.name}) has not come back", program)
    end_program(system, program, 0, f"it did not come back after {since}")


def join(waiting: Request, request: Request) -> bool:
    """Whether the program repeats a call that waits since an earlier connection. The old request answers both."""
    if not waiting.absent or type(request.call) is not type(waiting.call):
        return False
    waiting.absent = False
    return True


def answer_again(system: System, request: Request) -> bool:
    """Answer a call as an earlier connection was, if it was: that may not have arrived. Returns whether it was."""
    program = request.program
    if request.seq not in program.to_replay:
        return False
    program.to_replay.discard(request.seq)
    answer = program.answers.get(request.seq)
    if answer is None or answer.call != request.entry.number:
        return False
    done = answer.errno is Errno.OK
    value = msgspec.msgpack.decode(answer.value, type=request.entry.result) if done else None
    desk.repeat(system, request, answer.errno, value, answer.reason)
    return True


# --- boot -----------------------------------------------------------------------------------------------------------


def recover(system: System, state: State, progress: Callable[[int, int], None] = lambda done, of: None) -> None:
    """Bring back the state that the journal has, and record from here on. `progress`: as of Kernel.boot."""
    system.secret = state.secret
    for owner in state.owners.values():
        system.groups.home(system.owners.recall(owner.name, owner.salt))
    for path, settings in state.groups.items():
        group = system.groups.recall(path)
        if group.settings not in (settings, GroupSettings()):
            system.log(
                "info", f"journal: group {path} has what was set while a kernel ran, not what the configuration says"
            )
        group.change(settings)
    for path, tokens in state.spent.items():
        system.groups.recall(path).tokens = tokens
    system.journal.begin(system.groups, state)
    _schedule(system, state)
    resume_pids(system, state)
    programs = {pid: _program(system, saved) for pid, saved in state.programs.items()}
    processes: list[LLMProcess] = []
    for saved in state.processes.values():
        processes.append(_process(system, saved, state, programs))
        if not len(processes) % _TOLD:
            progress(len(processes), len(state.processes))
    system.table.sort()
    _grants(system, state, programs)
    forget_old(system)
    if system.grants:
        grants.expire(system, system.wall)  # time went on while no kernel ran
    for process in processes:
        if not process.is_zombie() and lives_on(system, process):
            rejoin.begin(system, process)
    if programs or processes:
        waiting = sum(process.saved is not None and not process.is_zombie() for process in processes)
        system.log(
            "info",
            f"journal: {len(processes)} processes of {len(programs)} programs are back, {state.tokens:,} tokens; "
            f"{waiting} wait for their model, the programs have {system.config.grace:g} s to come back",
        )
        system.emit("journal.recover", amount=state.tokens, detail=f"{len(processes)} processes")


def resume_pids(system: System, state: State) -> None:
    """Give out no pid that was given out before."""
    for space, number in (0, state.next_pid), *state.numbers.items():
        system.table.resume(space, positions.beyond(number) if state.lost else number)


def _schedule(system: System, state: State) -> None:
    for head in state.devices.values():
        if (device := system.devices.get(head.name)) is None:
            continue
        reschedule(system, device, max_runs=head.max_runs, step_tokens=head.step_tokens)
        for kind in ("policy", "victims", "evictions"):
            try:
                reschedule(system, device, **{kind: getattr(head, kind)})
            except SyscallError as error:
                system.log("warning", f"journal: {device.name} goes on as configured: {error.reason}")
    for device in system.devices.values():
        if device.rescheduled:
            note(system, device)


def _program(system: System, saved: SavedProgram) -> Program:
    head, owner = saved.head, system.owners.recall(saved.head.owner)
    program = Program(
        head.pid,
        INIT_PID,
        Kind.PROGRAM,
        head.name,
        system.groups.recall(head.group),
        system.now,
        ProcessState.BLOCKED,
        WaitFor.RETURN,
        system.now,
        owner=owner,
        rights=head.rights & owner.rights,  # he may have been an operator, and be none now
        confined=head.confined,
        sandbox=head.sandbox,
        key=head.key,
        answers=saved.answers,
        to_replay={answer.seq for answer in saved.answers},
    )
    expected = program, "the kernel was booted"
    program.grace = system.timers.at(system.now + nanoseconds(system.config.grace), _stays_away, expected)
    system.table.add(program)
    return program


def _grants(system: System, state: State, programs: dict[int, Program]) -> None:
    """Every grant again, and the sandboxes."""
    for head in sorted(state.grants.values(), key=lambda head: _depth(state, head)):
        _recall_grant(system, head, programs)
    system.grants.changed.clear()
    for number, pid in state.sandboxes.items():
        system.sandboxes.add(sandbox := Sandbox(number, programs[pid]))
        sandbox.programs = {one.pid: one for one in programs.values() if one.sandbox == number}
        sandboxes.open_again(system, sandbox)
    system.sandboxes.changed.clear()


def _recall_grant(system: System, head: Granted, programs: dict[int, Program]) -> None:
    parent = system.grants.get(head.parent) if head.parent else None
    thing = system.groups.recall(head.group) if head.group else system.table.find(head.pid)
    if isinstance(thing, LLMProcess | Group):
        hands = head.rights, head.maker, head.to, parent, head.secret, programs.get(head.holder)
        system.grants.add(Grant(head.number, thing, *hands, head.until, head.sandbox))


def _depth(state: State, head: Granted) -> int:
    """How far down the tree a grant is: it is recalled after what it was made of."""
    above = state.grants.get(head.parent)
    return 0 if above is None else 1 + _depth(state, above)


def _process(system: System, saved: SavedProcess, state: State, programs: dict[int, Program]) -> LLMProcess:
    head = saved.head
    process = LLMProcess(
        pid=head.pid,
        parent=INIT_PID if head.detached else head.parent,
        kind=Kind.LLM,
        name=head.name,
        group=system.groups.recall(head.group),
        started=system.now,
        since=system.now,
        owner=system.owners.recall(head.owner),
        device=_device(system, saved) or system.device_named(""),
        traits=traits_of(head),
        saved=head,
        log=saved.log,
        recorded=len(saved.log),
        records=LogRecords(saved.records) if saved.records else NO_RECORDS,
        finish=head.finish,
        ahead=False,  # its pages come back with its next feed, truncate or decode
        stopped=head.stopped,
        stop_reason=head.stop_reason,
        dying=head.dying,
        high_water=max(0, len(saved.log) - 1),
        turn=system.now,
        account=Account(saved.fed, saved.decoded, forks=head.forks),
    )
    if head.exited is not None:
        exited = head.exited
        process.state, process.exit_status, process.exit_reason = (ProcessState.ZOMBIE, exited.status, exited.reason)
        process.account = _account(exited.usage)
    process.records.journal_has(len(saved.records))
    system.table.add(process)
    if head.sched_class is SchedClass.REALTIME and not process.is_zombie():
        _reserve(system, process, head.reserve)
    doing = head.doing
    if doing is not None:
        process.decoding = decoding = Decoding(
            doing.until - len(saved.log),
            doing.append,
            doing.start,
            frozenset(doing.stop_ids),
            doing.logprobs,
            collected=list(saved.logprobs),
            recorded=len(saved.logprobs),
            interrupted=doing.interrupted,
        )
        if doing.deadline is not None:
            set_deadline(system, process, decoding, system.now + max(0, doing.deadline - state.now))
        if doing.program:
            program, entry = programs[doing.program], BY_RECORD[calls.Decode]
            named = called(system, program, process.pid)
            call = calls.Decode(named, decoding.left, doing.stop_ids, logprobs=doing.logprobs)
            decoding.request = Request(program, doing.seq, call, entry, program.group, absent=True)
            decoding.request.begun = Awaited(process, decoding)
            sleep(system, decoding.request, wait(decoding.line))
    return process


def _reserve(system: System, process: LLMProcess, times: tuple[int, int]) -> None:
    """Give a process its part of the device's time again. There may be fewer devices than there were."""
    wanted = Reserve(*times) if any(times) else make_reserve(0, 0)  # an older kernel knew none
    try:
        check_reserve(system, process.device, process.pid, wanted, process.owner)
    except SyscallError as error:
        process.traits = replace(process.traits, sched_class=SchedClass.FAIR)
        system.log("warning", f"journal: process {process.pid} is FAIR from here on: {error.reason}")
        changed(system, process)
        return
    grant(system, process, process.device, wanted)
    if not any(times):
        changed(system, process)


def _account(usage: Usage) -> Account:
    """The account that a record was made of."""
    told = msgspec.structs.asdict(usage)
    device_time = nanoseconds(told.pop("device_seconds"))
    del told["waits"]
    account = Account(**told, device_time=device_time)
    for reason, duration in usage.waits.items():
        if reason in WAITS:  # else another version's
            account.waited(reason, min(nanoseconds(duration), _MOST_WAIT))
    return account


def journal_fails(system: System, reason: str) -> None:
    """Log that the journal cannot be written, or that it can again."""
    system.journal_trouble = reason
    if reason:
        system.log(
            "error",
            f"journal: {reason}; the kernel goes on, but what changes from here on would not survive it until there is a "
            "line that the journal is whole again",
        )
    else:
        system.log("info", "journal: whole again")
    system.emit("journal.fail" if reason else "journal.whole", detail=reason)


def journal_waits(system: System, duration: float, *, done: bool) -> None:
    """Log that the disk takes long, and that it is done."""
    if done:
        system.journal_wait = ""
        system.log("info", f"journal: the disk took {duration:.1f} s for a sync")
        return
    system.journal_wait = "slow: a sync of the disk is taking long; answers that need it wait, all else goes on"
    system.log("warning", f"journal: the disk has been at a sync for {duration:.1f} s; answers that need it wait for it")


def _device(system: System, saved: SavedProcess) -> Device | None:
    """The device on which a process goes on: its own, or another of that kind, since that computes the same; or None."""
    head = saved.head
    device = system.devices.get(head.device)
    if device is not None and device.config.kind == head.kind:
        return device
    return next((device for device in system.devices.values() if device.config.kind == head.kind), None)

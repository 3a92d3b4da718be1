"""From the journal to the live kernel: what a boot brings back, and how programs take up where they were.

Processes come back under their pids and wait for their models, which are loaded behind their backs; a decode under way
goes on by itself, and draws the tokens it would have drawn. Programs are expected back for a while, then they end as if
their connection had. A program that comes back shows its ticket, an HMAC of its pid under a key that the journal keeps,
and makes its unanswered calls again under their old numbers: what has an answer gets it, who waited for a decode goes on
waiting, everything else is done now, because it had not been done.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

import msgspec

from kernel.calls.context import await_decode, set_deadline
from kernel.calls.process import check_tokens
from kernel.devices import steps
from kernel.events import Syscall
from kernel.journal.state import SavedProcess, SavedProgram, State
from kernel.life import end_program, exit_process, finish_decoding
from kernel.models.loading import want_image
from kernel.objects.device import Device
from kernel.objects.image import Image
from kernel.objects.log_records import LogRecords
from kernel.objects.process import INIT_PID, Account, Decoding, LLMProcess, Program
from kernel.objects.request import Request
from syscalls.errno import Errno, SyscallError
from syscalls.records import Finish, Kind, WaitFor
from syscalls.records import State as ProcessState
from syscalls.table import BY_RECORD, Decode

if TYPE_CHECKING:
    from kernel.core import Kernel

_PID_BYTES = 8


# --- tickets --------------------------------------------------------------------------------------------------------


def ticket(secret: bytes, pid: int) -> bytes:
    """What a program shows to be known again: its pid, and a proof that a kernel with this journal gave it."""
    number = pid.to_bytes(_PID_BYTES, "big")
    return number + hmac.digest(secret, number, "sha256")


def take_up(kernel: Kernel, event: Syscall, shown: bytes, now: float) -> Program:
    """The program of a ticket goes on by another connection. ESRCH: it is not known; EAGAIN: it is here already."""
    pid = int.from_bytes(shown[:_PID_BYTES], "big")
    valid = bool(kernel.secret) and len(shown) > _PID_BYTES
    if not valid or not hmac.compare_digest(shown, ticket(kernel.secret, pid)):
        raise SyscallError(
            Errno.ESRCH, "the ticket is of no program of this kernel; attach without it and begin anew"
        )
    program = kernel.table.find(pid)
    if not isinstance(program, Program):
        raise SyscallError(
            Errno.ESRCH,
            f"program {pid} has ended, or did not come back within {kernel.config.grace:g} s; attach without the ticket",
        )
    if program.away is None:
        raise SyscallError(
            Errno.EAGAIN,
            f"program {pid} is attached by another connection, whose end has not been noticed yet",
        )
    program.away.cancel()
    program.away = None
    program.peer, program.os_pid = event.peer, event.os_pid
    kernel.programs[event.peer] = program
    kernel.log(now, "info", f"program {pid} ({program.name}) is back")
    kernel.emit(now, "journal.attach", pid, amount=event.os_pid)
    return program


def join(waiting: Request, request: Request) -> bool:
    """Whether a call is one that waits since an earlier kernel, made again: then the old one will be answered."""
    if not waiting.absent or not isinstance(request.call, Decode):
        return False
    waiting.absent = False
    return True


def answer_again(kernel: Kernel, request: Request) -> bool:
    """Whether a call was answered before, but the answer may not have arrived: then it is given again."""
    program = request.program
    if request.seq not in program.unsure:
        return False
    program.unsure.discard(request.seq)
    answer = program.answers.get(request.seq)
    if answer is None or answer.call != request.entry.number:
        return False
    if answer.errno is Errno.OK:
        kernel.answer(request, msgspec.msgpack.decode(answer.value, type=request.entry.result))
    else:
        kernel.fail(request, answer.errno, answer.reason)
    return True


# --- boot -----------------------------------------------------------------------------------------------------------


def recover(kernel: Kernel, state: State, now: float) -> None:
    """Bring back what the journal has, and keep it from here on."""
    from kernel.calls.system import reschedule

    kernel.secret = state.secret
    for path, settings in state.groups.items():
        kernel.groups.recall(path).change(settings)
    for path, tokens in state.spent.items():
        kernel.groups.recall(path).tokens = tokens
    kernel.journal.begin(kernel, state)
    for head in state.devices.values():
        if (device := kernel.devices.get(head.name)) is not None:
            reschedule(kernel, device, head.policy, head.max_runs, head.step_tokens, now)
    kernel.table.resume(state.next_pid)
    programs = {pid: _program(kernel, saved, now) for pid, saved in state.programs.items()}
    processes = [_process(kernel, saved, state, programs, now) for saved in state.processes.values()]
    kernel.table.sort()
    for process in processes:
        if not process.is_zombie():
            _resume(kernel, process, now)
    if programs or processes:
        waiting = sum(process.saved is not None and not process.is_zombie() for process in processes)
        kernel.log(
            now,
            "info",
            f"journal: {len(processes)} processes of {len(programs)} programs are back, {state.tokens:,} tokens; "
            f"{waiting} wait for their model, the programs have {kernel.config.grace:g} s to come back",
        )
        kernel.emit(now, "journal.recover", amount=state.tokens, detail=f"{len(processes)} processes")


def _program(kernel: Kernel, saved: SavedProgram, now: float) -> Program:
    head = saved.head
    program = Program(
        head.pid, INIT_PID, Kind.PROGRAM, head.name, kernel.groups.recall(head.group), now,
        ProcessState.BLOCKED, WaitFor.INPUT, now, rights=head.rights, answers=saved.answers,
        unsure={answer.seq for answer in saved.answers},
    )  # fmt: skip

    def missing(then: float) -> None:
        kernel.log(then, "warning", f"program {program.pid} ({program.name}) has not come back")
        end_program(kernel, program, 0, "it did not come back after the kernel was booted", then)

    program.away = kernel.timers.at(now + kernel.config.grace, missing)
    kernel.table.add(program)
    return program


def _process(
    kernel: Kernel, saved: SavedProcess, state: State, programs: dict[int, Program], now: float
) -> LLMProcess:
    head = saved.head
    process = LLMProcess(
        pid=head.pid,
        owner=head.owner,
        kind=Kind.LLM,
        name=head.name,
        group=kernel.groups.recall(head.group),
        started=now,
        since=now,
        device=_device(kernel, saved) or kernel.device_named(""),
        model=head.model,
        sampler=head.sampler,
        limits=head.limits,
        once=head.once,
        detached=head.detached,
        spent=head.spent,
        saved=head,
        log=saved.log,
        recorded=len(saved.log),
        records=LogRecords(saved.records),
        finish=head.finish,
        ahead=False,  # its pages come back when something is asked of it
        stopped=head.stopped,
        dying=head.dying,
        sched_class=head.sched_class,
        nice=head.nice,
        reached=max(0, len(saved.log) - 1),
        turn=now,
        account=Account(saved.fed, saved.decoded, forks=head.forks),
    )
    if head.exited is not None:
        exited = head.exited
        process.state, process.exit_status, process.exit_reason = (
            ProcessState.ZOMBIE,
            exited.status,
            exited.reason,
        )
        process.account = Account(**msgspec.structs.asdict(exited.usage))
    process.records.journaled = len(saved.records)
    kernel.table.add(process)
    doing = head.doing
    if doing is not None:
        process.decoding = decoding = Decoding(
            doing.until - len(saved.log),
            doing.append,
            doing.start,
            frozenset(doing.stop_ids),
            doing.logprobs,
            None,
            saved.logprobs,
            len(saved.logprobs),
            doing.interrupted,
        )
        if doing.deadline is not None:
            set_deadline(kernel, process, decoding, now + max(0.0, doing.deadline - state.now))
        if doing.program:
            call = Decode(process.pid, decoding.left, doing.stop_ids, logprobs=doing.logprobs)
            request = Request(programs[doing.program], doing.seq, call, BY_RECORD[Decode], absent=True)
            decoding.request = request
            await_decode(kernel, process, decoding, request)
    return process


def _resume(kernel: Kernel, process: LLMProcess, now: float) -> None:
    """Do what was due at the next token boundary; if the process lives on, it needs its model."""
    if process.dying is not None:
        exit_process(kernel, process, *process.dying, now)
        return
    if process.decoding is not None and process.decoding.interrupted is not Finish.NONE:
        finish_decoding(kernel, process, process.decoding.interrupted, now)
        if process.is_zombie():
            return
    _want(kernel, process, now)


def journal_fails(kernel: Kernel, reason: str, now: float) -> None:
    """Say that the journal cannot be written, or that all is well again."""
    kernel.journal_trouble = reason
    if reason:
        kernel.log(
            now,
            "error",
            f"journal: {reason}; the kernel goes on, but what changes from here on would not survive it until there is a "
            "line that the journal is whole again",
        )
    else:
        kernel.log(now, "info", "journal: whole again")
    kernel.emit(now, "journal.fail" if reason else "journal.whole", detail=reason)


# --- models ---------------------------------------------------------------------------------------------------------


def _device(kernel: Kernel, saved: SavedProcess) -> Device | None:
    """Where a process goes on: on its device, or on another of the kind, which computes the same."""
    head = saved.head
    device = kernel.devices.get(head.device)
    if device is not None and device.config.kind == head.kind:
        return device
    return next((device for device in kernel.devices.values() if device.config.kind == head.kind), None)


def _want(kernel: Kernel, process: LLMProcess, now: float) -> None:
    """Have the model of a process brought into memory, and the process go on with it."""
    head, device = process.saved, process.device
    assert head is not None

    def ready(image: Image | SyscallError) -> None:
        if process.is_zombie() or process.saved is None:
            return
        try:
            if isinstance(image, SyscallError):
                raise image
            check_tokens(image, process.log)
            process.group.check_weights(image.id, image.weight_bytes, image.name)
            if len(process.log) > image.context:  # a limit may be lower than what there was when it was set
                raise SyscallError(
                    Errno.E2BIG,
                    f"its context has {len(process.log)} tokens, {image.name} on {device.name} has room for "
                    f"{image.context}",
                )
        except SyscallError as error:
            _lose(kernel, process, error, kernel.now)
        else:
            _go_on(kernel, process, image, kernel.now)

    model = head.model if kernel.config.models.get(head.model, head.model) == head.path else head.path
    try:
        if device.config.kind != head.kind:
            raise SyscallError(Errno.ENODEV, f"there is no device of kind {head.kind} any more")
        image = want_image(kernel, device, model, head.dtype, ready, now)
    except SyscallError as error:
        _lose(kernel, process, error, now)
        return
    image.used = now
    kernel.settle(process, now)


def _go_on(kernel: Kernel, process: LLMProcess, image: Image, now: float) -> None:
    process.image, process.saved = image, None
    kernel.touch(process)
    image.join(process)
    decoding = process.decoding
    if decoding is not None and decoding.append:
        if process.budget_used:
            finish_decoding(kernel, process, Finish.BUDGET, now)
        elif len(process.log) >= process.context:
            finish_decoding(kernel, process, Finish.CONTEXT, now)
    steps.boundary(kernel, process, now)


def _lose(kernel: Kernel, process: LLMProcess, error: SyscallError, now: float) -> None:
    """A process cannot have its model, for now. It stays, with its log and its decode: another boot may have the model.
    Only those who wait for it are told."""
    process.lost = error.reason
    reason = f"process {process.pid} has not got its model back: {error.reason}"
    kernel.log(now, "error", f"journal: {reason}; it stays, and its log can be read")
    kernel.touch(process)
    decoding = process.decoding
    if decoding is not None and decoding.request is not None:
        request, decoding.request = decoding.request, None
        kernel.fail(request, Errno.EIO, reason)
    deferred, process.deferred = process.deferred, []
    for request in deferred:
        kernel.fail(request, Errno.EBUSY, reason)
    kernel.settle(process, now)


def retry(kernel: Kernel, device: Device, now: float) -> None:
    """A driver has come up: those of its device who could not have their model may have it now."""
    for process in list(kernel.table):
        if not isinstance(process, LLMProcess) or not process.lost or process.device is not device:
            continue
        if process.saved is not None and device.config.kind == process.saved.kind:
            process.lost = ""
            _want(kernel, process, now)

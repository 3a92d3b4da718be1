"""The context family: feed decode read records truncate."""

from __future__ import annotations

from typing import cast

from llmasos.kernel import desk
from llmasos.kernel.calls.lookup import at_boundary, check_idle, with_model
from llmasos.kernel.life import await_decode, set_deadline
from llmasos.kernel.marks import freed, touch
from llmasos.kernel.objects.process import Decoding, LLMProcess
from llmasos.kernel.objects.request import Request
from llmasos.kernel.readers import try_read
from llmasos.kernel.settle import settle
from llmasos.kernel.state import System
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import DecodeResult, Finish, RecordsResult
from llmasos.syscalls.table import Decode, Feed, Read, Records, Truncate


def feed(system: System, request: Request) -> object:
    call = cast(Feed, request.call)
    process = with_model(system, call.pid)
    check_idle(process, "feed")
    if process.deferred or process.saved is not None:  # not before a truncate or a fork that was asked for earlier
        return at_boundary(process, request)
    assert process.image is not None
    process.image.check_tokens(call.tokens)
    process.check_room(len(process.log) + len(call.tokens))
    process.records.check_room(call.records, process.pid)
    if call.records:
        process.records.add(len(process.log), call.records)
        system.journal.noted(process)
    process.log.extend(call.tokens)
    process.account.fed += len(call.tokens)
    process.ahead = True
    system.counters["fed"] += len(call.tokens)
    system.journal.grew(process)
    settle(system, process)
    for reader in list(process.readers):  # those who follow an idle process
        result = try_read(process, cast(Read, reader.call))
        if result is not None:
            process.readers.remove(reader)
            desk.answer(system, reader, result)
    return len(process.log)


def decode(system: System, request: Request) -> object:
    call = cast(Decode, request.call)
    process = with_model(system, call.pid)
    check_idle(process, "decode")
    if process.saved is not None:
        return at_boundary(process, request)
    _check_decode(process, call)
    if process.running:
        return at_boundary(process, request)
    image = process.image
    assert image is not None
    if call.sampler is not None:
        process.sampler = call.sampler
    append = call.max_tokens > 0
    if process.table.cached == len(process.log):  # the last token's logits are wanted again
        process.table.cut(image.pool, len(process.log) - 1)
        if not process.table.frames:
            image.let_go(process)
    process.ahead = True
    decoding = Decoding(
        left=call.max_tokens,
        append=append,
        start=len(process.log),
        stop_ids=frozenset(call.stop_ids),
        logprobs=call.logprobs if append else max(1, call.logprobs),
        request=request if call.wait else None,
    )
    process.decoding, process.finish = decoding, Finish.NONE
    touch(system, process)
    if call.deadline is not None:
        set_deadline(system, process, decoding, system.now + call.deadline)
    settle(system, process)
    if not call.wait:
        return DecodeResult(len(process.log), [], Finish.NONE)
    return await_decode(system, process, decoding, request)


def _check_decode(process: LLMProcess, call: Decode) -> None:
    if not process.log:
        raise SyscallError(Errno.EINVAL, f"process {process.pid} has an empty context; feed it at least one token")
    if call.max_tokens and len(process.log) >= process.context:
        process.check_room(len(process.log) + 1)
    budget = process.limits.tokens
    if call.max_tokens and process.budget_used:
        raise SyscallError(
            Errno.EDQUOT, f"process {process.pid} has used its budget of {budget} decoded tokens; raise it with setlimits"
        )
    if call.max_tokens and (spent := process.group.exhausted()) is not None:
        raise SyscallError(
            Errno.EDQUOT,
            f"group {spent.path} has used its {spent.settings.tokens_total} tokens (tokens_total; group_set)",
        )
    hello = process.device.hello
    if (call.logprobs or not call.max_tokens) and hello is not None and "logprobs" not in hello.features:
        raise SyscallError(Errno.ENOTSUP, f"device {process.device.name} does not report log-probabilities")


def read(system: System, request: Request) -> object:
    call = cast(Read, request.call)
    process = system.table.find(call.pid)
    if not isinstance(process, LLMProcess):  # a zombie's log can still be read
        process = system.table.llm(call.pid)
    result = try_read(process, call)
    if result is not None:
        return result
    if call.timeout is not None:
        late = f"process {call.pid} has appended nothing after position {call.position} within {call.timeout:g} s"
        request.timers.append(
            system.timers.at(system.now + call.timeout, lambda: desk.unpark(system, request, Errno.ETIME, late))
        )
    process.readers.append(request)
    reading = process

    def undo() -> None:
        if request in reading.readers:
            reading.readers.remove(request)

    return desk.park(request, undo)


def records(system: System, request: Request) -> RecordsResult:
    call = cast(Records, request.call)
    process = system.table.find(call.pid)
    if not isinstance(process, LLMProcess):  # a zombie's can still be read, as its log can
        process = system.table.llm(call.pid)
    return RecordsResult(process.records.since(call.position), len(process.log))


def truncate(system: System, request: Request) -> object:
    call = cast(Truncate, request.call)
    process = with_model(system, call.pid)
    check_idle(process, "truncate")
    if process.saved is not None:
        return at_boundary(process, request)
    if call.length > len(process.log):
        raise SyscallError(
            Errno.EINVAL, f"process {process.pid} has {len(process.log)} tokens; cannot cut it down to {call.length}"
        )
    if process.running:
        return at_boundary(process, request)
    image = process.image
    assert image is not None
    del process.log[call.length :]
    process.recorded = min(process.recorded, call.length)
    system.journal.grew(process)
    if process.records.cut(call.length):
        system.journal.noted(process)
    process.table.cut(image.pool, call.length)
    process.table.trim(image.swap, call.length)
    freed(system)
    process.driver_log = min(process.driver_log, call.length)
    process.reached = min(process.reached, call.length)
    process.ahead = True
    if not process.table.frames:
        image.let_go(process)
    settle(system, process)
    return len(process.log)

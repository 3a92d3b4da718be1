"""The context family: feed decode read records truncate."""

from __future__ import annotations

from msgspec.structs import replace

from llmasos.drivers.protocol import LOGPROBS
from llmasos.kernel.calls.lookup import check_model
from llmasos.kernel.clock import nanoseconds
from llmasos.kernel.life import Awaited, set_deadline
from llmasos.kernel.marks import changed, freed, grew
from llmasos.kernel.objects.process import NOWHERE, Decoding, LLMProcess
from llmasos.kernel.objects.request import Request
from llmasos.kernel.state import System
from llmasos.kernel.wait import Waiting, wait
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.limits import MAX_READ
from llmasos.syscalls.records import DecodeResult, Finish, ReadResult, RecordsResult
from llmasos.syscalls.table import Decode, Feed, Read, Records, Truncate

_AHEAD = 4096  # tokens of a decode for which there must be room when it begins
_WOKEN = 1024  # tokens of one answer to a read that has waited: many may wait for the same, and are answered at once


def feed(system: System, request: Request, call: Feed, process: LLMProcess) -> int:
    """Row 40 of the table, `Feed`."""
    process.check_room(len(process.log) + len(call.tokens))
    process.mapped.check_tokens(call.tokens)
    process.records.check_room(call.records, process.pid)
    process.check_log(len(call.tokens), call.records)
    if call.records:
        process.records = process.records.with_more(len(process.log), call.records)
        system.journal.noted(process)
    process.fed_from = min(process.fed_from, len(process.log))
    process.log.extend(call.tokens)
    process.account.fed += len(call.tokens)
    process.ahead = True
    system.counters["fed"] += len(call.tokens)
    grew(system, process)
    return len(process.log)


def decode(system: System, request: Request, call: Decode, process: LLMProcess) -> DecodeResult | Waiting:
    """Row 41 of the table, `Decode`."""
    _check_decode(process, call)
    image = process.mapped
    if call.sampler is not None:
        process.traits = replace(process.traits, sampler=call.sampler)
    append = call.max_tokens > 0
    if process.table.cached == len(process.log):  # the last token's logits are wanted again
        image.cut(process, len(process.log) - 1)
    process.ahead = True
    logprobs = call.logprobs if append else max(1, call.logprobs)
    decoding = Decoding(call.max_tokens, append, len(process.log), frozenset(call.stop_ids), logprobs)
    process.decoding, process.finish, process.fed_from = decoding, Finish.NONE, NOWHERE
    changed(system, process)
    if call.deadline is not None:
        set_deadline(system, process, decoding, system.now + nanoseconds(call.deadline))
    if not call.wait:
        return DecodeResult(len(process.log), [], Finish.NONE)
    decoding.request, request.begun = request, Awaited(process, decoding)
    return wait(decoding.line)


def _check_decode(process: LLMProcess, call: Decode) -> None:
    if not process.log:
        raise Errno.EINVAL(f"process {process.pid} has an empty context; feed it at least one token")
    if call.max_tokens and len(process.log) >= process.context:
        process.check_room(len(process.log) + 1)
    if call.max_tokens and process.budget_used:
        budget = process.traits.limits.tokens
        why = f"process {process.pid} has used its budget of {budget} decoded tokens; raise it (Limits.tokens)"
        raise Errno.EDQUOT(why)
    if call.max_tokens and (spent := process.group.exhausted()) is not None:
        why = f"tokens_total of group {spent.path} is used up: {spent.settings.tokens_total:,} tokens"
        raise Errno.EDQUOT(why)
    process.check_log(min(call.max_tokens, _AHEAD))
    if (call.logprobs or not call.max_tokens) and process.device.lacks(LOGPROBS):
        raise Errno.ENOTSUP(f"device {process.device.name} does not report log-probabilities")


def read(system: System, request: Request, call: Read, process: LLMProcess) -> ReadResult | Waiting:
    """Row 42 of the table, `Read`."""
    length, decoding = len(process.log), process.decoding is not None
    position = length if call.position < 0 else call.position
    if position >= length and not process.is_zombie() and (decoding or call.follow):
        if process.stranded:
            check_model(process)
        late = f"process {process.pid} has appended nothing after position {call.position} within {call.timeout} s"
        return wait(process.output, call.timeout, late)
    limit = min(call.limit, _WOKEN if request.waited else MAX_READ)
    tokens = process.log[position : position + limit].tolist()
    return ReadResult(position, tokens, decoding, process.finish, process.state, length)


def records(system: System, request: Request, call: Records, process: LLMProcess) -> RecordsResult:
    """Row 44 of the table, `Records`."""
    return RecordsResult(process.records.since(call.position), len(process.log))


def truncate(system: System, request: Request, call: Truncate, process: LLMProcess) -> int:
    """Row 43 of the table, `Truncate`."""
    if call.length > len(process.log):
        why = f"process {process.pid} has {len(process.log)} tokens; cannot cut it down to {call.length}"
        raise Errno.EINVAL(why)
    image = process.mapped
    unused = max(0, len(process.log) - max(call.length, process.fed_from))  # nothing was decoded from them
    process.account.fed -= unused
    system.counters["fed"] -= unused
    del process.log[call.length :]
    process.recorded = min(process.recorded, call.length)
    if process.records.cut(call.length):
        system.journal.noted(process)
    grew(system, process)
    image.cut(process, call.length)
    process.table.trim(image.swap, call.length)
    freed(system)
    process.driver_log = min(process.driver_log, call.length)
    process.high_water = min(process.high_water, call.length)
    process.ahead = True
    return len(process.log)

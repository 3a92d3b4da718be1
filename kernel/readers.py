"""Reading a process's log: what a `read` gets, and whom to wake when there is more."""

from __future__ import annotations

from llmasos.kernel import desk
from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.state import System
from llmasos.syscalls.records import ReadResult, State
from llmasos.syscalls.table import Read


def try_read(process: LLMProcess, call: Read) -> ReadResult | None:
    """What a `read` gets now, or None if it has to wait."""
    length = len(process.log)
    position = length if call.position < 0 else call.position
    gone = process.state is State.ZOMBIE
    if position >= length and not gone and (process.decoding is not None or call.follow):
        return None
    end = min(length, position + call.limit)
    tokens = process.log[position:end]
    return ReadResult(position, tokens, process.decoding is not None, process.finish, process.state, length)


def wake_readers(system: System, process: LLMProcess) -> None:
    """Answer the reads that have something to be answered with."""
    waiting, process.readers = process.readers, []
    for request in waiting:
        if request.answered:
            continue
        call = request.call
        assert isinstance(call, Read)
        result = try_read(process, call)
        if result is None:
            process.readers.append(request)
        else:
            desk.answer(system, request, result)

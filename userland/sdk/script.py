"""Scripts: what a program does, apart from how it waits.

A script is a generator that yields system calls and is sent their results ("sans I/O", as h11 and wsproto are written),
so the same logic serves the blocking and the asynchronous face without being written twice. A stream is a
script that also yields pieces of text for its consumer on the way. A call's error, Ctrl-C and cancellation are raised in
the script where it waits; it may still make the calls of its cleanup before it passes them on.

    def grow(pid):                         # a script
        yield from ask(Feed(pid, [1, 2]))
        answer = yield from ask(Decode(pid, 8))
        return answer.tokens
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

from syscalls import blocking
from syscalls.errno import Errno, SyscallError
from syscalls.records import Signal
from syscalls.table import Call, Kill
from userland.sdk.tool_calls import BadCall, ToolCall

R = TypeVar("R")
T = TypeVar("T")

MAX_TOGETHER = 64  # calls of one `together` in flight at once, for a blocking program
CLEANUP_SECONDS = 5.0  # a program that is being cancelled waits no longer than this for the kernel


@dataclass(slots=True, frozen=True)
class Together:
    """Calls to make at once; the result is the list of their results. The first error, if any, is raised."""

    calls: Sequence[Call[Any]]


@dataclass(slots=True, frozen=True)
class Piece:
    """Text for the consumer of a stream: of the answer, or of a thought. A `call` of a tool has the record, or what is
    wrong with what was meant as one."""

    text: str
    kind: Literal["thought", "answer", "call"] = "answer"
    call: ToolCall | BadCall | None = None


Script = Generator[Call[Any] | Together, Any, T]
Stream = Generator[Call[Any] | Together | Piece, Any, T]


def ask(call: Call[R]) -> Generator[Call[Any], Any, R]:
    """Make one call."""
    return cast(R, (yield call))


def together(calls: Sequence[Call[R]]) -> Generator[Together, Any, list[R]]:
    """Make calls at once, so that the kernel can batch what they ask for."""
    return cast(list[R], (yield Together(calls)))


# --- the blocking face (script_async.py is the other) ------------------------------------------------------------------


def _do(kernel: blocking.Client, request: Call[Any] | Together) -> Any:
    if not isinstance(request, Together):
        return kernel(request)
    if len(request.calls) <= 1:
        return [kernel(call) for call in request.calls]
    with ThreadPoolExecutor(min(len(request.calls), MAX_TOGETHER), "llmasos-call") as pool:
        return list(pool.map(kernel, request.calls))


def run(kernel: blocking.Client, script: Script[T]) -> T:
    """Run a script to its result."""
    try:
        request = next(script)
        while True:
            try:
                result = _do(kernel, request)
            except BaseException as error:
                request = script.throw(error)
            else:
                request = script.send(result)
    except StopIteration as end:
        return cast(T, end.value)


def stream(kernel: blocking.Client, script: Stream[T], pid: int) -> Generator[str, None, None]:
    """The answer's text of a stream, piece by piece; see `pieces`."""
    with closing(pieces(kernel, script, pid)) as all_of_it:
        for piece in all_of_it:
            if piece.kind == "answer":
                yield piece.text


def pieces(kernel: blocking.Client, script: Stream[T], pid: int) -> Generator[Piece, None, None]:
    """The pieces of a stream; a consumer that stops listening interrupts the decode of process `pid`."""
    ended = False
    try:
        request = next(script)
        while True:
            if isinstance(request, Piece):
                yield request
                request = next(script)
                continue
            try:
                result = _do(kernel, request)
            except SyscallError as error:
                request = script.throw(error)
            else:
                request = script.send(result)
    except StopIteration:
        ended = True
    except SyscallError:
        ended = True
        raise
    finally:
        if not ended:
            try:
                _interrupt(kernel, pid)  # while the script still has the process to itself
            finally:
                script.close()


def _interrupt(kernel: blocking.Client, pid: int) -> None:
    try:
        kernel(Kill(pid, Signal.INT), timeout=CLEANUP_SECONDS)
    except SyscallError as error:
        if error.errno not in (Errno.ESRCH, Errno.EPIPE):  # it has gone: nothing left to interrupt
            raise

"""Scripts: what a program does, apart from how it waits.

A script is a generator that yields system calls and is sent their results ("sans I/O", like h11 and wsproto), so that one
text serves the blocking and the asynchronous face. A stream is a script that also yields pieces of text for its consumer.
A call's error, Ctrl-C and cancellation are raised in the script where it waits; it may make calls to clean up before it
passes them on.

    def grow(pid):                         # a script
        yield from ask(Feed(pid, [1, 2]))
        answer = yield from ask(Decode(pid, 8))
        return answer.tokens
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar, cast

from llmasos.syscalls import blocking
from llmasos.syscalls.calls import Overdue
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Signal
from llmasos.syscalls.table import Call, Kill, Read, Wait
from llmasos.userland.sdk.public import escaped
from llmasos.userland.sdk.streams import TextStream
from llmasos.userland.sdk.tool_calls import BadCall, ToolCall

R = TypeVar("R")
S = TypeVar("S")
P = TypeVar("P", bound="Owned")
T = TypeVar("T")

MAX_TOGETHER = 64  # calls of one `together` in flight at once, for a blocking program
GRACE_SECONDS = 0.25  # for the answer to a call that has a time of its own in the kernel
CLEANUP_SECONDS = 1.0  # a program that is being cancelled waits no longer than this for the kernel


@dataclass(slots=True, frozen=True)
class Together:
    """Calls to make at once. The result is the list of their results; the first error, if any, is raised."""

    calls: Sequence[Call[Any]]


@dataclass(slots=True, frozen=True)
class Piece:
    """A piece of an answer, for the consumer of a stream."""

    text: str
    kind: Literal["thought", "answer", "call"] = "answer"
    call: ToolCall | BadCall | None = None  # of kind "call": the call of a tool, or the text that is none and why


@dataclass(slots=True, frozen=True)
class Listener:
    """Asks the runner of the script for a function that says whether its consumer has left it, so that it is about to
    end."""


Clock = Callable[[], float | None]  # the seconds that are left; None: no bound
Request = Call[Any] | Together | Listener
Script = Generator[Request, Any, T]
Stream = Generator[Request | Piece, Any, T]


def ask(call: Call[R]) -> Generator[Call[Any], Any, R]:
    """Make one call."""
    return cast(R, (yield call))


def together(calls: Sequence[Call[R]]) -> Generator[Together, Any, list[R]]:
    """Make calls at once, so that the kernel can batch what they ask for."""
    return cast(list[R], (yield Together(calls)))


def interrupt(pid: int) -> Script[None]:
    """Interrupt a decode that has lost its consumer, and wait until it has ended, so that the next caller finds the
    process idle. Gives up on a process that has ended, and after CLEANUP_SECONDS."""
    until = time.monotonic() + CLEANUP_SECONDS
    try:
        yield from ask(Kill(pid, Signal.INT))
        while (left := until - time.monotonic()) > 0:
            found = yield from ask(Read(pid, -1, timeout=left))
            if not found.decoding:
                return
    except SyscallError as error:
        if error.errno not in (Errno.ESRCH, Errno.EPIPE, Errno.ETIME):
            raise


# --- time ---------------------------------------------------------------------------------------------------------------


class OutOfTime(BaseException):
    """The `timeout` of a script is over. It is raised in the script as Ctrl-C is, which then cleans up as it does
    then."""


@contextmanager
def bounded(kernel: Any, timeout: float | None) -> Iterator[float | None]:
    """Around a script: gives the time (of time.monotonic) at which it must be done, None: never. What leaves it as
    OutOfTime is SyscallError ETIME outside, and any other error is a SyscallError too."""
    bound = None if timeout is None else seconds(timeout)
    try:
        yield None if bound is None else time.monotonic() + bound
    except OutOfTime:
        done = "what ran for it in the kernel has been cancelled"
        if kernel.away:
            done = "the kernel has died and no other has come yet; what it did for this will be cancelled in that one"
        raise SyscallError(Errno.ETIME, f"not done within {bound:g} s; {done}") from None
    except SyscallError:
        raise
    except Exception as error:  # a fault of ours, told as such
        raise escaped(error) from error


def seconds(timeout: float, what: str = "timeout") -> float:
    """A `timeout` as seconds. Raises EINVAL for what is none."""
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0 or math.isinf(timeout):
        none = " (None: no bound)" if what == "timeout" else ""
        raise SyscallError(Errno.EINVAL, f"{what}: wanted seconds, 0 or more{none}, found {timeout!r:.60}")
    return float(timeout)


def countdown(timeout: float | None) -> Clock:
    """What is left of a `timeout` that several scripts share."""
    if timeout is None:
        return lambda: None
    until = time.monotonic() + seconds(timeout)
    return lambda: max(0.0, until - time.monotonic())


def left_until(until: float) -> float:
    """The seconds until then. Raises OutOfTime when there are none."""
    left = until - time.monotonic()
    if left <= 0.0:
        raise OutOfTime
    return left


def check_time(error: SyscallError, until: float | None) -> None:
    """Raise OutOfTime if a call has failed because the script's time is over, and not one of its own."""
    if until is not None and isinstance(error, Overdue):
        raise OutOfTime from None


@contextmanager
def cleaning() -> Iterator[None]:
    """Around the end of a script that cleans up. EPIPE does not leave it: with nobody to clean up with, what has
    interrupted the script is what its caller is to hear."""
    try:
        yield
    except StopIteration:
        pass
    except SyscallError as error:
        if error.errno is not Errno.EPIPE:
            raise


# --- the blocking face (script_async.py is the other) ------------------------------------------------------------------


def _do(kernel: Callable[..., Any], request: Request, until: float | None = None) -> Any:
    if isinstance(request, Listener):
        return _stays
    calling = kernel if until is None else partial(kernel, timeout=left_until(until))
    try:
        if not isinstance(request, Together):
            return calling(request)
        if len(request.calls) <= 1:
            return [calling(call) for call in request.calls]
        pool = ThreadPoolExecutor(min(len(request.calls), MAX_TOGETHER), "llmasos-call")
        try:
            return list(pool.map(calling, request.calls))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C: nobody wants what the calls bring
    except SyscallError as error:
        check_time(error, until)
        raise


class Parting:
    """The time that a script has to clean up: CLEANUP_SECONDS in all (`unbounded`: as long as the kernel takes), and no
    next kernel is waited for."""

    def __init__(self, kernel: Any, *, unbounded: bool = False) -> None:
        self.kernel = kernel
        self._until = None if unbounded else time.monotonic() + CLEANUP_SECONDS

    def how(self) -> dict[str, Any]:
        """How its calls are made. Raises EPIPE in a fork: what there is to clean up is the parent's."""
        if not self.kernel.origin.here:
            raise SyscallError(Errno.EPIPE, "the connection is the parent's")
        return {"timeout": None if self._until is None else max(0.0, self._until - time.monotonic()), "patient": False}

    def failed(self, call: Call[Any], error: SyscallError) -> None:
        """A call has failed. If no kernel runs, the end of a decode or process is left to the next one. Else raises;
        EPIPE if the kernel takes too long: then as well there is nobody to clean up with."""
        if error.errno is Errno.EPIPE and self.kernel.away and isinstance(call, Kill | Wait):
            self.kernel.post(call)
        elif isinstance(error, Overdue):
            raise SyscallError(Errno.EPIPE, error.reason) from None
        else:
            raise error


class _Parting(Parting):
    def __call__(self, call: Call[Any]) -> Any:
        try:
            return self.kernel(call, **self.how())
        except SyscallError as error:
            self.failed(call, error)


class Owned(Protocol):
    """A handle on a process that its `with` ends."""

    pid: int

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def each(kernel: blocking.Client, begin: Callable[[S], P], finish: Callable[[P, S], T], items: Sequence[S]) -> list[T]:
    """For each item `begin` a process, `finish` what it is for, and end it; the results, in the order of the items. At
    most MAX_TOGETHER work at once. After the first error, or Ctrl-C, all processes are ended and it is raised."""
    working: list[P] = []
    over = threading.Event()

    def one(item: S) -> T:
        with begin(item) as process:
            working.append(process)
            if over.is_set():
                raise SyscallError(Errno.ESRCH, f"process {process.pid} is not wanted any more")
            return finish(process, item)

    if len(items) <= 1:
        return [one(item) for item in items]
    pool = ThreadPoolExecutor(min(len(items), MAX_TOGETHER), "llmasos-each")
    try:
        found = list(pool.map(one, items))
    except BaseException:
        over.set()
        pool.shutdown(wait=False, cancel_futures=True)
        for process in working:
            process.__exit__(None, None, None)
        pool.shutdown(wait=not kernel.away)  # the threads would wait for the next kernel, and their caller with them
        raise
    pool.shutdown()
    return found


def _stays() -> bool:
    """A generator ends as soon as its consumer leaves it, so the answer is always no."""
    return False


def run(kernel: blocking.Client, script: Script[T], timeout: float | None = None) -> T:
    """Run a script to its result. After `timeout` seconds it cleans up, and ETIME is raised."""
    with bounded(kernel, timeout) as until:
        try:
            request = next(script)
            while True:
                try:
                    result = _do(kernel, request, until)
                except SyscallError as error:
                    request = script.throw(error)
                except BaseException as error:  # Ctrl-C, no more time
                    _finish(_Parting(kernel), script, script.throw(error))
                    raise
                else:
                    request = script.send(result)
        except StopIteration as end:
            return cast(T, end.value)
        finally:
            script.close()  # Ctrl-C between two calls


def stream(
    kernel: blocking.Client, script: Stream[T], pid: int, timeout: float | None = None, holds: object = None
) -> Generator[str, None, None]:
    """The answer's text of a stream, piece by piece; see `pieces`."""
    return TextStream(_text(_pieces(kernel, script, pid, timeout)), holds)


def pieces(
    kernel: blocking.Client, script: Stream[T], pid: int, timeout: float | None = None, holds: object = None
) -> Generator[Piece, None, None]:
    """The pieces of a stream. A consumer that leaves it interrupts the decode of process `pid`; so do `timeout` seconds,
    after which ETIME is raised. What it `holds` is not dropped before it is."""
    return TextStream(_pieces(kernel, script, pid, timeout), holds)


def _text(all_of_it: Generator[Piece, None, None]) -> Generator[str, None, None]:
    with closing(all_of_it):
        for piece in all_of_it:
            if piece.kind == "answer":
                yield piece.text


def _pieces(kernel: blocking.Client, script: Stream[T], pid: int, timeout: float | None) -> Generator[Piece, None, None]:
    ended = False
    with bounded(kernel, timeout) as until:
        try:
            request = next(script)
            while True:
                if isinstance(request, Piece):
                    yield request
                    request = next(script)
                    continue
                try:
                    result = _do(kernel, request, until)
                except SyscallError as error:
                    request = script.throw(error)
                except BaseException as error:  # Ctrl-C, no more time: the script takes back a turn that it has not fed
                    ended, left = True, _Parting(kernel)
                    try:
                        _cleaned_up(left, interrupt(pid))
                    finally:
                        _finish(left, script, script.throw(error))
                    raise
                else:
                    request = script.send(result)
        except StopIteration:
            ended = True
        except SyscallError:
            ended = True
            raise
        finally:
            try:
                if not ended:
                    _cleaned_up(_Parting(kernel), interrupt(pid))  # while the script still has the process to itself
            finally:
                script.close()


def _finish(kernel: _Parting, script: Stream[Any], request: Request | Piece) -> None:
    """Let an interrupted script clean up; raises what the script raises, but for EPIPE."""
    with cleaning():
        while True:
            try:
                result = None if isinstance(request, Piece) else _do(kernel, request)
            except SyscallError as error:
                request = script.throw(error)
            else:
                request = script.send(result)


def _cleaned_up(kernel: _Parting, script: Script[None]) -> None:
    """Run a script that is nothing but cleaning up."""
    with cleaning():
        _finish(kernel, script, next(script))


def end(kernel: blocking.Client, script: Script[None]) -> None:
    """Run a script that ends what this program leaves. Where no kernel runs, the next one does it."""
    _cleaned_up(_Parting(kernel, unbounded=True), script)

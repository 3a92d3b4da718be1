"""Running scripts (script.py) under an event loop, in a file of its own, so that a program without one imports none."""

from __future__ import annotations

import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from typing import Any, TypeVar, cast

import anyio

from llmasos.syscalls import client
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.loops import undisturbed
from llmasos.syscalls.table import Call
from llmasos.userland.sdk.script import (
    MAX_TOGETHER,
    Listener,
    Parting,
    Piece,
    Request,
    Script,
    Stream,
    Together,
    bounded,
    check_time,
    cleaning,
    interrupt,
    left_until,
)
from llmasos.userland.sdk.streams_async import AsyncStream, Talker

P = TypeVar("P", bound=AbstractAsyncContextManager[Any, None])
S = TypeVar("S")
T = TypeVar("T")


class _Parting(Parting):
    async def __call__(self, call: Call[Any]) -> Any:
        try:
            return await self.kernel(call, **self.how())
        except SyscallError as error:
            self.failed(call, error)


async def _do(kernel: Callable[..., Awaitable[Any]], request: Request, until: float | None = None) -> Any:
    if isinstance(request, Listener):
        return _stays
    calling = kernel if until is None else partial(kernel, timeout=left_until(until))
    try:
        if isinstance(request, Together):
            return await _together(calling, request)
        return await calling(request)
    except SyscallError as error:
        check_time(error, until)
        raise


async def _together(calling: Callable[[Call[Any]], Awaitable[Any]], request: Together) -> list[Any]:
    results: list[Any] = [None] * len(request.calls)
    errors: list[SyscallError] = []

    async def one(index: int, call: Call[Any]) -> None:
        try:
            results[index] = await calling(call)
        except SyscallError as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        for index, call in enumerate(request.calls):
            group.start_soon(one, index, call)
    if errors:
        raise errors[0]
    return results


async def each(
    kernel: client.Client, begin: Callable[[S], Awaitable[P]], finish: Callable[[P, S], Awaitable[T]], items: Sequence[S]
) -> list[T]:
    """For each item `begin` a process, `finish` what it is for, and end it; the results, in the order of the items. At
    most MAX_TOGETHER work at once. After the first error all processes are ended and it is raised. (script.each needs the
    kernel.)"""

    async def one(item: S) -> T:
        async with await begin(item) as process:
            return await finish(process, item)

    if len(items) <= 1:
        return [await one(item) for item in items]
    results: dict[int, T] = {}
    errors: list[Exception] = []
    places = anyio.CapacityLimiter(MAX_TOGETHER)
    async with anyio.create_task_group() as group:

        async def keep(index: int, item: S) -> None:
            try:
                async with places:
                    results[index] = await one(item)
            except Exception as error:  # raised when all have ended
                errors.append(error)
                group.cancel_scope.cancel()

        for index, item in enumerate(items):
            group.start_soon(keep, index, item)
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(items))]


def _stays() -> bool:
    return False


async def run(kernel: client.Client, script: Script[T], timeout: float | None = None) -> T:
    """Run a script to its result. After `timeout` seconds it cleans up, and ETIME is raised."""
    with bounded(kernel, timeout) as until:
        try:
            request = next(script)
            while True:
                try:
                    result = await _do(kernel, request, until)
                except SyscallError as error:
                    request = script.throw(error)
                except BaseException as error:
                    await undisturbed(partial(_finish, _Parting(kernel), script, script.throw(error)))
                    raise
                else:
                    request = script.send(result)
        except StopIteration as end:
            return cast(T, end.value)
        finally:
            script.close()


async def _finish(kernel: _Parting, script: Stream[Any], request: Request | Piece) -> None:
    """Let a cancelled script clean up; raises what the script raises, but for EPIPE."""
    with cleaning():
        while True:
            try:
                result = None if isinstance(request, Piece) else await _do(kernel, request)
            except SyscallError as error:
                request = script.throw(error)
            else:
                request = script.send(result)


def stream(
    kernel: client.Client, script: Stream[T], pid: int, timeout: float | None = None, holds: Talker | None = None
) -> AsyncGenerator[str, None]:
    """The answer's text of a stream, piece by piece; see `pieces`."""
    heard: list[weakref.ref[Any]] = []
    told = AsyncStream(_text(_pieces(kernel, script, pid, heard, timeout)), holds)
    heard.append(weakref.ref(told))
    return told


def pieces(
    kernel: client.Client, script: Stream[T], pid: int, timeout: float | None = None, holds: Talker | None = None
) -> AsyncGenerator[Piece, None]:
    """The pieces of a stream. A consumer that leaves it, or is cancelled, interrupts the decode of process `pid`; so do
    `timeout` seconds, after which ETIME is raised. What it `holds` is not dropped before it is."""
    # A stream knows what its consumer holds. One that leaves an `async for` drops it, and the event loop closes it a
    # moment later.
    heard: list[weakref.ref[Any]] = []
    told = AsyncStream(_pieces(kernel, script, pid, heard, timeout), holds)
    heard.append(weakref.ref(told))
    return told


async def _text(all_of_it: AsyncGenerator[Piece, None]) -> AsyncGenerator[str, None]:
    async with aclosing(all_of_it):
        async for piece in all_of_it:
            if piece.kind == "answer":
                yield piece.text


async def _pieces(
    kernel: client.Client, script: Stream[T], pid: int, heard: Sequence[weakref.ref[Any]], timeout: float | None
) -> AsyncGenerator[Piece, None]:
    ended = False
    with bounded(kernel, timeout) as until:
        try:
            request = next(script)
            while True:
                if isinstance(request, Piece):
                    yield request
                    request = next(script)
                    continue
                if isinstance(request, Listener):
                    request = script.send(lambda: heard[0]() is None)
                    continue
                try:
                    result = await _do(kernel, request, until)
                except SyscallError as error:
                    request = script.throw(error)
                except BaseException as error:
                    ended, left = True, _Parting(kernel)
                    try:
                        await undisturbed(partial(_cleaned_up, left, interrupt(pid)))
                    finally:
                        await undisturbed(partial(_thrown, left, script, error))
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
                    await undisturbed(
                        partial(_cleaned_up, _Parting(kernel), interrupt(pid))
                    )  # while the script still has the process to itself
            finally:
                script.close()


async def _thrown(kernel: _Parting, script: Stream[Any], error: BaseException) -> None:
    await _finish(kernel, script, script.throw(error))


async def _cleaned_up(kernel: _Parting, script: Script[None]) -> None:
    """Run a script that is nothing but cleaning up."""
    with cleaning():
        await _finish(kernel, script, next(script))


async def end(kernel: client.Client, script: Script[None]) -> None:
    """Run a script that ends what this program leaves, whatever is cancelled. Where no kernel runs, the next one does
    it."""
    await undisturbed(partial(_cleaned_up, _Parting(kernel, unbounded=True), script))

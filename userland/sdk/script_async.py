"""Running scripts (script.py) in a trio program, in a file of its own, so that a program without trio does not import
it."""

from __future__ import annotations

import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from typing import Any, TypeVar, cast

import trio

from llmasos.syscalls import client
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.table import Call
from llmasos.userland.sdk.script import (
    CLEANUP_SECONDS,
    MAX_TOGETHER,
    Listener,
    Piece,
    Request,
    Script,
    Stream,
    Together,
    interrupt,
)

P = TypeVar("P", bound=AbstractAsyncContextManager[Any, None])
S = TypeVar("S")
T = TypeVar("T")
Y = TypeVar("Y")


async def _do(kernel: client.Client, request: Request) -> Any:
    if isinstance(request, Listener):
        return _stays
    if not isinstance(request, Together):
        return await kernel(request)
    results: list[Any] = [None] * len(request.calls)
    errors: list[SyscallError] = []

    async def one(index: int, call: Call[Any]) -> None:
        try:
            results[index] = await kernel(call)
        except SyscallError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for index, call in enumerate(request.calls):
            nursery.start_soon(one, index, call)
    if errors:
        raise errors[0]
    return results


async def each(begin: Callable[[S], Awaitable[P]], finish: Callable[[P, S], Awaitable[T]], items: Sequence[S]) -> list[T]:
    """For each item `begin` a process, `finish` what it is for, and end it; the results, in the order of the items. At
    most MAX_TOGETHER work at once. After the first error all processes are ended and it is raised."""

    async def one(item: S) -> T:
        async with await begin(item) as process:
            return await finish(process, item)

    if len(items) <= 1:
        return [await one(item) for item in items]
    results: dict[int, T] = {}
    errors: list[SyscallError] = []
    places = trio.CapacityLimiter(MAX_TOGETHER)
    async with trio.open_nursery() as nursery:

        async def keep(index: int, item: S) -> None:
            try:
                async with places:
                    results[index] = await one(item)
            except SyscallError as error:
                errors.append(error)
                nursery.cancel_scope.cancel()

        for index, item in enumerate(items):
            nursery.start_soon(keep, index, item)
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(items))]


def _stays() -> bool:
    return False


async def run(kernel: client.Client, script: Script[T]) -> T:
    """Run a script to its result."""
    try:
        request = next(script)
        while True:
            try:
                result = await _do(kernel, request)
            except SyscallError as error:
                request = script.throw(error)
            except BaseException as error:
                request = script.throw(error)
                with _cleanup():
                    await _finish(kernel, script, request)
                raise
            else:
                request = script.send(result)
    except StopIteration as end:
        return cast(T, end.value)
    finally:
        script.close()


async def _finish(kernel: client.Client, script: Stream[Any], request: Request | Piece) -> None:
    """Let a cancelled script clean up; raises what the script raises."""
    with suppress(StopIteration):
        while True:
            try:
                result = None if isinstance(request, Piece) else await _do(kernel, request)
            except SyscallError as error:
                request = script.throw(error)
            else:
                request = script.send(result)


def stream(kernel: client.Client, script: Stream[T], pid: int) -> AsyncGenerator[str, None]:
    """The answer's text of a stream, piece by piece; see `pieces`."""
    heard: list[weakref.ref[Any]] = []
    return _told(heard, _text(_pieces(kernel, script, pid, heard)))


def pieces(kernel: client.Client, script: Stream[T], pid: int) -> AsyncGenerator[Piece, None]:
    """The pieces of a stream. A consumer that leaves it, or is cancelled, interrupts the decode of process `pid`."""
    heard: list[weakref.ref[Any]] = []
    return _told(heard, _pieces(kernel, script, pid, heard))


def _told(heard: list[weakref.ref[Any]], generator: AsyncGenerator[Y, None]) -> AsyncGenerator[Y, None]:
    """Let a stream know which generator its consumer holds. A consumer that leaves an `async for` drops the generator,
    and trio closes it a moment later."""
    heard.append(weakref.ref(generator))
    return generator


async def _text(all_of_it: AsyncGenerator[Piece, None]) -> AsyncGenerator[str, None]:
    async with aclosing(all_of_it):
        async for piece in all_of_it:
            if piece.kind == "answer":
                yield piece.text


async def _pieces(
    kernel: client.Client, script: Stream[T], pid: int, heard: Sequence[weakref.ref[Any]]
) -> AsyncGenerator[Piece, None]:
    ended = False
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
                result = await _do(kernel, request)
            except SyscallError as error:
                request = script.throw(error)
            except BaseException as error:
                ended = True
                with _cleanup():
                    try:
                        await run(kernel, interrupt(pid))
                    finally:
                        await _finish(kernel, script, script.throw(error))
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
                with _cleanup():
                    await run(kernel, interrupt(pid))  # while the script still has the process to itself
        finally:
            script.close()


def _cleanup() -> trio.CancelScope:
    return trio.CancelScope(shield=True, deadline=trio.current_time() + CLEANUP_SECONDS)

"""Running scripts (script.py) in a trio program. Apart from it, so that a program without trio does not import it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeVar, cast

import trio

from syscalls import client
from syscalls.errno import Errno, SyscallError
from syscalls.records import Signal
from syscalls.table import Call, Kill
from userland.sdk.script import CLEANUP_SECONDS, Piece, Script, Stream, Together

T = TypeVar("T")


async def _do(kernel: client.Client, request: Call[Any] | Together) -> Any:
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
                with trio.CancelScope(shield=True, deadline=trio.current_time() + CLEANUP_SECONDS):
                    await _finish(kernel, script, request)
                raise
            else:
                request = script.send(result)
    except StopIteration as end:
        return cast(T, end.value)


async def _finish(kernel: client.Client, script: Script[Any], request: Call[Any] | Together) -> None:
    """The cleanup of a script that was cancelled; ends with what the script raises."""
    try:
        while True:
            try:
                result = await _do(kernel, request)
            except SyscallError as error:
                request = script.throw(error)
            else:
                request = script.send(result)
    except StopIteration:
        return


async def stream(kernel: client.Client, script: Stream[T], pid: int) -> AsyncGenerator[str, None]:
    """The answer's text of a stream, piece by piece; see `pieces`."""
    async with aclosing(pieces(kernel, script, pid)) as all_of_it:
        async for piece in all_of_it:
            if piece.kind == "answer":
                yield piece.text


async def pieces(kernel: client.Client, script: Stream[T], pid: int) -> AsyncGenerator[Piece, None]:
    """The pieces of a stream; a consumer that is cancelled, or closes it, interrupts the decode of process `pid`."""
    ended = False
    try:
        request = next(script)
        while True:
            if isinstance(request, Piece):
                yield request
                request = next(script)
                continue
            try:
                result = await _do(kernel, request)
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
                with trio.CancelScope(shield=True, deadline=trio.current_time() + CLEANUP_SECONDS):
                    await kernel(Kill(pid, Signal.INT))  # while the script still has the process to itself
            except SyscallError as error:
                if error.errno not in (Errno.ESRCH, Errno.EPIPE):
                    raise
            finally:
                script.close()

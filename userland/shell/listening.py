"""An answer as the shell hears it: the SDK's stream, but leaving it does not interrupt the process.

After Ctrl-Z the process is stopped and its answer goes on at `fg`; so who leaves an answer decides what becomes of it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from llmasos.syscalls.blocking import Client
from llmasos.syscalls.errno import SyscallError
from llmasos.userland.sdk.script import Piece, Request, Script, Stream, run


def stream(kernel: Client, answer: Stream[Any]) -> Generator[Piece, None, None]:
    """The pieces of an answer that is under way."""
    try:
        request = next(answer)
        while True:
            if isinstance(request, Piece):
                yield request
                request = next(answer)
                continue
            try:
                result = run(kernel, _once(request))
            except SyscallError as error:
                request = answer.throw(error)
            else:
                request = answer.send(result)
    except StopIteration:
        return
    finally:
        answer.close()


def _once(request: Request) -> Script[Any]:
    return (yield request)

"""A socket for files of a kernel in the test's own process, and what programs say to it."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trio
import trio.testing

from llmasos.kernel.edge.files import Files
from llmasos.kernel.edge.listening import Reach
from llmasos.syscalls import shown
from llmasos.syscalls.showing import Attempt, Showing
from llmasos.syscalls.shown import File, Kept, Show, Whole
from llmasos.syscalls.table import Call, Names, Spawn
from tests.booted import PATIENCE

ME = os.getuid()
USES: dict[Names, Any] = {Names.MODEL: "model", Names.FILE: "file", Names.TARGET: "target"}


@asynccontextmanager
async def serving(place: Path, used: set[str] | None = None) -> AsyncIterator[Files]:
    """A socket for files at `place/sock`; copies are in `place/files`."""
    served = Files(place / "files", lambda: used or set())
    served.listen(place / "sock", Reach(0o666))
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.run)
            try:
                yield served
            finally:
                nursery.cancel_scope.cancel()
                served.close()


def peer(number: int = 1, *, os_pid: int = 0, uid: int = ME, host: str = "") -> Any:
    return SimpleNamespace(number=number, os_pid=os_pid or os.getpid(), uid=uid, host=host)


class Raw:
    """What a program says to that socket, whatever it likes."""

    def __init__(self, place: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(os.fspath(place / "sock"))

    def say(self, message: shown.ToKernel | bytes, *descriptors: int) -> None:
        data = message if isinstance(message, bytes) else shown.framed(message)
        with suppress(BrokenPipeError):  # it is refused already
            socket.send_fds(self.socket, [data], list(descriptors))

    def answer(self) -> shown.FromKernel | None:
        with suppress(ConnectionResetError):
            if head := self.socket.recv(4, socket.MSG_WAITALL):
                return shown.from_kernel(self.socket.recv(shown.LENGTH.unpack(head)[0], socket.MSG_WAITALL))
        return None


def show(
    place: Path, what: Names, *descriptors: int, name: str = "file", first: str | None = "file"
) -> shown.FromKernel | None:
    raw = Raw(place)
    with raw.socket:
        raw.say(Show(USES[what], "name"))
        for number, descriptor in enumerate(descriptors):
            raw.say(File(f"{name}{number or ''}"), descriptor)
            if not isinstance(answer := raw.answer(), Kept):
                return answer
        raw.say(Whole(first if what is Names.MODEL and len(descriptors) == 1 else None))
        return raw.answer()


@contextmanager
def opened(path: str | Path, flags: int) -> Any:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def model_at(place: Path, **contents: bytes) -> Path:
    place.mkdir()
    for name, data in (contents or {"config": b"{}", "weights": b"w" * 5000}).items():
        (place / f"{name}.json").write_bytes(data)
    return place


def contents(path: str) -> bytes:
    return Path(path).read_bytes()


def attempt(place: Path, call: Call[Any]) -> Attempt:
    tried = Attempt(Showing(place / "sock"), call, None)
    tried.run()
    return tried


def plain(place: Path) -> Path:
    (place / "plain").write_bytes(b"x")
    return place / "plain"


def taken_of(served: Files, place: Path, model: Path, number: int = 1) -> Path:
    named, _ = served.named(peer(), number, attempt(place, Spawn(os.fspath(model))).call)
    assert isinstance(named, Spawn)
    return Path(named.model)

"""Files of file systems that never answer: they hold up their user only."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from llmasos.kernel.edge import user_io
from llmasos.syscalls import shown
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.shown import Denied, File, Show, Taken
from llmasos.syscalls.table import Names
from tests import leftovers
from tests.booted import PATIENCE
from tests.doorway import apart, until
from tests.shown_files import ME, Raw, opened, plain, serving, show


def test_a_file_whose_file_system_never_answers_holds_up_its_user_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_io, "LEAST_SECONDS", 0.05)
    never = threading.Event()

    async def main() -> None:
        async with serving(tmp_path) as served:
            with opened(plain(tmp_path), os.O_RDONLY) as descriptor:
                for _ in range(3):  # two threads hang, and then there are no more for this user
                    with pytest.raises(SyscallError, match="its file system took longer") as caught:
                        await served._io.run(7, descriptor, 0, lambda own: never.wait())
                    assert caught.value.errno is Errno.ETIME
                monkeypatch.setattr(user_io, "LEAST_SECONDS", PATIENCE)  # its thread may get the processor late
                assert await served._io.run(8, descriptor, 0, lambda own: os.read(own, 1)) == b"x"
                never.set()
                found: list[bytes] = []
                while not found:
                    with suppress(SyscallError):
                        found.append(await served._io.run(7, descriptor, 0, lambda own: os.pread(own, 1, 0)))

    trio.run(main)


def test_a_file_that_its_file_system_does_not_let_be_closed_holds_up_its_user_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_io, "LEAST_SECONDS", 0.2)
    monkeypatch.setattr(user_io, "MOST_CLOSING", 0)
    never, close, main_thread = threading.Event(), os.close, threading.get_ident()
    shown_file = plain(tmp_path)
    own: list[int] = []

    def flushing(descriptor: int) -> None:
        """As of FUSE, of which each close asks whoever serves it."""
        if descriptor not in own and os.path.realpath(f"/proc/self/fd/{descriptor}") == os.fspath(shown_file):
            assert threading.get_ident() != main_thread
            never.wait()
        close(descriptor)

    async def main() -> None:
        async with serving(tmp_path) as served:
            before = leftovers.opened()
            with Raw(tmp_path).socket as mine:
                with opened(shown_file, os.O_RDONLY) as descriptor:
                    own.append(descriptor)
                    monkeypatch.setattr(os, "close", flushing)  # before it is shown: it may be closed at once
                    first = shown.framed(Show("model", ""))
                    await apart(lambda: socket.send_fds(mine, [first], [descriptor]))
                own.clear()
                await until(lambda: ME in served._io.closing)
                assert isinstance(await apart(lambda: show(tmp_path, Names.MODEL)), Denied)
                served._io.close(ME + 1, os.open(os.devnull, os.O_RDONLY))
                await until(lambda: list(served._io.closing) == [ME])
            never.set()
            await until(lambda: not served._io.closing)
            monkeypatch.undo()
            await until(lambda: not leftovers.new(before))

    trio.run(main)


def test_without_a_thread_for_it_a_file_is_refused_and_closed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        async with serving(tmp_path) as served:
            before = leftovers.opened()
            with opened(plain(tmp_path), os.O_RDONLY) as descriptor:
                raw = await apart(lambda: Raw(tmp_path))
                with raw.socket, monkeypatch.context() as patched:
                    await apart(lambda: (raw.say(Show("model", "")), raw.say(File("file"), descriptor)))
                    patched.setattr(trio.lowlevel, "start_thread_soon", none)
                    await until(lambda: ME in served._io.unclosed)
                answer = await apart(lambda: show(tmp_path, Names.MODEL, descriptor))
            assert isinstance(answer, Taken), "the next is served"
            served._io.close_again()
            await until(lambda: not served._io.closing)
            await until(lambda: len(leftovers.new(before)) <= 1)

    trio.run(main)

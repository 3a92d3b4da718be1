"""What is shown to a shared kernel: which descriptors it takes, and what it makes of other messages."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from llmasos.kernel.edge.listening import Reach
from llmasos.syscalls import shown
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.shown import Denied, File, Show, Taken, Whole
from llmasos.syscalls.table import Names
from tests import leftovers
from tests.doorway import apart, until
from tests.shown_files import Raw, opened, plain, serving, show


def _fifo(place: Path) -> Path:
    os.mkfifo(place / "fifo")
    return place / "fifo"


DESCRIPTORS: dict[str, tuple[Callable[[Path], str | Path], int, str]] = {
    "fifo": (_fifo, os.O_RDWR | os.O_NONBLOCK, "it is a fifo"),
    "device": (lambda place: "/dev/zero", os.O_RDONLY, "it is a device"),
    "directory": (lambda place: place, os.O_RDONLY, "it is a directory"),
    "path": (plain, os.O_PATH, "O_PATH"),
    "written": (plain, os.O_WRONLY, "opened for writing only"),
}


@pytest.mark.parametrize("what", [Names.MODEL, Names.FILE])
@pytest.mark.parametrize("kind", DESCRIPTORS)
def test_a_descriptor_of_anything_but_a_readable_file_is_refused(tmp_path: Path, kind: str, what: Names) -> None:
    make, flags, said = DESCRIPTORS[kind]

    async def main() -> None:
        async with serving(tmp_path):
            with opened(make(tmp_path), flags) as descriptor:
                found = await apart(lambda: show(tmp_path, what, descriptor))
            assert isinstance(found, Denied)
            assert (found.errno, said in found.reason) == (Errno.EPERM, True)

    trio.run(main)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY | os.O_APPEND, os.O_PATH])
def test_a_file_that_cannot_be_written_from_its_beginning_is_no_target(tmp_path: Path, flags: int) -> None:
    async def main() -> None:
        async with serving(tmp_path):
            with opened(plain(tmp_path), flags) as descriptor:
                found = await apart(lambda: show(tmp_path, Names.TARGET, descriptor))
            assert isinstance(found, Denied)
            assert found.errno is Errno.EPERM

    trio.run(main)


def test_a_socket_is_refused_and_so_is_a_message_of_another_form(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path):
            one, other = socket.socketpair()
            with one, other:
                found = await apart(lambda: show(tmp_path, Names.MODEL, one.fileno()))
            assert isinstance(found, Denied)
            for message in (
                shown.LENGTH.pack(1 << 30),
                shown.LENGTH.pack(3) + b"\xc1\xc1\xc1",
                shown.framed(File("f")),
                shown.framed(Show("group", "")),  # type: ignore[arg-type]
                shown.framed(Show("model", "")) + shown.framed(File("f")),  # without a descriptor
                shown.framed(Show("model", "")) + shown.framed(Whole()),
            ):
                raw = Raw(tmp_path)
                with raw.socket:
                    raw.say(message)
                    assert isinstance(await apart(raw.answer), Denied), message

    trio.run(main)


def test_random_bytes_are_refused_and_the_next_is_served(tmp_path: Path) -> None:
    chance = random.Random(7)
    whole = shown.framed(Show("model", "m")) + shown.framed(File("f")) + shown.framed(Whole("f"))

    async def main() -> None:
        async with serving(tmp_path) as served:
            for _ in range(60):
                data = bytearray(whole)
                for _ in range(chance.randrange(1, 6)):
                    data[chance.randrange(len(data))] = chance.randrange(256)
                raw = Raw(tmp_path)
                with raw.socket:
                    raw.say(bytes(data))
                    raw.socket.shutdown(socket.SHUT_WR)
                    await apart(raw.answer)
            await until(lambda: served.budgets()[0].used == 0)
            with opened(plain(tmp_path), os.O_RDONLY) as descriptor:
                assert isinstance(await apart(lambda: show(tmp_path, Names.MODEL, descriptor)), Taken)

    trio.run(main)


def test_more_descriptors_than_one_are_closed_and_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path):
            before = leftovers.opened()
            for count in (2, 20):
                raw = Raw(tmp_path)
                with raw.socket, opened(plain(tmp_path), os.O_RDONLY) as descriptor:
                    raw.say(Show("model", ""))
                    raw.say(File("f"), *[descriptor] * count)
                    assert isinstance(await apart(raw.answer), Denied)
            await until(lambda: not leftovers.new(before))

    trio.run(main)


def test_a_socket_that_was_removed_and_made_again_is_heard(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as served:
            await trio.testing.wait_all_tasks_blocked()
            (tmp_path / "sock").unlink()
            served.listen(tmp_path / "sock", Reach(0o666))
            with opened(plain(tmp_path), os.O_RDONLY) as descriptor:
                assert isinstance(await apart(lambda: show(tmp_path, Names.MODEL, descriptor)), Taken)

    trio.run(main)


def test_descriptors_that_come_with_the_bytes_of_one_message_are_not_gathered(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path):
            before = leftovers.opened()
            raw = Raw(tmp_path)
            with raw.socket, opened(plain(tmp_path), os.O_RDONLY) as descriptor:
                raw.say(shown.LENGTH.pack(shown.MOST_MESSAGE), descriptor)  # of a message that never ends
                raw.say(b"\0", descriptor)
                assert isinstance(found := await apart(raw.answer), Denied)
                assert "more than one descriptor" in found.reason
            await until(lambda: not leftovers.new(before))

    trio.run(main)


@pytest.mark.parametrize("name", ["..", ".", "a/b", "", "x\n", "y" * 256])
def test_a_files_name_is_one_name(tmp_path: Path, name: str) -> None:
    async def main() -> None:
        async with serving(tmp_path):
            with opened(plain(tmp_path), os.O_RDONLY) as descriptor:
                assert isinstance(await apart(lambda: show(tmp_path, Names.MODEL, descriptor, name=name)), Denied)

    trio.run(main)


def test_a_name_that_the_kernels_locale_cannot_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwritten(*_: object, **__: object) -> None:
        raise UnicodeEncodeError("latin-1", "\u20ac", 0, 1, "ordinal not in range(256)")

    async def main() -> None:
        async with serving(tmp_path) as served:
            with opened(plain(tmp_path), os.O_RDONLY) as descriptor, monkeypatch.context() as patched:
                patched.setattr(served._intake, "_whole", unwritten)
                refused = await apart(lambda: show(tmp_path, Names.MODEL, descriptor))
                assert isinstance(refused, Denied)
                assert refused.errno is Errno.EINVAL

    trio.run(main)

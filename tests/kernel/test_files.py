"""Files that users show to a shared kernel: which descriptors it takes, for whom a reference is good, what it keeps."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from llmasos.drivers.protocol import Export
from llmasos.kernel.edge import copies, files
from llmasos.kernel.edge.copies import Copies, Item
from llmasos.kernel.edge.files import Files, Given
from llmasos.kernel.edge.listening import Reach
from llmasos.syscalls import budgets, limits, shown
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import PRINTABLE
from llmasos.syscalls.showing import Attempt, Showing
from llmasos.syscalls.shown import Denied, File, Kept, Show, Taken, Whole
from llmasos.syscalls.table import TABLE, Call, Checkpoint, Names, Restore, Spawn
from tests.booted import PATIENCE
from tests.doorway import apart, until

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


def show(place: Path, what: Names, *descriptors: int, name: str = "file") -> shown.FromKernel | None:
    raw = Raw(place)
    with raw.socket:
        raw.say(Show(USES[what], "name"))
        for number, descriptor in enumerate(descriptors):
            raw.say(File(f"{name}{number or ''}"), descriptor)
            if not isinstance(answer := raw.answer(), Kept):
                return answer
        raw.say(Whole("file" if what is Names.MODEL and len(descriptors) == 1 else None))
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


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def attempt(place: Path, call: Call[Any]) -> Attempt:
    tried = Attempt(Showing(place / "sock"), call, None)
    tried.run()
    return tried


# --- fields -----------------------------------------------------------------------------------------------------------


def test_every_field_that_may_be_a_path_is_one_of_which_the_table_says_so() -> None:
    for entry in TABLE.values():
        known = {touches.field: touches.what for touches in entry.touches}
        for one in msgspec.structs.fields(entry.record):
            meta = next((part for part in getattr(one.type, "__metadata__", ()) if isinstance(part, msgspec.Meta)), None)
            if meta is None or meta.pattern != PRINTABLE or (meta.max_length or 0) < limits.MAX_PATH:
                continue
            files_named = dict(shown.NAMING.get(entry.record, ()))
            group = known.get(one.name) in (Names.GROUP, Names.PLACE, Names.RULED, Names.PARENT) or one.name == "group"
            group |= one.name == "path" and entry.family == "group"
            policy = entry.name == "sched"  # needs ADMIN, which other users' programs do not have
            assert one.name in files_named or group or policy, f"{entry.name}.{one.name}"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("/a/model", "/a/model"),
        ("sim:7b,script=/a/s.toml", "/a/s.toml"),
        ("sim:7b,script=/a/s.toml,vocab=9", "/a/s.toml"),
        ("sim:script=/a,script=/b", "sim:script=/a,script=/b"),  # which of them a driver would take, nobody has to guess
        ("sim/../../etc:1b,script=/a", "sim/../../etc:1b,script=/a"),
    ],
)
def test_what_of_a_models_name_is_a_file(name: str, file: str) -> None:
    assert shown.file_of(name) == file
    assert not shown.SIMULATED.fullmatch(name)


# --- descriptors ------------------------------------------------------------------------------------------------------


def _fifo(place: Path) -> Path:
    os.mkfifo(place / "fifo")
    return place / "fifo"


def _file(place: Path) -> Path:
    (place / "plain").write_bytes(b"x")
    return place / "plain"


DESCRIPTORS: dict[str, tuple[Callable[[Path], str | Path], int, str]] = {
    "fifo": (_fifo, os.O_RDWR | os.O_NONBLOCK, "it is a fifo"),
    "device": (lambda place: "/dev/zero", os.O_RDONLY, "it is a device"),
    "directory": (lambda place: place, os.O_RDONLY, "it is a directory"),
    "path": (_file, os.O_PATH, "O_PATH"),
    "written": (_file, os.O_WRONLY, "opened for writing only"),
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
            with opened(_file(tmp_path), flags) as descriptor:
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
            with opened(_file(tmp_path), os.O_RDONLY) as descriptor:
                assert isinstance(await apart(lambda: show(tmp_path, Names.MODEL, descriptor)), Taken)

    trio.run(main)


def test_more_descriptors_than_one_are_closed_and_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path):
            before = len(os.listdir("/proc/self/fd"))
            for count in (2, 20):
                raw = Raw(tmp_path)
                with raw.socket, opened(_file(tmp_path), os.O_RDONLY) as descriptor:
                    raw.say(Show("model", ""))
                    raw.say(File("f"), *[descriptor] * count)
                    assert isinstance(await apart(raw.answer), Denied)
            await until(lambda: len(os.listdir("/proc/self/fd")) == before)

    trio.run(main)


def test_a_socket_that_was_removed_and_made_again_is_heard(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as served:
            await trio.testing.wait_all_tasks_blocked()
            (tmp_path / "sock").unlink()
            served.listen(tmp_path / "sock", Reach(0o666))
            with opened(_file(tmp_path), os.O_RDONLY) as descriptor:
                assert isinstance(await apart(lambda: show(tmp_path, Names.MODEL, descriptor)), Taken)

    trio.run(main)


def test_descriptors_that_come_with_the_bytes_of_one_message_are_not_gathered(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path):
            before = len(os.listdir("/proc/self/fd"))
            raw = Raw(tmp_path)
            with raw.socket, opened(_file(tmp_path), os.O_RDONLY) as descriptor:
                raw.say(shown.LENGTH.pack(shown.MOST_MESSAGE), descriptor)  # of a message that never ends
                raw.say(b"\0", descriptor)
                assert isinstance(found := await apart(raw.answer), Denied)
                assert "more than one descriptor" in found.reason
            await until(lambda: len(os.listdir("/proc/self/fd")) == before)

    trio.run(main)


@pytest.mark.parametrize("name", ["..", ".", "a/b", "", "x\n", "y" * 256])
def test_a_files_name_is_one_name(tmp_path: Path, name: str) -> None:
    async def main() -> None:
        async with serving(tmp_path):
            with opened(_file(tmp_path), os.O_RDONLY) as descriptor:
                assert isinstance(await apart(lambda: show(tmp_path, Names.MODEL, descriptor, name=name)), Denied)

    trio.run(main)


# --- references -------------------------------------------------------------------------------------------------------


def test_a_reference_is_good_once_for_the_os_process_that_has_shown_it_and_for_its_kind(tmp_path: Path) -> None:
    model = model_at(tmp_path / "model")

    async def main() -> None:
        async with serving(tmp_path) as served:
            call = (await apart(lambda: attempt(tmp_path, Spawn(os.fspath(model))))).call
            image = Restore(call.model)
            strangers = peer(os_pid=1), peer(uid=ME + 1), peer(host="elsewhere")
            for who, tried in [*((one, call) for one in strangers), (peer(), image)]:
                assert served.named(who, 1, tried)[0] == tried  # it stays, and the core refuses it
            named, paths = served.named(peer(), 1, call)
            assert isinstance(named, Spawn)
            assert paths is not None
            assert named.model in paths
            assert served.named(peer(), 2, call)[0] == call

    trio.run(main)


def test_a_reference_that_no_call_has_used_in_time_is_gone_and_so_is_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "REFERENCE_SECONDS", 0.03)

    async def main() -> None:
        async with serving(tmp_path) as served:
            call = (await apart(lambda: attempt(tmp_path, Restore(os.fspath(_file(tmp_path)))))).call
            spool = tmp_path / "files" / copies.SPOOL
            await until(lambda: not list(spool.iterdir()))
            assert served.named(peer(), 1, call)[0] == call

    trio.run(main)


def test_what_a_call_was_shown_stays_until_it_is_answered(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as served:
            spool = tmp_path / "files" / copies.SPOOL
            for end in (lambda: served.answered(1, 7), lambda: served.gone(1)):
                call = (await apart(lambda: attempt(tmp_path, Restore(os.fspath(_file(tmp_path)))))).call
                named, _ = served.named(peer(), 7, call)
                assert isinstance(named, Restore)
                assert contents(named.path) == b"x"
                end()
                await until(lambda: not list(spool.iterdir()))

    trio.run(main)


# --- copies -----------------------------------------------------------------------------------------------------------


def taken_of(served: Files, place: Path, model: Path, number: int = 1) -> Path:
    named, _ = served.named(peer(), number, attempt(place, Spawn(os.fspath(model))).call)
    assert isinstance(named, Spawn)
    return Path(named.model)


def test_a_copy_has_the_same_bytes_under_a_name_that_the_kernel_made_of_them(tmp_path: Path) -> None:
    model, again = model_at(tmp_path / "model"), model_at(tmp_path / "again")

    async def main() -> None:
        async with serving(tmp_path) as served:
            copy = await apart(lambda: taken_of(served, tmp_path, model))
            assert {one.name: one.read_bytes() for one in copy.iterdir()} == {
                one.name: one.read_bytes() for one in model.iterdir()
            }
            manifest = [
                [one.name, hashlib.sha256(one.read_bytes()).hexdigest(), one.stat().st_size] for one in model.iterdir()
            ]
            assert copy.name == sha256(msgspec.json.encode(sorted(manifest)))
            assert await apart(lambda: taken_of(served, tmp_path, again, 2)) == copy
            blobs = tmp_path / "files" / copies.BLOBS
            assert {one.stat().st_ino for one in blobs.iterdir()} == {one.stat().st_ino for one in copy.iterdir()}
            assert {stat.S_IMODE(one.stat().st_mode) for one in copy.iterdir()} == {0o400}
            assert stat.S_IMODE((tmp_path / "files").stat().st_mode) == 0o700

    trio.run(main)


def test_a_file_that_is_cut_or_exchanged_later_is_not_felt(tmp_path: Path) -> None:
    model = model_at(tmp_path / "model")

    async def main() -> None:
        async with serving(tmp_path) as served:
            copy = await apart(lambda: taken_of(served, tmp_path, model))
            os.truncate(model / "weights.json", 0)
            assert (copy / "weights.json").read_bytes() == b"w" * 5000
            assert await apart(lambda: taken_of(served, tmp_path, model, 2)) != copy  # these are other bytes

    trio.run(main)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _file(tmp_path)
    file.write_bytes(b"x" * 3000)
    read = os.pread

    def cut(descriptor: int, size: int, at: int) -> bytes:
        found = read(descriptor, size, at)
        os.truncate(file, 10)
        return found

    with opened(file, os.O_RDONLY) as descriptor:
        stamp = copies.looked_at(descriptor, os.O_RDONLY)
        monkeypatch.setattr(os, "pread", cut)
        with pytest.raises(SyscallError, match="changed while it was read"):
            copies.read_whole(descriptor, stamp, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_nobody_has_what_others_have_shown(tmp_path: Path) -> None:
    model = model_at(tmp_path / "model")

    async def main() -> None:
        async with serving(tmp_path) as served:
            copy = await apart(lambda: taken_of(served, tmp_path, model))
            call: Call[Any] = Spawn(os.fspath(copy))
            assert os.fspath(copy) in (served.named(peer(), 2, call)[1] or ())
            assert served.named(peer(uid=ME + 1), 3, call) == (call, frozenset())

    trio.run(main)


def kept(store: Copies, uid: int, *contents: bytes) -> str:
    """Copies of files with these contents, shown by a user; its path."""
    items = []
    for number, data in enumerate(contents):
        path = store.spool()
        path.write_bytes(data)
        with opened(path, os.O_RDONLY) as descriptor:
            stamp = copies.looked_at(descriptor, os.O_RDONLY)
            copies.remove(store.reserve(uid, len(data)))
            target = store.spool()
            digest = copies.read_whole(descriptor, stamp, target)
            store.take(uid, stamp, digest, target)
            store.unreserve(uid, len(data))
        path.unlink()
        items.append(Item(f"f{number}", digest, len(data)))
    digest = store.link(items)
    copy = store.add(uid, digest, items, "")
    store.note(uid, digest, [""])
    copies.remove(store.release(item.digest for item in items))
    copy.pins -= 1
    return store.path(copy, "")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Any:
    before = budgets.COPIES.owner
    monkeypatch.setattr(copies, "LEAST_FILE", 1)
    monkeypatch.setattr(copies, "LEAST_MODEL", 1)
    object.__setattr__(budgets.COPIES, "owner", 1000)
    yield
    object.__setattr__(budgets.COPIES, "owner", before)


def test_each_who_has_shown_a_copy_pays_for_it_and_what_nothing_uses_makes_room(tmp_path: Path, small: None) -> None:
    used: set[str] = set()
    store = Copies(tmp_path, lambda: used)
    first, second = kept(store, 1, b"a" * 400), kept(store, 1, b"b" * 400)
    assert kept(store, 2, b"a" * 400) == first
    assert (store.charge(1), store.charge(2)) == (800, 400)
    used |= {first}
    third = kept(store, 1, b"c" * 500)  # the second goes, though the first is older
    assert (Path(first).exists(), Path(second).exists(), Path(third).exists()) == (True, False, True)
    used |= {third}
    with pytest.raises(SyscallError, match=r"file copies of user 1: 900 of at most 1,000 bytes are used") as caught:
        store.reserve(1, 200)
    assert caught.value.errno is Errno.EDQUOT
    used -= {first}
    copies.remove(store.reserve(1, 200))
    assert Path(first).exists()  # it is the second user's
    assert set(store.paths_of(1)) == {third}
    assert {one.name for one in (tmp_path / copies.BLOBS).iterdir()} == {
        sha256(data) for data in (b"a" * 400, b"c" * 500)
    }


def test_models_of_empty_files_cost_something_and_so_do_the_same_files_in_many_models(tmp_path: Path) -> None:
    store, empty, large = Copies(tmp_path, set), Item("f", sha256(b""), 0), Item("g", sha256(b"g"), 1 << 30)
    assert copies.charge([empty]) == copies.LEAST_MODEL
    assert copies.charge([empty] * 1000 + [large]) == 1000 * copies.LEAST_FILE + (1 << 30)
    for count in range(budgets.COPIES.owner // copies.LEAST_MODEL):  # none is idle: a call has each
        items = [Item(f"f{count}", sha256(b""), 0)]
        size, _ = store.reserve_model(1, items)
        store.add(1, sha256(msgspec.json.encode(sorted(items))), items, "")
        assert store.reserve_model(1, items) == (0, [])  # he pays once
        store.unreserve(1, size)
    with pytest.raises(SyscallError, match="file copies of user 1") as caught:
        store.reserve_model(1, [empty, large])
    assert caught.value.errno is Errno.EDQUOT
    store.reserve_model(2, [empty, large])


def test_what_is_shown_and_not_whole_yet_is_charged(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as served:
            raw, store = Raw(tmp_path), served._copies
            with raw.socket, opened(_file(tmp_path), os.O_RDONLY) as descriptor:
                raw.say(Show("model", ""))
                raw.say(File("f"), descriptor)
                assert isinstance(await apart(raw.answer), Kept)
                assert store.charge(ME) == os.fstat(descriptor).st_size > 0
            await until(lambda: store.charge(ME) == 0)

    trio.run(main)


def test_a_file_that_can_have_no_more_names_gives_its_place_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, link = Copies(tmp_path, set), os.link
    first = Path(kept(store, 1, b"same"))

    def full(source: Any, target: Any, **how: Any) -> None:
        if os.stat(source).st_nlink >= 2:
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
        link(source, target, **how)

    monkeypatch.setattr(os, "link", full)
    second = Path(kept(store, 1, b"same", b"other"))
    assert (first / "f0").read_bytes() == (second / "f0").read_bytes() == b"same"
    assert not (first / "f0").samefile(second / "f0")
    assert stat.S_IMODE((second / "f0").stat().st_mode) == 0o400


def test_a_note_of_who_has_shown_what_that_is_damaged_is_not_believed(tmp_path: Path) -> None:
    store = Copies(tmp_path, set)
    kept(store, 1, b"a")
    (note,) = (tmp_path / copies.SHOWN / "1").iterdir()
    note.write_bytes(b"\xff\0damaged")
    assert Copies(tmp_path, set).paths_of(1) == frozenset()


def test_copies_and_who_has_shown_them_outlive_the_kernel_and_nothing_else_does(tmp_path: Path) -> None:
    store = Copies(tmp_path, set)
    mine, theirs = kept(store, 1, b"a" * 400, b"b"), kept(store, 2, b"c")
    (store.spool()).write_bytes(b"left")
    (tmp_path / copies.BLOBS / ("0" * 64)).write_bytes(b"an orphan")
    broken = kept(store, 3, b"d")
    shutil.rmtree(broken)
    again = Copies(tmp_path, set)
    assert [set(again.paths_of(uid)) for uid in (1, 2, 3)] == [{mine}, {theirs}, set()]
    assert (again.charge(1), again.charge(3)) == (copies.LEAST_MODEL, 0)
    assert not list((tmp_path / copies.SPOOL).iterdir())
    assert len(list((tmp_path / copies.BLOBS).iterdir())) == 3
    assert kept(again, 3, b"d") == broken


# --- images that are written ------------------------------------------------------------------------------------------


def target_of(served: Files, place: Path, path: Path) -> tuple[Attempt, Given, str]:
    tried = attempt(place, Checkpoint(1, os.fspath(path)))
    named, _ = served.named(peer(), 5, tried.call)
    assert isinstance(named, Checkpoint)
    served.asked("cpu0", Export(9, 0, 1, named.path, b"", 0, []))
    given = served.told("cpu0", 9)
    assert given is not None
    return tried, given, named.path


def test_an_image_gets_its_name_from_its_user_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(shown.IMAGE_MAGIC + b"an older one")

    async def main() -> None:
        async with serving(tmp_path) as served:
            tried, given, spool = await apart(lambda: target_of(served, tmp_path, path))
            await apart(lambda: Path(spool).write_bytes(shown.IMAGE_MAGIC + b"the new one"))
            await served.deliver(given)
            assert path.read_bytes().endswith(b"older one")
            served.answered(1, 5)
            await apart(lambda: tried.done(None))
            assert path.read_bytes().endswith(b"the new one")
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            await until(lambda: not list((tmp_path / "files" / copies.SPOOL).iterdir()))
            tried, given, spool = await apart(lambda: target_of(served, tmp_path, path))
            served.answered(1, 5)  # with an error
            await apart(tried.drop)
            assert path.read_bytes().endswith(b"the new one")
            assert sorted(os.listdir(tmp_path)) == ["files", "image", "sock"]
            assert served.told("cpu0", 9) is None

    trio.run(main)


def test_a_file_that_is_no_process_image_is_not_replaced(tmp_path: Path) -> None:
    path, link = tmp_path / "letter", tmp_path / "link"
    path.write_bytes(b"dear")
    link.symlink_to(path)

    async def main() -> None:
        async with serving(tmp_path):
            for one in (path, link):
                with pytest.raises(SyscallError) as caught:
                    await apart(partial(attempt, tmp_path, Checkpoint(1, os.fspath(one))))
                assert caught.value.errno is Errno.EINVAL

    trio.run(main)


# --- what it costs the kernel -----------------------------------------------------------------------------------------


def test_who_shows_too_much_at_once_is_refused_and_named(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as served:
            many = [Raw(tmp_path) for _ in range(budgets.SHOWN.process)]
            for raw in many:
                raw.say(Show("model", ""))
            await until(lambda: served.budgets()[0].used == budgets.SHOWN.process)
            one_more = Raw(tmp_path)
            with one_more.socket:
                found = await apart(one_more.answer)
            assert isinstance(found, Denied)
            assert found.errno is budgets.SHOWN.errno
            assert f"shown files of OS process {os.getpid()}: 8 of at most 8" in found.reason
            for raw in many:
                raw.socket.close()
            await until(lambda: served.budgets()[0].used == 0)
            with opened(_file(tmp_path), os.O_RDONLY) as descriptor:
                assert isinstance(await apart(lambda: show(tmp_path, Names.MODEL, descriptor)), Taken)

    trio.run(main)


def test_a_file_whose_file_system_never_answers_holds_up_its_user_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LEAST_SECONDS", 0.05)
    never = threading.Event()

    async def main() -> None:
        async with serving(tmp_path) as served:
            with opened(_file(tmp_path), os.O_RDONLY) as descriptor:
                for _ in range(3):  # two threads hang, and then there are no more for this user
                    with pytest.raises(SyscallError, match="its file system took longer") as caught:
                        await served._in_thread(7, descriptor, 0, lambda own: never.wait())
                    assert caught.value.errno is Errno.ETIME
                assert await served._in_thread(8, descriptor, 0, lambda own: os.read(own, 1)) == b"x"
                never.set()
                found: list[bytes] = []
                while not found:
                    with suppress(SyscallError):
                        found.append(await served._in_thread(7, descriptor, 0, lambda own: os.pread(own, 1, 0)))

    trio.run(main)


def test_a_file_that_its_file_system_does_not_let_be_closed_holds_up_its_user_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LEAST_SECONDS", 0.2)
    monkeypatch.setattr(files, "_MOST_CLOSING", 0)
    never, close, main_thread = threading.Event(), os.close, threading.get_ident()
    shown_file = _file(tmp_path)

    def flushing(descriptor: int) -> None:
        """As of FUSE, of which each close asks whoever serves it."""
        if os.path.realpath(f"/proc/self/fd/{descriptor}") == os.fspath(shown_file):
            assert threading.get_ident() != main_thread
            never.wait()
        close(descriptor)

    async def main() -> None:
        async with serving(tmp_path) as served:
            before = len(os.listdir("/proc/self/fd"))
            with Raw(tmp_path).socket as mine:
                with opened(shown_file, os.O_RDONLY) as descriptor:
                    first = shown.framed(Show("model", ""))
                    await apart(lambda: socket.send_fds(mine, [first], [descriptor]))
                monkeypatch.setattr(os, "close", flushing)
                await until(lambda: ME in served._closing)
                assert isinstance(await apart(lambda: show(tmp_path, Names.MODEL)), Denied)
                served._close(ME + 1, os.open(os.devnull, os.O_RDONLY))
                await until(lambda: list(served._closing) == [ME])
            never.set()
            await until(lambda: not served._closing)
            monkeypatch.undo()
            assert len(os.listdir("/proc/self/fd")) <= before

    trio.run(main)


def test_without_a_thread_for_it_a_file_is_refused_and_closed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        async with serving(tmp_path) as served:
            before = len(os.listdir("/proc/self/fd"))
            with opened(_file(tmp_path), os.O_RDONLY) as descriptor:
                raw = await apart(lambda: Raw(tmp_path))
                with raw.socket, monkeypatch.context() as patched:
                    await apart(lambda: (raw.say(Show("model", "")), raw.say(File("file"), descriptor)))
                    patched.setattr(trio.lowlevel, "start_thread_soon", none)
                    await until(lambda: ME in served._unclosed)
                answer = await apart(lambda: show(tmp_path, Names.MODEL, descriptor))
            assert isinstance(answer, Taken), "the next is served"
            for uid in list(served._unclosed):
                served._close_next(uid)
            await until(lambda: not served._closing)
            assert len(os.listdir("/proc/self/fd")) <= before + 1

    trio.run(main)


def test_a_name_that_the_kernels_locale_cannot_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwritten(*_: object, **__: object) -> None:
        raise UnicodeEncodeError("latin-1", "\u20ac", 0, 1, "ordinal not in range(256)")

    async def main() -> None:
        async with serving(tmp_path) as served:
            with opened(_file(tmp_path), os.O_RDONLY) as descriptor, monkeypatch.context() as patched:
                patched.setattr(served, "_whole", unwritten)
                refused = await apart(lambda: show(tmp_path, Names.MODEL, descriptor))
                assert isinstance(refused, Denied)
                assert refused.errno is Errno.EINVAL

    trio.run(main)

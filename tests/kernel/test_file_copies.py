"""Private copies of users' models: what is in them, who pays for them, what outlives the kernel."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from llmasos.kernel.edge import copies
from llmasos.kernel.edge.copies import Copies, Item
from llmasos.syscalls import budgets
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.shown import File, Kept, Show, Taken
from llmasos.syscalls.table import Call, Names, Spawn
from tests.doorway import apart, until
from tests.shown_files import ME, Raw, model_at, opened, peer, plain, serving, show, taken_of


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


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
    file = plain(tmp_path)
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


def test_a_copy_that_one_user_gives_up_while_another_shows_the_same_is_there(tmp_path: Path, small: None) -> None:
    """The first user needs room between the look whether the directory is there and its entry for the second one."""

    async def main() -> None:
        async with serving(tmp_path) as served:
            store = served._copies
            kept(store, ME + 1, b"a" * 400)
            link, going = store.link, list[Path]()

            def late(items: list[Item]) -> str:
                digest = link(items)
                with suppress(SyscallError):
                    going.extend(store.reserve(ME + 1, 900))
                return digest

            store.link = late  # type: ignore[method-assign]
            (tmp_path / "mine").write_bytes(b"a" * 400)
            with opened(tmp_path / "mine", os.O_RDONLY) as descriptor:
                taken = await apart(lambda: show(tmp_path, Names.MODEL, descriptor, name="f0", first=None))
            assert isinstance(taken, Taken)
            copies.remove(going)
            assert (Path(taken.path) / "f0").read_bytes() == b"a" * 400

    trio.run(main)


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
            with raw.socket, opened(plain(tmp_path), os.O_RDONLY) as descriptor:
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

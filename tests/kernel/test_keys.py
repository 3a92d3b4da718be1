"""The files of keys: nobody waits for a disk or a command while others change them, and nothing comes back."""

from __future__ import annotations

import errno
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmasos.kernel.edge import seal
from llmasos.kernel.edge.key_store import OWN, Store
from llmasos.kernel.edge.keys import Keys
from llmasos.kernel.edge.locked import Locked
from llmasos.kernel.edge.master import FileSource
from llmasos.kernel.edge.shred import key_name, owner_named
from llmasos.kernel.edge.slots import IMAGE, PROCESS, SLOT_BYTES
from llmasos.kernel.edge.stores import Listed
from llmasos.kernel.objects.owner import Owners
from llmasos.syscalls.errno import Errno, SyscallError

PATIENCE = 60.0


class Command:
    """A source that answers when it is let."""

    about, makes, slow = "command pass", False, True

    def __init__(self, place: Path) -> None:
        self.listed = place / "seal.key.stores"
        self.keys = [secrets.token_bytes(32)]
        self.asked, self.answer = 0, threading.Event()
        self.answer.set()

    def read(self) -> list[bytes]:
        self.asked += 1
        assert self.answer.wait(PATIENCE)
        return list(self.keys)

    def write(self, keys: list[bytes]) -> None:
        raise AssertionError

    def missing(self) -> str:
        return "ask"

    def apart(self, place: Path) -> bool:
        return True


def keys_in(place: Path) -> Keys:
    return Keys(FileSource(place / "config" / "seal.key"), place / "keys")


@contextmanager
def meanwhile(act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within this another thread is in the middle of `act`: each of its syncs, of which one has begun, waits."""
    began, go_on, failed = threading.Event(), threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            act()
        except BaseException as error:
            failed.append(error)

    worker = threading.Thread(target=run)
    for name in ("fsync", "fdatasync"):
        whole = getattr(os, name)

        def slow(descriptor: int, whole: Callable[[int], None] = whole) -> None:
            if threading.current_thread() is worker:
                began.set()
                assert go_on.wait(PATIENCE)
            whole(descriptor)

        monkeypatch.setattr(os, name, slow)
    worker.start()
    try:
        assert began.wait(PATIENCE)
        yield
    finally:
        go_on.set()
        worker.join(PATIENCE)
    assert not failed


def test_a_new_owner_needs_no_master_key_while_the_kernel_runs(tmp_path: Path) -> None:
    source = Command(tmp_path)
    keys = Keys(source, tmp_path / "keys")
    store = keys.store("0" * 16)
    store.add(PROCESS, 1)
    keys.serve(images=True)
    source.asked, held = 0, source.keys
    source.keys = []
    made = [(one, *one.add(PROCESS, 2, owner)) for one in (store, keys.files) for owner in ("1001", "1002/agent", "")]
    assert source.asked == 0
    source.keys = held
    again = Keys(source, tmp_path / "keys")
    assert [again.store(one.path.name).get(name) for one, name, _ in made] == [key for _, _, key in made]
    assert [again.store(one.path.name).owner_of(name) for one, name, _ in made[:3]] == ["1001", "1002/agent", ""]


def test_a_key_command_is_not_waited_for_where_events_are_handled(tmp_path: Path) -> None:
    source = Command(tmp_path)
    keys = Keys(source, tmp_path / "keys")
    name, key = keys.files.add(IMAGE, 1)
    other = Keys(source, tmp_path / "keys")
    keys.serve(images=True)
    source.answer.clear()
    renewing = threading.Thread(target=other.renew, args=(other.files,))
    renewing.start()
    source.answer.set()
    renewing.join(PATIENCE)  # so that the root in the file is one that this kernel does not know
    source.answer.clear()
    for _ in range(2):
        with pytest.raises(SyscallError) as caught:
            keys.files.get(name)
        assert caught.value.errno is Errno.EAGAIN
    asking = keys._asking
    assert asking is not None
    source.answer.set()
    asking.join(PATIENCE)
    assert keys.files.get(name) == key


@pytest.mark.parametrize("what", ["renew", "rotate", "forget", "tidy"])
def test_first_words_do_not_wait_for_the_disk_while_keys_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    keys = keys_in(tmp_path)
    store = keys.store("0" * 16)
    made = [store.add(PROCESS, pid) for pid in range(20)]
    others = [store.add(PROCESS, pid, "1001") for pid in range(600)]
    store.sync()
    gone = [made.pop()[0], others.pop()[0]]
    if what == "tidy":
        store.forget([name for name, _ in others])
        others = []
    acts: dict[str, Callable[[], object]] = {
        "renew": lambda: keys.renew(store),
        "rotate": keys.rotate,
        "forget": lambda: store.forget([slot.name for slot in store.of_owner("1001", PROCESS)]),
        "tidy": store.tidy,
    }
    another = keys_in(tmp_path).store(store.path.name)  # of another process
    before = [bytes.fromhex(line) for line in (tmp_path / "config" / "seal.key").read_text().split()]
    with meanwhile(acts[what], monkeypatch):
        made += [store.add(PROCESS, 100 + number, owner) for number, owner in enumerate(("", "1002", ""))]
        made.append(another.add(PROCESS, 200))
        store.forget(gone[:1], sync=False)
        another.forget(gone[1:])
        assert [store.get(name) for name, _ in made] == [key for _, key in made]
    store.sync()
    left = [key if what != "forget" else None for _, key in others]
    for one in (store, keys_in(tmp_path).store(store.path.name)):
        assert [one.get(name) for name, _ in made] == [key for _, key in made]
        assert [one.get(name) for name, _ in others] == left
        assert [one.get(name) for name in gone] == [None, None]
    if what == "renew":
        assert before[0] not in keys.source.read()
    assert not list(store.path.parent.glob("*.new"))


def test_two_processes_renew_a_file_at_once_and_no_key_is_lost(tmp_path: Path) -> None:
    one, other = keys_in(tmp_path), keys_in(tmp_path)
    made = [one.files.add(PROCESS, pid) for pid in range(50)]

    def renew(keys: Keys) -> None:
        for number in range(5):
            made.append(keys.files.add(PROCESS, number))
            keys.renew(keys.files)

    threads = [threading.Thread(target=renew, args=(keys,)) for keys in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for keys in (one, other, keys_in(tmp_path)):
        assert [keys.files.get(name) for name, _ in made] == [key for _, key in made]


def test_keys_of_images_take_no_memory_and_are_found_forgotten_and_renewed(tmp_path: Path) -> None:
    keys = keys_in(tmp_path)
    made = [keys.files.add(IMAGE, number, text=f"/a/place/{number}") for number in range(40)]
    keys.files.forget([made[7][0]])
    keys.renew(keys.files)
    keys.files.forget([made[8][0]])
    for one in (keys, keys_in(tmp_path)):
        assert [one.files.get(name) for name, _ in made] == [
            None if number in (7, 8) else key for number, (_, key) in enumerate(made)
        ]
        assert len(one.files._file._at) == 2  # the root, and the owner's
        assert len(one.files.find(IMAGE)) == 38


def test_what_another_process_has_erased_does_not_come_back_with_a_renewed_file(tmp_path: Path) -> None:
    keys = keys_in(tmp_path)
    names = [keys.files.add(PROCESS, pid)[0] for pid in range(10)]
    store: Store = keys_in(tmp_path).files
    assert store.get(names[3]) is not None
    keys.files.forget(names[3:5])
    store.renew()
    fresh = keys_in(tmp_path).files
    assert [name for name in names if fresh.get(name) is None] == names[3:5]
    assert [slot.name for slot in fresh.find(PROCESS)] == [*names[:3], *names[5:]]


def test_a_key_of_an_image_is_found_in_a_long_file_a_piece_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = keys_in(tmp_path)
    made = [keys.files.add(IMAGE, number) for number in range(1500)]
    sizes, pread = list[int](), os.pread

    def counted(descriptor: int, size: int, at: int) -> bytes:
        sizes.append(size)
        return pread(descriptor, size, at)

    monkeypatch.setattr(os, "pread", counted)
    for name, key in (made[0], made[511], made[512], made[-1]):
        assert keys.files.get(name) == key
    assert keys.files.get(secrets.token_bytes(len(made[0][0]))) is None
    assert max(sizes) <= 1 << 16 < os.stat(keys.files.path).st_size


@pytest.mark.parametrize("uid", [999, 0], ids=["service", "root"])
@pytest.mark.parametrize("named", ["0", "999", "root", "0/acme", "999/acme", "1001", "1001/acme"])
def test_whose_keys_are_destroyed_is_whom_the_kernel_of_that_user_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, named: str
) -> None:
    owners, store = Owners(uid, 1), Store(tmp_path / "keys", lambda anew: [bytes(32)], Locked())
    keys: dict[str, tuple[bytes, bytes]] = {}
    for whose in (0, 999, 1001):
        for tenant in ("", "acme"):
            owner = owners.of(whose, tenant, whose + len(tenant))
            if owner.key not in keys:
                keys[owner.key] = store.add(PROCESS, 7, owner.key)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.chdir(tmp_path)
    said = owner_named(named)
    assert said is not None
    user, _, named_tenant = said.partition("/")
    meant = owners.of(int(user), named_tenant, 0)
    want = {owner.key for owner in owners if owner is meant or owner.base is meant}
    found = {slot.name for slot in store.of_owner(key_name(said), PROCESS)}
    assert found == {keys[key][0] for key in want}
    assert (OWN in want) == (said in ("0", f"{uid}"))
    store.close()


def test_keys_of_another_user_s_kernel_are_left_alone_and_it_is_said_whose_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "kernel.toml"
    config.write_text(f'[seal]\nkey_file = "{tmp_path / "seal.key"}"\ndirectory = "{tmp_path / "keys"}"\n')
    (tmp_path / "keys").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    for words in (["shred", "1001"], ["seal", "rotate"], ["seal", "status"]):
        assert seal.main([*words, "--config", os.fspath(config)]) == 1
        assert "run this as that user: `sudo -u " in capsys.readouterr().err
    assert list((tmp_path / "keys").iterdir()) == []


# --- writes that go astray ------------------------------------------------------------------------------------------


def first_time(monkeypatch: pytest.MonkeyPatch, wrong: Callable[[int, bytes, int], int], times: int = 1) -> None:
    """Let `wrong` do the next writes of `os.pwrite`."""
    whole, left = os.pwrite, [wrong] * times
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: left.pop()(fd, data, at) if left else whole(fd, data, at))


def astray(whole: Callable[[int, bytes, int], int]) -> Callable[[int, bytes, int], int]:
    return lambda fd, data, at: whole(fd, data, at + 4096)


def torn(whole: Callable[[int, bytes, int], int]) -> Callable[[int, bytes, int], int]:
    return lambda fd, data, at: whole(fd, data[: len(data) // 2].ljust(len(data), b"\0"), at)


@pytest.mark.parametrize("wrong", [astray, torn])
def test_a_key_of_which_something_else_is_read_than_was_written_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., Callable[[int, bytes, int], int]]
) -> None:
    store = keys_in(tmp_path).store("0" * 16)
    store.add(PROCESS, 1)
    size = store.path.stat().st_size
    with monkeypatch.context() as patched:
        first_time(patched, wrong(os.pwrite))
        name, key = store.add(PROCESS, 2)
    assert store.path.stat().st_size == size + SLOT_BYTES  # and no copy is left where a shredded key would outlive it
    assert keys_in(tmp_path).store("0" * 16).get(name) == key


def test_a_key_that_can_never_be_read_as_it_was_written_is_not_given_to_anybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = keys_in(tmp_path).store("0" * 16)
    name, key = store.add(PROCESS, 1)
    with monkeypatch.context() as patched:
        first_time(patched, torn(os.pwrite), 99)
        with pytest.raises(SyscallError, match="what is read is not what was written") as caught:
            store.add(PROCESS, 2)
    assert caught.value.errno is Errno.EIO
    assert keys_in(tmp_path).store("0" * 16).get(name) == key


def test_a_file_of_keys_whose_head_went_astray_is_begun_anew_and_one_with_a_key_is_not_touched(tmp_path: Path) -> None:
    keys = keys_in(tmp_path)
    store = keys.store("0" * 16)
    head = store.path.read_bytes()
    name, key = store.add(PROCESS, 1)
    with_keys = store.path.read_bytes()
    for blank in (bytes(5000), bytes(4096) + head, b"\0"):
        store.path.write_bytes(blank)
        assert keys_in(tmp_path).store("0" * 16).get(name) is None
        assert store.path.read_bytes() == head
    headless = bytes(len(head)) + with_keys[len(head) :]
    store.path.write_bytes(headless)
    with pytest.raises(SyscallError, match="is no file of keys of version") as caught:
        keys_in(tmp_path).store("0" * 16)
    assert caught.value.errno is Errno.EINVAL
    assert store.path.read_bytes() == headless
    store.path.write_bytes(with_keys)
    assert keys_in(tmp_path).store("0" * 16).get(name) == key


def test_keys_that_are_renewed_leave_the_old_file_alone_until_the_new_one_is_read_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = keys_in(tmp_path).store("0" * 16)
    name, key = store.add(PROCESS, 1)
    before = store.path.read_bytes()
    with monkeypatch.context() as patched:
        first_time(patched, astray(os.pwrite))  # the head of the new file
        with pytest.raises(SyscallError, match="what is read is not what was written"):
            store.renew()
    assert store.path.read_bytes() == before
    store.renew()
    assert keys_in(tmp_path).store("0" * 16).get(name) == key


def test_a_key_that_is_still_there_after_it_was_overwritten_is_not_said_to_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = keys_in(tmp_path).store("0" * 16)
    name, _ = store.add(PROCESS, 1)
    first_time(monkeypatch, astray(os.pwrite))
    with pytest.raises(SyscallError, match="a key that was overwritten is still there"):
        store.forget([name])
    store.forget([name])
    assert store.get(name) is None


def test_a_kernel_is_told_at_once_that_keys_of_images_are_not_at_hand_and_each_image_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(descriptor: int, how: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    keys = keys_in(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("fcntl.flock", fails)
        assert "cannot be used: Input/output error" in keys.serve(images=True)
    assert keys.files.add(IMAGE)


def test_reads_and_writes_that_end_early_go_on_and_no_key_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.pread, os.pwrite
    monkeypatch.setattr(os, "pread", lambda fd, size, at: read(fd, -(-size // 2), at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[: -(-len(data) // 2)], at))
    store = keys_in(tmp_path).store("0" * 16)
    (gone, _), kept = store.add(PROCESS, 1), dict(store.add(PROCESS, pid) for pid in range(2, 9))
    store.forget([gone])
    store.renew()
    again = keys_in(tmp_path).store("0" * 16)
    assert {name: again.get(name) for name in (gone, *kept)} == {gone: None, **kept}


def test_a_master_key_on_a_read_only_disk_serves_those_whom_its_list_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place := tmp_path / "config").mkdir()
    listed = Listed(place / "seal.key.stores")
    for name in ("known", "emptied"):
        (tmp_path / name).mkdir()
        listed.note(tmp_path / name)
    opened = os.open

    def read_only(path: str | os.PathLike[str], flags: int, *mode: int, **more: int) -> int:
        if Path(path).parent == place and flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, flags, *mode, **more)

    monkeypatch.setattr(os, "open", read_only)
    with listed.alone():
        listed.note(tmp_path / "known")
        with pytest.raises(SyscallError, match=r"Read-only.*--plain"):
            listed.note(tmp_path / "new")
    listed.drop(tmp_path / "emptied")
    assert not (tmp_path / "emptied").exists()
    assert listed.read() == [tmp_path / "known", tmp_path / "emptied"]
    with pytest.raises(SyscallError, match="Read-only"), Listed(place / "other.stores").alone():
        raise AssertionError("there is no list that could be held")

"""The journal as it is encrypted: the same state, no nonce twice, keys that can be lost, and files made the other way."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from pathlib import Path

import pytest
import trio
import trio.lowlevel
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.kernel.edge import journal_file as file
from llmasos.kernel.edge import journal_keeper, master
from llmasos.kernel.edge.images import Images
from llmasos.kernel.edge.journal_file import NAME, open_journal
from llmasos.kernel.edge.journal_keeper import Keeper
from llmasos.kernel.edge.keys import Keys
from llmasos.kernel.edge.master import CommandSource, FileSource, KeyringSource, overwrite
from llmasos.kernel.edge.slots import IMAGE, PROCESS
from llmasos.kernel.journal.records import Frame, Gone, Grown, ProcessHead, ProgramHead, encode
from llmasos.kernel.journal.state import State
from llmasos.simulator import simulate
from llmasos.syscalls import curve_keys
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Decode, Feed, Fork, Spawn, Truncate
from tests.kernel.journaled import frames_written
from tests.system.scan import Scan, needles

SAMPLES = Path(__file__).parents[1] / "system" / "samples"
PLANTED = [911, 923, 947, 953, 967]


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    """What a kernel writes in a short life."""
    sim = simulate()
    written = frames_written(sim)
    program = sim.program()
    pid = program.call(Spawn("sim", PLANTED, records=[b"planted words"]))
    program.call(Decode(pid, 8, logprobs=1))
    program.call(Fork(pid, detached=True))
    program.call(Truncate(pid, 5))
    program.call(Feed(pid, PLANTED))
    return written


def keys_in(place: Path, *, plain: bool = False) -> Keys:
    return Keys(FileSource(place / "config" / "seal.key"), place / "keys", plain=plain)


def masters(place: Path) -> list[bytes]:
    return [bytes.fromhex(line) for line in (place / "config" / "seal.key").read_text().split()]


def state_of(frames: list[Frame], secret: bytes) -> State:
    state = State(secret)
    for frame in frames:
        state.apply(frame)
    return state


def write(place: Path, frames: list[Frame], *, plain: bool = False) -> State:
    """Open the journal, which has what was written before, and add these frames; returns what was there."""
    opened = open_journal(place / "journal", keys_in(place, plain=plain))
    for frame in frames:
        body = opened.seal.live.encode(frame) if opened.seal is not None else encode(frame)
        file.write_all(opened.fd, file.framed(body))
    os.close(opened.fd)
    os.close(opened.lock)
    return opened.state


def test_an_encrypted_journal_comes_back_as_it_was_and_nothing_in_it_can_be_read(
    tmp_path: Path, frames: list[Frame]
) -> None:
    write(tmp_path, frames)
    state = write(tmp_path, [])
    assert not state.difference(state_of(frames, state.secret))
    whole = (tmp_path / "journal" / NAME).read_bytes()
    for secret in (b"planted words", b"sim", state.secret, *needles(PLANTED)):
        assert secret not in whole
    found = Scan([tmp_path], masters(tmp_path))
    assert found.holds(b"planted words") == found.holds(*needles(PLANTED)) == [tmp_path / "journal" / NAME]
    assert (tmp_path / "config" / "seal.key").stat().st_mode & 0o777 == 0o600


@settings(max_examples=12, deadline=None)
@given(cuts=st.lists(st.integers(0, 400), min_size=1, max_size=4))
def test_a_nonce_never_comes_twice_whatever_is_cut_off_and_written_again(
    tmp_path_factory: pytest.TempPathFactory, frames: list[Frame], cuts: list[int]
) -> None:
    place = tmp_path_factory.mktemp("nonces")
    (place / "seen").mkdir()
    journal = place / "journal" / NAME
    for number, cut in enumerate([0, *cuts]):
        if journal.exists():  # a kernel was killed in its last write; what was read of it before is remembered
            os.truncate(journal, max(200, journal.stat().st_size - cut))
        write(place, frames if number == 0 else [frame for frame in frames if _grows(frame)])
        (place / "seen" / f"{number}.journal").write_bytes(journal.read_bytes())
    found = Scan([place], masters(place))
    for path in list(found.files):
        list(found.texts(path))
    assert len(found.used) > len(frames)
    twice = {pair: texts for pair, texts in found.used.items() if len(texts) > 1}
    assert not twice


def _grows(frame: Frame) -> bool:
    """Frames that can come again to the same state."""
    return all(isinstance(entry, Grown) and entry.keep == 0 for entry in frame.entries)


def test_compaction_begins_a_segment_and_forgets_the_keys_of_those_that_have_gone(
    tmp_path: Path, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_keeper, "COMPACT_BYTES", 0)
    seen: list[bytes] = []

    async def scenario() -> None:
        opened = open_journal(tmp_path / "journal", keys_in(tmp_path))
        keeper = Keeper(opened, "never", lambda event: None, lambda: State(b""))
        async with trio.open_nursery() as nursery:
            for frame in frames:
                keeper.append(frame)
            pid = next(entry.pid for frame in frames for entry in frame.entries if isinstance(entry, ProcessHead))
            seen.append((tmp_path / "journal" / NAME).read_bytes())
            program = next(one.pid for frame in frames for one in frame.entries if isinstance(one, ProgramHead))
            keeper.append(Frame(frames[-1].now, [Gone(pid), Gone(program)]))  # whose answers tell of the process
            before = {slot.pid for slot in opened.seal.store.find(PROCESS)} if opened.seal else set()
            assert pid in before
            nursery.start_soon(keeper.run)
            await keeper.forget([pid + 999], 20.0)
            nursery.cancel_scope.cancel()
        assert opened.seal is not None
        await trio.lowlevel.checkpoint()
        left = {slot.pid for slot in opened.seal.store.find(PROCESS)}
        assert pid not in left
        assert left, "its fork has a key of its own now"
        keeper.close()
        os.close(opened.lock)

    trio.run(scenario)
    (tmp_path / "old.journal").write_bytes(seen[0])
    found = Scan([tmp_path], masters(tmp_path))
    for path in list(found.files):
        list(found.texts(path))
    assert all(len(texts) == 1 for texts in found.used.values())
    assert write(tmp_path, []).processes


def test_who_was_shredded_and_is_not_reaped_yet_stays_in_the_table_over_the_next_compaction(
    tmp_path: Path, frames: list[Frame]
) -> None:
    pid = next(entry.pid for frame in frames for entry in frame.entries if isinstance(entry, ProcessHead))
    program = next(one.pid for frame in frames for one in frame.entries if isinstance(one, ProgramHead))

    async def scenario() -> None:
        opened = open_journal(tmp_path / "journal", keys_in(tmp_path))
        keeper = Keeper(opened, "never", lambda event: None, lambda: State(b""))
        async with trio.open_nursery() as nursery:
            for frame in frames:
                keeper.append(frame)
            nursery.start_soon(keeper.run)
            await keeper.forget([pid], 20.0)
            await keeper.forget([pid + 999], 20.0)  # written anew once more, by when its key is gone
            keeper.append(Frame(frames[-1].now, [Gone(pid)]))
            keeper.append(Frame(frames[-1].now, [Gone(program)]))
            nursery.cancel_scope.cancel()
        keeper.close()
        os.close(opened.lock)

    trio.run(scenario)
    found = file.read(tmp_path / "journal" / NAME, keys=keys_in(tmp_path))
    assert found.trouble == ""
    assert pid not in found.state.processes
    assert found.state.processes, "what was said after that counts"
    assert program not in found.state.programs


def test_a_journal_made_the_other_way_is_read_and_turned_over(tmp_path: Path, frames: list[Frame]) -> None:
    journal = tmp_path / "journal" / NAME
    write(tmp_path, frames, plain=True)
    assert any(needle in journal.read_bytes() for needle in needles(PLANTED))
    state = write(tmp_path, [])
    assert not state.difference(state_of(frames, state.secret))
    assert not Scan([tmp_path], []).holds(b"planted words")
    state = write(tmp_path, [], plain=True)
    assert not state.difference(state_of(frames, state.secret))
    assert b"planted words" in journal.read_bytes()
    assert not (tmp_path / "keys").exists()


def test_a_journal_of_version_3_is_read_and_encrypted(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / NAME).write_bytes((SAMPLES / "journal-3" / NAME).read_bytes())
    wanted = file.read(tmp_path / "journal" / NAME).state
    assert wanted.processes
    assert not write(tmp_path, []).difference(wanted)
    assert not write(tmp_path, []).difference(wanted)
    assert file.read(tmp_path / "journal" / NAME, keys=keys_in(tmp_path)).journal is not None


def test_without_the_key_a_journal_is_refused_and_nothing_is_lost(tmp_path: Path, frames: list[Frame]) -> None:
    write(tmp_path, frames)
    before = (tmp_path / "journal" / NAME).read_bytes()
    key = tmp_path / "config" / "seal.key"
    held = key.read_bytes()
    for change in (key.unlink, lambda: key.write_text(secrets.token_hex(32) + "\n")):
        change()
        for plain in (False, True):
            with pytest.raises(SyscallError) as caught:
                write(tmp_path, [], plain=plain)
            assert caught.value.errno is Errno.EPERM
            assert "master key" in caught.value.reason
        key.write_bytes(held)
        key.chmod(0o600)
    (tmp_path / "keys").rename(tmp_path / "elsewhere")
    with pytest.raises(SyscallError, match=r"bring .* back"):
        write(tmp_path, [])
    (tmp_path / "elsewhere").rename(tmp_path / "keys")
    assert (tmp_path / "journal" / NAME).read_bytes() == before
    state = write(tmp_path, [])
    assert not state.difference(state_of(frames, state.secret))


def test_rotation_wraps_anew_while_a_kernel_writes_and_the_old_key_opens_nothing(
    tmp_path: Path, frames: list[Frame]
) -> None:
    opened = open_journal(tmp_path / "journal", keys_in(tmp_path))
    old = masters(tmp_path)
    assert opened.seal is not None
    for number, frame in enumerate(frames):
        if number == len(frames) // 2:
            assert keys_in(tmp_path).rotate()[1] == []
        file.write_all(opened.fd, file.framed(opened.seal.live.encode(frame)))
    os.close(opened.fd)
    os.close(opened.lock)
    assert masters(tmp_path) != old
    state = write(tmp_path, [])
    assert not state.difference(state_of(frames, state.secret))
    assert Scan([tmp_path], masters(tmp_path)).holds(b"planted words")
    assert not Scan([tmp_path], old).holds(b"planted words")


def test_a_rotation_that_was_cut_off_is_finished_by_the_next_one(tmp_path: Path, frames: list[Frame]) -> None:
    write(tmp_path, frames)
    source = FileSource(tmp_path / "config" / "seal.key")
    source.write([secrets.token_bytes(32), *source.read()])  # and then the machine stood still
    assert write(tmp_path, []).processes
    assert keys_in(tmp_path).rotate()[1] == []
    assert len(masters(tmp_path)) == 1
    assert write(tmp_path, []).processes


def test_rotation_reaches_every_directory_under_the_master_key(tmp_path: Path) -> None:
    source = FileSource(tmp_path / "config" / "seal.key")
    one, other = Keys(source, tmp_path / "one"), Keys(source, tmp_path / "other")
    made = [keys.files.add(IMAGE, 1) for keys in (one, other)]
    (tmp_path / "one" / "README").write_text("somebody's\n" * 30)
    old = masters(tmp_path)
    assert one.rotate() == (2, [])
    assert masters(tmp_path) != old
    for keys, (name, key) in zip((one, other), made, strict=True):
        assert Keys(source, keys.directory).files.get(name) == key


def test_the_old_master_key_stays_while_something_under_it_cannot_be_reached(tmp_path: Path) -> None:
    source = FileSource(tmp_path / "config" / "seal.key")
    one, other = Keys(source, tmp_path / "one"), Keys(source, tmp_path / "other")
    name, key = other.files.add(IMAGE, 1)
    one.files.add(IMAGE, 1)
    old = masters(tmp_path)
    (tmp_path / "other").rename(tmp_path / "unmounted")
    images = Images(one)
    _, left = images.forget([1])  # nothing was forgotten, so nothing was rotated
    assert not any("old master key" in text for text in left)
    assert "cannot be reached" in one.rotate()[1][0]
    assert any("old master key" in text for text in images.forget([2])[1])
    assert not images.sure(tmp_path)
    assert set(old) < set(masters(tmp_path))
    (tmp_path / "unmounted").rename(tmp_path / "other")
    assert Keys(source, tmp_path / "other").files.get(name) == key
    assert one.rotate()[1] == []
    assert len(masters(tmp_path)) == 1
    assert Keys(source, tmp_path / "other").files.get(name) == key


def test_a_directory_of_keys_that_was_given_up_does_not_stop_rotation(tmp_path: Path) -> None:
    source = FileSource(tmp_path / "config" / "seal.key")
    one, other = Keys(source, tmp_path / "one"), Keys(source, tmp_path / "other")
    for keys in (one, other):
        keys.files.add(IMAGE, 1)
    other.remove(other.files)
    with source.listed.open("ab") as file:
        file.write(b'"/a/path/that/a/cra')  # sh cut short
    assert not other.directory.exists()
    assert one.rotate() == (1, [])
    name, key = other.files.add(IMAGE, 2)
    assert one.rotate() == (2, [])
    assert Keys(source, other.directory).files.get(name) == key


def test_a_slot_that_was_cut_short_or_flipped_costs_its_key_and_no_other(tmp_path: Path) -> None:
    keys = keys_in(tmp_path)
    names = [keys.files.add(PROCESS, pid) for pid in range(5)]
    keys.files.sync()
    path = tmp_path / "keys" / "files"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    fresh = keys_in(tmp_path).files
    assert [fresh.get(name) for name, _ in names] == [*(key for _, key in names[:4]), None]
    damaged = bytearray(whole)
    damaged[-60] ^= 1
    path.write_bytes(damaged)
    fresh = keys_in(tmp_path).files
    assert [fresh.get(name) for name, _ in names] == [*(key for _, key in names[:4]), None]
    later = fresh.add(PROCESS, 9)
    assert keys_in(tmp_path).files.get(later[0]) == later[1]


def test_two_kernels_of_a_user_share_the_file_of_keys(tmp_path: Path) -> None:
    one, other = keys_in(tmp_path), keys_in(tmp_path)
    made = [keys.files.add(PROCESS, number) for number in range(10) for keys in (one, other)]
    for keys in (one, other, keys_in(tmp_path)):
        assert [keys.files.get(name) for name, _ in made] == [key for _, key in made]
    one.files.forget([made[0][0]])
    one.renew(one.files)
    assert other.files.get(made[0][0]) is None
    assert other.files.get(made[1][0]) == made[1][1]


def test_keys_that_were_removed_under_a_running_kernel_are_written_again(tmp_path: Path, frames: list[Frame]) -> None:
    opened = open_journal(tmp_path / "journal", keys_in(tmp_path))
    assert opened.seal is not None
    for number, frame in enumerate(frames):
        if number == len(frames) // 2:
            shutil.rmtree(tmp_path / "keys")
        file.write_all(opened.fd, file.framed(opened.seal.live.encode(frame)))
    opened.seal.store.sync()
    os.close(opened.fd)
    os.close(opened.lock)
    state = write(tmp_path, [])
    assert not state.difference(state_of(frames, state.secret))


def test_removed_keys_come_back_beside_those_that_another_process_has_made_since(tmp_path: Path) -> None:
    one, other = keys_in(tmp_path), keys_in(tmp_path)
    made = [one.files.add(PROCESS, 1)]
    (tmp_path / "keys" / "files").unlink()
    made.append(other.files.add(PROCESS, 2))
    one.files.sync()  # nothing else has to be done for it
    made.append(one.files.add(PROCESS, 3))
    for keys in (one, other, keys_in(tmp_path)):
        assert [keys.files.get(name) for name, _ in made] == [key for _, key in made]


def test_a_sync_waits_for_what_another_thread_is_syncing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = keys_in(tmp_path).files
    store.add(PROCESS, 1)
    began, go_on, whole = threading.Event(), threading.Event(), os.fdatasync
    ended: list[int] = []

    def slow(descriptor: int) -> None:
        began.set()
        assert go_on.wait(60)
        whole(descriptor)
        ended.append(descriptor)

    def second() -> None:
        store.sync()
        seen.append(len(ended))

    seen: list[int] = []
    monkeypatch.setattr(os, "fdatasync", slow)
    threads = [threading.Thread(target=store.sync), threading.Thread(target=second)]
    threads[0].start()
    assert began.wait(60)
    threads[1].start()
    threads[1].join(0.05)
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert seen == [1]


def test_after_an_error_of_the_disk_a_new_file_is_synced_and_not_the_old_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = keys_in(tmp_path).files
    name, key = store.add(PROCESS, 1)
    before = (tmp_path / "keys" / "files").stat().st_ino

    def fails(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fails)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails)
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output"):
                store.sync()
    store.sync()
    assert (tmp_path / "keys" / "files").stat().st_ino != before
    assert keys_in(tmp_path).files.get(name) == key


def test_the_names_of_a_first_key_s_files_are_on_the_disk_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    whole = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.path.realpath(f"/proc/self/fd/{descriptor}"))
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    Keys(FileSource(tmp_path / "a" / "config" / "seal.key"), tmp_path / "b" / "keys").files.add(PROCESS, 1)
    named = (".", "a", "a/config", "b", "b/keys")
    assert {os.path.realpath(tmp_path / name) for name in named} <= set(synced)


def test_a_secret_key_of_a_kernel_is_whole_or_not_there_and_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net" / "kernel.key"

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", dies)
        with pytest.raises(KeyboardInterrupt):
            curve_keys.new_secret(path)
    assert not path.exists()
    public = curve_keys.new_secret(path)
    assert curve_keys.public_half(curve_keys.secret_of(path)) == public
    with pytest.raises(SyscallError) as caught:
        curve_keys.new_secret(path)
    assert caught.value.errno is Errno.EBUSY
    assert curve_keys.public_half(curve_keys.secret_of(path)) == public
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def bodies_of(journal: Path) -> list[bytes]:
    """The bodies of the frames of a file."""
    data, at, found = journal.read_bytes(), 16, []
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        found.append(data[at + 16 : at + 16 + length])
        at += 16 + length
    return found


@pytest.mark.parametrize("version", [file.ENCRYPTED, file.VERSION])
def test_frames_that_nobody_encrypted_do_not_count(tmp_path: Path, frames: list[Frame], version: int) -> None:
    write(tmp_path, frames)
    journal = tmp_path / "journal" / NAME
    forged = file.framed(encode(Frame(10**15, [ProgramHead(4077, "forged", 255, "")], 10**6)))
    journal.write_bytes(file.header(version) + journal.read_bytes()[16:] + forged)
    found = file.read(journal, keys=keys_in(tmp_path))
    assert "makes no sense" in found.trouble
    assert 4077 not in found.state.programs


@pytest.mark.parametrize("changed", ["left out", "repeated", "moved", "segment repeated", "first left out"])
def test_frames_that_are_left_out_repeated_or_moved_are_found(tmp_path: Path, frames: list[Frame], changed: str) -> None:
    write(tmp_path, [])
    empty = [Frame(number, []) for number in range(1, 6)]
    write(tmp_path, empty)  # a second boot, whose segment is the third of the file
    journal = tmp_path / "journal" / NAME
    bodies = bodies_of(journal)
    before, begin, last = bodies[:-6], bodies[-6], bodies[-5:]
    assert [body[:2] for body in (begin, last[0])] == [b"\xc1\x01", b"\xc1\x02"]
    whole = [begin, *last]
    for now, right in (
        (whole, True),
        (whole[:-2], True),  # a tail may be cut off
        (
            {
                "left out": [begin, *last[:2], *last[3:]],
                "repeated": [*whole, last[0]],
                "moved": [begin, last[0], last[2], last[1]],
                "segment repeated": [begin, *last[:2], begin, *last[3:]],
                "first left out": [begin, *last[1:]],
            }[changed],
            False,
        ),
    ):
        journal.write_bytes(file.header(file.ENCRYPTED) + b"".join(map(file.framed, [*before, *now])))
        assert (file.read(journal, keys=keys_in(tmp_path)).trouble == "") is right


@pytest.mark.parametrize("damaged", [False, True])
def test_an_open_journal_in_the_place_of_an_encrypted_one_is_refused_unless_plain_says_so(
    tmp_path: Path, frames: list[Frame], damaged: bool
) -> None:
    journal = tmp_path / "journal" / NAME
    write(tmp_path, frames)
    held = journal.read_bytes()
    write(tmp_path / "elsewhere", frames, plain=True)
    other = (tmp_path / "elsewhere" / "journal" / NAME).read_bytes() + (b"damaged" * 9 if damaged else b"")
    journal.write_bytes(other)
    for _ in range(2):
        with pytest.raises(SyscallError, match="--plain") as caught:
            write(tmp_path, [])
        assert caught.value.errno is Errno.EPERM
    assert journal.read_bytes() == other
    assert [path.name for path in journal.parent.iterdir()] == [NAME]
    journal.write_bytes(held)
    assert write(tmp_path, []).processes, "it is as it was"
    held = journal.read_bytes()
    journal.write_bytes(other)
    assert write(tmp_path, [], plain=True).processes
    assert write(tmp_path, []).processes, "from there on it is encrypted again"
    journal.write_bytes(held)
    assert file.read(journal, keys=keys_in(tmp_path)).state.processes, "the keys were left where they are"


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    source = FileSource(tmp_path / "seal.key")
    source.write([secrets.token_bytes(32)])
    (tmp_path / "seal.key").chmod(0o640)
    with pytest.raises(SyscallError, match="chmod 600"):
        source.read()


@pytest.mark.processes
def test_a_command_gives_the_key_and_its_trouble_is_told(tmp_path: Path) -> None:
    key = secrets.token_bytes(32)
    (tmp_path / "key").write_text(key.hex())
    assert CommandSource(f"cat {tmp_path / 'key'}", tmp_path / "seal.key").read() == [key]
    for command in ("false", "/nope", "echo nothing"):
        with pytest.raises(SyscallError):
            CommandSource(command, tmp_path / "seal.key").read()
    with pytest.raises(SyscallError, match="seal rotate"):
        CommandSource("true", tmp_path / "seal.key").write([key])


def test_the_keyring_keeps_a_key_where_the_system_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(master, "KEYRING_NAME", f"llmasos:test-{os.getpid()}".encode())
    source, key = KeyringSource(tmp_path / "seal.key"), secrets.token_bytes(32)
    try:
        source.write([key])
    except SyscallError as error:
        pytest.skip(error.reason)
    assert source.read() == [key]
    source.write([bytes(32)])
    assert source.read() == [bytes(32)]
    monkeypatch.setattr(master, "KEYRING_NAME", b"llmasos:none")
    assert source.read() == []
    with pytest.raises(SyscallError, match="seal load"):
        Keys(source, tmp_path / "nowhere").masters()


def test_zeros_take_the_place_of_what_was_appended(tmp_path: Path) -> None:
    path = tmp_path / "file"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, b"something")
    overwrite(descriptor)
    os.close(descriptor)
    assert path.read_bytes() == bytes(9)

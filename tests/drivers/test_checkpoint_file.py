"""The file of a process image: what was written comes back to the bit, and nothing else ever does."""

from __future__ import annotations

import os
import signal
import stat
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.drivers import checkpoint_file, seals
from llmasos.drivers.checkpoint_file import Reader, write
from llmasos.drivers.seals import Damaged
from llmasos.syscalls.errno import Errno, SyscallError

HEAD = b"the head of it" * 3
PARTS = [bytes([number]) * 100 for number in range(5)]
KEYS = pytest.mark.parametrize("key", [b"", b"open sesame"], ids=["plain", "encrypted"])


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seals, "_COST", 1 << 4)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "image")


def saved(file: str, key: bytes = b"", parts: list[bytes] = PARTS) -> str:
    assert write(file, HEAD, 100, parts, key) == os.path.getsize(file)
    return file


def contents(file: str, key: bytes = b"") -> tuple[bytes, list[bytes | str]]:
    """Head, and the parts, those that are damaged as the reason."""
    with Reader(file, key) as reader:
        parts: list[bytes | str] = []
        for number in range(reader.parts):
            into = bytearray(reader.part_bytes)
            try:
                reader.read(number, memoryview(into))
            except Damaged as error:
                parts.append(str(error))
            else:
                parts.append(bytes(into))
        return reader.head, parts


def readable(file: str, key: bytes) -> tuple[bytes, list[bytes | str]] | Errno:
    try:
        return contents(file, key)
    except SyscallError as error:
        return error.errno


def refused(file: str, key: bytes = b"") -> Errno:
    with pytest.raises(SyscallError) as caught:
        Reader(file, key)
    return caught.value.errno


@KEYS
@pytest.mark.parametrize("parts", [PARTS, []], ids=["parts", "none"])
def test_what_was_written_comes_back(file: str, key: bytes, parts: list[bytes]) -> None:
    saved(file, key, parts)
    assert contents(file, key) == (HEAD, parts)
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    assert os.listdir(os.path.dirname(file)) == ["image"]


@KEYS
@settings(max_examples=150)
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, key: bytes, at: float, bit: int) -> None:
    file = saved(str(tmp_path_factory.mktemp("f") / "image"), key)
    raw = bytearray(Path(file).read_bytes())
    place = int(at * len(raw))
    raw[place] ^= 1 << bit
    Path(file).write_bytes(raw)
    found = readable(file, key)
    if isinstance(found, Errno):
        assert found in (Errno.EIO, Errno.EINVAL)
        assert place < 80 + len(HEAD) + 16
        return
    head, parts = found
    assert head == HEAD
    wrong = [number for number, part in enumerate(parts) if part != PARTS[number]]
    assert len(wrong) <= 1
    assert all(isinstance(parts[number], str) for number in wrong)
    assert wrong or place >= len(raw) - 16
    if not wrong:
        with Reader(file, key) as reader:
            assert "end of the file" in reader.flaw


@KEYS
def test_of_a_file_cut_short_at_any_place_only_whole_parts_come_back(file: str, key: bytes) -> None:
    raw = Path(saved(file, key)).read_bytes()
    for length in range(len(raw)):
        Path(file).write_bytes(raw[:length])
        found = readable(file, key)
        if isinstance(found, Errno):
            assert found in (Errno.EIO, Errno.EINVAL)
            assert length < len(raw) - 16 - len(PARTS) * 100
            continue
        head, parts = found
        whole = [part for part in parts if isinstance(part, bytes)]
        assert (head, whole) == (HEAD, PARTS[: len(whole)])
        with Reader(file, key) as reader:
            assert "instead of" in reader.flaw
    assert contents(saved(file, key), key) == (HEAD, PARTS)


@KEYS
def test_parts_cannot_change_places_or_be_another_files(tmp_path: Path, key: bytes) -> None:
    one = Path(saved(str(tmp_path / "one"), key))
    other = Path(saved(str(tmp_path / "other"), key, [b"x" * 100] * 5))
    seal = 16 if key else 8
    end = one.stat().st_size - 16
    stride = 100 + seal

    def part(file: Path, number: int) -> bytes:
        start = end - (5 - number) * stride
        return file.read_bytes()[start : start + stride]

    raw = one.read_bytes()
    first = end - 5 * stride
    swapped = raw[:first] + part(one, 1) + part(one, 0) + raw[first + 2 * stride :]
    one.write_bytes(swapped)
    assert [isinstance(p, str) for p in contents(str(one), key)[1]] == [True, True, False, False, False]
    one.write_bytes(raw[:first] + part(other, 0) + raw[first + stride :])
    assert [isinstance(p, str) for p in contents(str(one), key)[1]] == [True, False, False, False, False]
    one.write_bytes(other.read_bytes()[:first] + raw[first:])
    assert all(isinstance(p, str) for p in contents(str(one), key)[1])


def test_a_passphrase_is_told_from_damage(file: str) -> None:
    saved(file, b"open sesame")
    assert refused(file) is Errno.EPERM
    assert refused(file, b"open") is Errno.EPERM
    raw = bytearray(Path(file).read_bytes())
    assert HEAD not in raw
    assert PARTS[3] not in raw
    raw[80] ^= 1  # in the head
    Path(file).write_bytes(raw)
    assert refused(file, b"open sesame") is Errno.EIO
    assert refused(saved(file), b"open sesame") is Errno.EINVAL, "nothing vouches for a file that is not encrypted"


def test_the_same_passphrase_makes_another_file_each_time(tmp_path: Path) -> None:
    one, other = (Path(saved(str(tmp_path / name), b"key")).read_bytes() for name in ("one", "other"))
    assert len(one) == len(other)
    assert one[100:140] != other[100:140]


@pytest.mark.parametrize(
    ("offset", "kind", "value"),
    [(8, "<I", 2), (48, "<Q", 1 << 62), (48, "<Q", 1 << 24), (56, "<Q", 1 << 40), (64, "<Q", 1 << 60)],
    ids=["format", "head", "head beyond the file", "part", "parts"],
)
def test_sizes_are_not_believed(file: str, offset: int, kind: str, value: int) -> None:
    """With the checksum right: somebody has made it so."""
    import xxhash

    raw = bytearray(Path(saved(file)).read_bytes())
    size = checkpoint_file._PRELUDE.size
    struct.pack_into(kind, raw, offset, value)
    struct.pack_into("<Q", raw, size, xxhash.xxh3_64_intdigest(bytes(raw[:size])))
    Path(file).write_bytes(raw)
    assert refused(file) in (Errno.EIO, Errno.EINVAL)


def test_what_is_no_file_is_refused_and_nothing_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "text").write_text("dear diary")
    (tmp_path / "empty").touch()
    for name in ("fifo", "directory", "text", "empty"):
        assert refused(str(tmp_path / name)) is Errno.EINVAL, name
    assert refused("/dev/zero") is Errno.EINVAL
    assert refused(str(tmp_path / "link")) is Errno.ENOENT
    assert refused(str(tmp_path / ("x" * 300))) is Errno.EINVAL
    assert refused(str(tmp_path / "none")) is Errno.ENOENT
    for name, errno in {
        "fifo": Errno.EINVAL, "directory": Errno.EINVAL, "link": Errno.EINVAL, "text": Errno.EINVAL,
        "none/image": Errno.ENOENT, "text/image": Errno.ENOENT,
    }.items():  # fmt: skip
        with pytest.raises(SyscallError) as caught:
            write(str(tmp_path / name), HEAD, 100, PARTS)
        assert caught.value.errno is errno, name
    assert (tmp_path / "text").read_text() == "dear diary"
    saved(str(tmp_path / "empty"))
    assert len(os.listdir(tmp_path)) == 5


def test_an_image_is_replaced_whole_or_not_at_all(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(file)
    saved(file, parts=PARTS[:2])
    assert contents(file) == (HEAD, PARTS[:2])
    before = Path(file).read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("fsync", "writev", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(SyscallError, match="no space left") as caught:
                write(file, HEAD, 100, PARTS)
        assert caught.value.errno is Errno.EIO
        assert Path(file).read_bytes() == before
        assert os.listdir(os.path.dirname(file)) == ["image"]


def test_short_writes_and_reads_are_gone_on_with(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_writev, whole_preadv = os.writev, os.preadv

    def few(call: object, descriptor: int, buffers: list[memoryview], *more: int) -> int:
        first = memoryview(buffers[0]).cast("B")[:7]
        return int(call(descriptor, [first], *more))  # type: ignore[operator]

    monkeypatch.setattr(os, "writev", lambda descriptor, buffers: few(whole_writev, descriptor, buffers))
    monkeypatch.setattr(os, "preadv", lambda *arguments: few(whole_preadv, *arguments))
    saved(file)
    assert contents(file) == (HEAD, PARTS)


@pytest.mark.parametrize("unnamed", [True, False], ids=["without a name", "with one"])
def test_a_full_disk_leaves_nothing(file: str, unnamed: bool) -> None:
    """With a limit on the size of files, as a full disk has one on all of them."""
    program = textwrap.dedent("""
        import os, resource, sys
        from llmasos.drivers import checkpoint_file
        if sys.argv[2] == "False":
            os.O_TMPFILE = os.O_DIRECTORY  # as where there is no such thing
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            checkpoint_file.write(sys.argv[1], b"head", 4000, [bytes(4000)] * 4)
        except Exception as error:
            print(error)
    """)
    command = [sys.executable, "-c", program, file, str(unnamed)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("EIO: ")
    assert "no space left" in said
    assert os.listdir(os.path.dirname(file)) == []


@pytest.mark.parametrize("unnamed", [True, False], ids=["without a name", "with one"])
def test_of_a_writer_that_was_killed_nothing_is_left(file: str, unnamed: bool) -> None:
    program = textwrap.dedent("""
        import os, sys, time
        from llmasos.drivers import checkpoint_file
        if sys.argv[2] == "False":
            os.O_TMPFILE = os.O_DIRECTORY
        def tick():
            print("written", flush=True)
            time.sleep(60)
        checkpoint_file.write(sys.argv[1], b"head", 4000, [bytes(4000)] * 4, b"", tick)
    """)
    before = Path(saved(file)).read_bytes()
    command = [sys.executable, "-c", program, file, str(unnamed)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"written\n"
    saved(os.path.join(os.path.dirname(file), "beside"))  # takes away nothing that is being written
    assert len(os.listdir(os.path.dirname(file))) == (2 if unnamed else 3)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert Path(file).read_bytes() == before
    saved(file)
    assert sorted(os.listdir(os.path.dirname(file))) == ["beside", "image"]


def test_a_folder_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SyscallError, match=rf"ENOENT.*{tmp_path}/none;.*mkdir -p"):
        write(str(tmp_path / "none" / "image"), b"head", 4, [b"part"])

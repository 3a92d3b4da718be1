"""The files of the audit log: what somebody changes is found, by us and by a second implementation of the documented
form; and what a kernel's death leaves is told by the next one."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import hmac
import json
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmasos.kernel.edge import audit_file, audit_keeper
from llmasos.kernel.edge.audit_file import AuditFile, open_audit
from llmasos.kernel.edge.audit_keeper import Anchor, AuditKeeper
from llmasos.kernel.edge.journal_file import write_all
from llmasos.kernel.edge.journal_keeper import Fsync
from llmasos.kernel.events import Audit, Audited, AuditFails, AuditLine, Event, Noted
from llmasos.syscalls.audit_chain import file_name
from llmasos.userland.programs.audit_check import FirstKey, Head, Report, check
from tests.booted import PATIENCE

Files = list[tuple[str, bytes]]


def files_of(directory: Path) -> Files:
    return [(path.name, path.read_bytes()) for path in audit_file.files(directory)]


def keys_of(directory: Path) -> list[FirstKey]:
    rows = [json.loads(line) for line in (directory / "verification-keys").read_text().splitlines()]
    return [FirstKey(row["key"], row["sign"], row["from"]) for row in rows]


def synced(directory: Path) -> int:
    return int.from_bytes((directory / "key").read_bytes()[8:16], "little")


def looked_at(directory: Path, heads: list[Head] | None = None) -> Report:
    return check(files_of(directory), keys_of(directory), heads or [], synced(directory))


def write(log: AuditFile, count: int, what: str = "kill") -> None:
    for number in range(count):
        log.write({"what": what, "of": "processes", "on": {"pid": number}})


def head_of(log: AuditFile) -> Head:
    return Head(**log.signed_head("2026-01-01T00:00:00Z"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of few lines."""
    monkeypatch.setattr(audit_file, "MOST_BYTES", 1000)


# --- a second implementation, of docs/audit.md, with hashlib, hmac and json alone --------------------------------------


def second_opinion(files: Files, key: bytes, lines: int) -> bool:
    """Whether a log of `lines` lines is whole and as it was written."""
    head, number = bytes(32), 0
    for name, text in files:
        if name != f"{number:012d}.log" or not text.endswith(b"\n"):
            return False
        for place, line in enumerate(text[:-1].split(b"\n")):
            seal, body = line[:64], line[65:]
            sealed = hmac.new(key, head + body, hashlib.sha256)
            if seal != sealed.hexdigest().encode() or line[64:65] != b" ":
                return False
            said = json.loads(body)
            if said["n"] != number or (place == 0) != (said["what"] == "begin"):
                return False
            if place == 0 and said["before"] != head.hex():
                return False
            head = hashlib.sha256(head + sealed.digest() + body).digest()
            key = hmac.new(key, b"llmasos audit: next key", hashlib.sha256).digest()
            number += 1
    return number == lines


def _flip(files: Files, where: int, bit: int) -> Files:
    which = where % len(files)
    name, text = files[which]
    at = where // len(files) % len(text)
    flipped = text[:at] + bytes([text[at] ^ (1 << bit)]) + text[at + 1 :]
    return [*files[:which], (name, flipped), *files[which + 1 :]]


def _lines(files: Files, change: Callable[[list[bytes]], list[bytes]], where: int) -> Files:
    which = where % len(files)
    name, text = files[which]
    changed = b"".join(change(text.splitlines(keepends=True)))
    return [*files[:which], (name, changed), *files[which + 1 :]]


@pytest.fixture
def written(tmp_path: Path, small: None) -> tuple[Files, list[FirstKey], int]:
    log = open_audit(tmp_path / "audit")
    write(log, 12)
    log.write({"what": "head", "of": "log", "details": _said(log)})
    write(log, 6)
    log.sync_now()
    log.close()
    found = files_of(tmp_path / "audit")
    assert len(found) > 2
    return found, keys_of(tmp_path / "audit"), log.chain.lines


def _said(log: AuditFile) -> dict[str, str]:
    head = log.signed_head("")
    return {"head": head["head"], "signature": head["signature"]}


def test_a_log_that_nobody_touched_is_right_by_both(written: tuple[Files, list[FirstKey], int]) -> None:
    files, keys, lines = written
    report = check(files, keys, synced=lines)
    assert report.wrong == []
    assert (report.lines, report.sealed, report.signed_heads) == (lines, lines, 1)
    assert second_opinion(files, bytes.fromhex(keys[0].key), lines)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_change_is_found_by_both(written: tuple[Files, list[FirstKey], int], data: st.DataObject) -> None:
    files, keys, lines = written
    where, other = data.draw(st.integers(0, 10_000)), data.draw(st.integers(0, 10_000))

    def swap(found: list[bytes]) -> list[bytes]:
        a, b = other % len(found), (other // 7) % len(found)
        found[a], found[b] = found[b], found[a]
        return found

    def delete(found: list[bytes]) -> list[bytes]:
        return [line for number, line in enumerate(found) if number != other % len(found)]

    def insert(found: list[bytes]) -> list[bytes]:
        at = other % (len(found) + 1)
        return [*found[:at], found[(other // 3) % len(found)], *found[at:]]

    kind = data.draw(st.sampled_from(["flip", "swap", "delete", "insert", "file", "cut"]))
    if kind == "flip":
        changed = _flip(files, where, other % 8)
    elif kind == "file":
        changed = [one for number, one in enumerate(files) if number != where % len(files)]
    elif kind == "cut":
        name, text = files[-1]
        changed = [*files[:-1], (name, text[: where % len(text)])]
    else:
        changed = _lines(files, {"swap": swap, "delete": delete, "insert": insert}[kind], where)
    if changed == files:
        return
    assert check(changed, keys, synced=lines).wrong
    with contextlib.suppress(ValueError, KeyError, TypeError):  # what cannot be read is not right either
        assert not second_opinion(changed, bytes.fromhex(keys[0].key), lines)


def test_without_the_keys_signed_heads_and_an_anchor_find_changes(tmp_path: Path) -> None:
    log = open_audit(tmp_path)
    write(log, 5)
    log.write({"what": "head", "of": "log", "details": _said(log)})
    anchored = head_of(log)
    write(log, 3)
    log.close()
    ((name, text),) = files_of(tmp_path)
    signed = text.replace(b'"pid":3', b'"pid":4', 1)
    assert check([(name, signed)]).wrong
    assert check([(name, text)], heads=[anchored]).wrong == []
    cut = b"".join(text.splitlines(keepends=True)[:6])
    assert check([(name, cut)]).wrong == []  # nobody can know
    assert "it was cut" in check([(name, cut)], heads=[anchored]).wrong[0]
    forged = Head(**{**{f: getattr(anchored, f) for f in anchored.__struct_fields__}, "lines": 5})
    assert check([(name, text)], heads=[forged]).wrong


def test_a_log_written_anew_with_the_keys_is_found_by_the_anchor_alone(tmp_path: Path) -> None:
    log = open_audit(tmp_path / "one")
    write(log, 5)
    anchored, first = head_of(log), log.seed
    log.close()
    other = open_audit(tmp_path / "two")
    other.seed = first  # who held the kernel's memory has all of it
    write(other, 5, "rename")
    other.sync_now()
    other.close()
    assert looked_at(tmp_path / "two").wrong == []
    report = check(files_of(tmp_path / "two"), heads=[anchored])
    assert any("other lines" in wrong or "signature" in wrong for wrong in report.wrong)


def test_files_are_the_kernels_alone_and_no_key_of_an_earlier_line_is_kept(tmp_path: Path) -> None:
    log = open_audit(tmp_path / "audit")
    keys = []
    for _ in range(5):
        keys.append(log.chain.key)
        write(log, 1)
    log.sync_now()
    with pytest.raises(Exception, match="another kernel"):
        open_audit(tmp_path / "audit")
    log.close()
    assert stat.S_IMODE((tmp_path / "audit").stat().st_mode) == 0o700
    for path in (tmp_path / "audit").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        if path.name != "verification-keys":
            assert not any(key in path.read_bytes() for key in keys)


def test_old_files_go_and_what_is_left_is_right(tmp_path: Path, small: None) -> None:
    log = open_audit(tmp_path, keep=2)
    write(log, 60)
    log.sync_now()
    log.close()
    assert len(files_of(tmp_path)) == 2
    report = looked_at(tmp_path)
    assert report.wrong == []
    assert report.first > 0
    assert report.sealed == report.lines
    assert "keeps no more files" in report.notes[0]
    assert "the kernel did not remove them" in check(files_of(tmp_path)[1:], keys_of(tmp_path)).wrong[0]


# --- who reads it -----------------------------------------------------------------------------------------------------

NOBODY = 0xFFFFFFFF  # in a row of acl(5) that names nobody


def who_may(path: Path) -> dict[tuple[int, int], int]:
    """The list of a file, by its documented form (posix_acl_xattr.h): what a row is and whom it names, and the rights."""
    found = os.getxattr(path, "system.posix_acl_access")
    assert found[:4] == b"\2\0\0\0"
    rows = [found[at : at + 8] for at in range(4, len(found), 8)]
    return {
        (int.from_bytes(row[:2], "little"), int.from_bytes(row[4:], "little")): int.from_bytes(row[2:4], "little")
        for row in rows
    }


@pytest.fixture
def lists(tmp_path: Path) -> None:
    """Access control lists, which not all file systems have."""
    form = "<IHHIHHIHHIHHIHHI"
    some = struct.pack(form, 2, 1, 7, NOBODY, 2, 1, 4711, 4, 0, NOBODY, 0x10, 1, NOBODY, 0x20, 0, NOBODY)
    (tmp_path / "probe").mkdir(mode=0o700)
    try:
        os.setxattr(tmp_path / "probe", "system.posix_acl_access", some)
    except (OSError, AttributeError) as error:
        pytest.skip(f"no access control lists here: {error}")


@pytest.mark.usefixtures("small", "lists")
def test_operators_read_the_lines_and_nobody_else_does_nor_what_lines_are_forged_with(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    log = open_audit(state / "audit", others=[4712, 4711])
    write(log, 20)  # several files
    log.sync_now()
    alone = {(1, NOBODY), (4, NOBODY), (0x10, NOBODY), (0x20, NOBODY)}
    wanted = {state: 1, state / "audit": 5, **dict.fromkeys(audit_file.files(log.directory), 4)}
    assert len(wanted) > 3
    for path, rights in wanted.items():
        rows = who_may(path)
        assert rows.keys() == alone | {(2, 4711), (2, 4712)}, path
        assert {rows[2, 4711], rows[2, 4712], rows[0x10, NOBODY]} == {rights}
        assert (rows[4, NOBODY], rows[0x20, NOBODY]) == (0, 0), "neither the group nor others"
    for name in ("key", "verification-keys"):
        assert stat.S_IMODE((log.directory / name).stat().st_mode) == 0o600
        with pytest.raises(OSError, match="No data"):
            os.getxattr(log.directory / name, "system.posix_acl_access")
    log.close()
    log = open_audit(state / "audit", others=[])  # a boot with another configuration
    for path in wanted:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077
        with pytest.raises(OSError, match="No data"):
            os.getxattr(path, "system.posix_acl_access")
    log.close()


@pytest.mark.usefixtures("lists")
@pytest.mark.skipif(os.getuid() != 0 or not Path("/bin/cat").exists(), reason="only root can be another user")
@pytest.mark.processes
def test_the_operating_system_lets_an_operator_read_what_it_lets_no_other_user_read(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    log = open_audit(tmp_path / "state" / "audit", others=[4711])
    log.sync_now()
    lines = log.path.read_bytes()

    def read(name: str, uid: int) -> bytes:
        done = subprocess.run(
            ["/bin/cat", f"audit/{name}"],
            cwd=tmp_path / "state",
            capture_output=True,
            timeout=PATIENCE,
            check=False,
            user=uid,
            group=uid,
            extra_groups=[],
        )
        return done.stdout

    assert read(log.path.name, 4711) == lines
    for name, uid in ((log.path.name, 4712), ("key", 4711), ("verification-keys", 4711)):
        assert read(name, uid) == b""
    log.close()


def test_where_there_are_no_lists_the_log_is_kept_and_a_line_says_who_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse, raising=False)
    log = open_audit(tmp_path / "audit", others=[4711])
    assert [(level, "it is the kernel's user who reads it" in text) for level, text in log.notes] == [("warning", True)]
    write(log, 3)
    log.close()
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


# --- a kernel's death ------------------------------------------------------------------------------------------------


def killed(log: AuditFile) -> None:
    """Its process is gone, with all that was not yet written to the state."""
    log.close()


def test_lines_after_the_last_sync_survive_the_kernel(tmp_path: Path, small: None) -> None:
    log = open_audit(tmp_path)
    write(log, 3)
    log.sync_now()
    write(log, 25)  # over two files
    killed(log)
    log = open_audit(tmp_path)
    assert log.notes == []
    write(log, 2)
    log.sync_now()
    log.close()
    report = looked_at(tmp_path)
    assert report.wrong == []
    assert report.lines == log.chain.lines


def test_a_state_that_went_astray_costs_no_key_and_leaves_none_of_the_past(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, key, whole = open_audit(tmp_path), tmp_path / "key", os.pwrite
    size = key.stat().st_size
    write(log, 3)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", lambda fd, data, at: whole(fd, data, at + 4096))
        log.sync_now()
    assert key.stat().st_size == size
    killed(log)
    key.write_bytes(key.read_bytes().ljust(4096, b"\0") + key.read_bytes())  # and the kernel died before it looked
    log = open_audit(tmp_path)
    assert log.notes == []
    assert key.stat().st_size == size
    log.close()
    assert looked_at(tmp_path).wrong == []


@pytest.mark.parametrize("left", [1, 70])
def test_a_torn_last_line_is_cut_off_and_said(tmp_path: Path, left: int) -> None:
    log = open_audit(tmp_path)
    write(log, 3)
    killed(log)
    with log.path.open("ab") as file:
        file.write((b"0123456789abcdef" * 10)[:left])
    assert "no end" in looked_at(tmp_path).notes[0]
    log = open_audit(tmp_path)
    assert log.notes == [("warning", f"audit: the last line was cut short, {left} bytes of it are cut off")]
    log.close()
    assert looked_at(tmp_path).wrong == []
    assert b'"what":"torn"' in log.path.read_bytes()


def test_a_file_of_which_only_the_name_is_there_is_begun_again(tmp_path: Path) -> None:
    log = open_audit(tmp_path)
    write(log, 3)
    killed(log)
    (tmp_path / file_name(log.chain.lines)).write_bytes(b"01")
    log = open_audit(tmp_path)
    assert [level for level, _ in log.notes] == ["warning"]
    log.close()
    assert looked_at(tmp_path).wrong == []


def test_lines_that_were_cut_off_are_missed(tmp_path: Path) -> None:
    log = open_audit(tmp_path)
    write(log, 9)
    log.sync_now()
    killed(log)
    whole = log.path.read_bytes()
    log.path.write_bytes(b"".join(whole.splitlines(keepends=True)[:5]))
    assert "it was cut" in looked_at(tmp_path).wrong[0]
    log = open_audit(tmp_path)
    assert "missing" in log.notes[0][1]
    log.close()
    assert looked_at(tmp_path).wrong


def test_a_line_that_somebody_added_meanwhile_is_put_aside_and_said(tmp_path: Path) -> None:
    log = open_audit(tmp_path)
    write(log, 3)
    killed(log)
    forged = log.path.read_bytes().splitlines(keepends=True)[-1]
    with log.path.open("ab") as file:
        file.write(forged)
    log = open_audit(tmp_path)
    assert "no kernel" in log.notes[0][1]
    assert (tmp_path / "000000000000.strange-1").read_bytes() == forged
    log.close()
    assert any("stood here" in wrong for wrong in looked_at(tmp_path).wrong)


def test_a_machine_that_dies_right_after_a_sync_has_all_files_of_the_log(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk: dict[int, int] = {}  # bytes of each file when it was synced last
    names: set[str] = set()  # in the directory when that was
    sync = {"fsync": os.fsync, "fdatasync": os.fdatasync}

    def synced(fd: int, how: str) -> None:
        sync[how](fd)
        on_disk[os.fstat(fd).st_ino] = os.fstat(fd).st_size
        if os.fstat(fd).st_ino == tmp_path.stat().st_ino:
            names.update(os.listdir(fd))

    def look() -> None:
        for path in tmp_path.iterdir():
            assert on_disk.get(path.stat().st_ino) == path.stat().st_size, f"{path.name} is not on the disk"
            assert path.name in names, f"the name {path.name} is not on the disk"

    for how in sync:
        monkeypatch.setattr(os, how, functools.partial(synced, how=how))
    open_audit(tmp_path).close()
    look()
    with (tmp_path / file_name(0)).open("ab") as file:
        file.write(b"of no kernel\n")
    log = open_audit(tmp_path)
    look()
    assert list(tmp_path.glob("*.strange-*"))
    write(log, 12)
    log.sync_now()
    log.close()
    look()
    assert len(audit_file.files(tmp_path)) > 1


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_lost_key_is_said_and_the_chain_goes_on_with_another(tmp_path: Path, damage: str) -> None:
    log = open_audit(tmp_path)
    write(log, 3)
    log.sync_now()
    killed(log)
    key = tmp_path / "key"
    key.unlink() if damage == "gone" else key.write_bytes(bytes(len(key.read_bytes())))
    log = open_audit(tmp_path)
    assert "was lost" in log.notes[0][1]
    write(log, 2)
    log.sync_now()
    log.close()
    report = looked_at(tmp_path)
    assert len(report.wrong) == 1
    assert report.sealed == report.lines


# --- while it runs ---------------------------------------------------------------------------------------------------


class Running:
    """A keeper, and what it has told the core."""

    def __init__(self, directory: Path, fsync: Fsync = "interval", anchor: Anchor = "", seconds: float = 60.0) -> None:
        self.told: list[Event] = []
        self.file = open_audit(directory)
        self.keeper = AuditKeeper(self.file, fsync, anchor, seconds, self.told.append)

    def write(self, ref: int = 0) -> None:
        self.keeper.write(Audit(AuditLine("kill", "processes", on={"pid": 7}), ref))


def run(act: Callable[[], object]) -> None:
    async def main() -> None:
        await act()  # type: ignore[misc]

    trio.run(main)


def test_a_kernel_that_halts_says_why_its_last_lines_are_not_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Running(tmp_path / "audit", fsync="always")
    running.write(ref=1)

    async def end() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", mock.Mock(side_effect=OSError(errno.EIO, os.strerror(errno.EIO))))
            assert await running.keeper.finish() == os.strerror(errno.EIO)
        running.keeper.close()

    run(end)
    (told,) = (event for event in running.told if isinstance(event, Audited))
    assert told.trouble == os.strerror(errno.EIO), "what waits for the line hears that it is not there"


def test_a_full_disk_is_said_once_and_lost_lines_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running(tmp_path)
    running.write()
    whole = write_all

    def half(fd: int, data: bytes) -> None:
        whole(fd, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(audit_file, "write_all", half)
    running.write()
    running.write(ref=5)
    reasons = [event.reason for event in running.told if isinstance(event, AuditFails)]
    assert len(reasons) == 1
    assert "No space left" in reasons[0]
    assert running.told[-1] == Audited(5, reasons[0])
    monkeypatch.setattr(audit_file, "write_all", whole)
    running.write(ref=6)
    assert running.told[-2:] == [AuditFails(""), Audited(6)]
    running.file.sync_now()
    running.keeper.close()
    assert b'"what":"lost","of":"log","details":{"count":2}' in running.file.path.read_bytes()
    assert looked_at(tmp_path).wrong == []


def test_under_always_a_call_and_an_answer_wait_for_the_disk(tmp_path: Path) -> None:
    running = Running(tmp_path, "always")
    answered: list[int] = []

    async def act() -> None:
        running.keeper.when_kept(lambda: answered.append(0))
        assert answered == [0]
        running.write(ref=1)
        running.keeper.when_kept(lambda: answered.append(1))
        assert (running.told, answered) == ([], [0])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.keeper.run)
            with trio.fail_after(PATIENCE):
                while len(answered) < 2:  # noqa: ASYNC110 - the keeper tells nobody else
                    await trio.sleep(0.005)
            nursery.cancel_scope.cancel()
        assert running.told == [Audited(1)]
        assert synced(tmp_path) == running.file.chain.lines

    run(act)
    running.keeper.close()


def test_after_a_sync_that_failed_lines_go_into_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running(tmp_path, "always")

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def act() -> None:
        with monkeypatch.context() as broke:
            broke.setattr(os, "fdatasync", broken)
            running.write(ref=1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(running.keeper.run)
                with trio.fail_after(PATIENCE):
                    while len(running.told) < 2:  # noqa: ASYNC110 - the keeper tells nobody else
                        await trio.sleep(0.005)
                nursery.cancel_scope.cancel()
        assert isinstance(running.told[0], AuditFails)
        assert running.told[1] == Audited(1, running.told[0].reason)
        running.write()
        await running.keeper.finish()

    run(act)
    running.keeper.close()
    assert len(files_of(tmp_path)) == 2
    assert looked_at(tmp_path).wrong == []


def test_a_file_that_somebody_removes_is_missed_and_another_begun(tmp_path: Path) -> None:
    running = Running(tmp_path)
    running.write()
    running.file.path.unlink()
    running.keeper.look()
    assert isinstance(running.told[-1], AuditFails)
    running.write()
    running.file.sync_now()
    running.keeper.close()
    assert running.told[-1] == AuditFails("")
    assert [name for name, _ in files_of(tmp_path)] == [file_name(2)]
    assert running.file.chain.lines == 5  # begin, lost, kill


def test_the_line_of_a_required_call_never_goes_into_a_file_that_nobody_finds(tmp_path: Path) -> None:
    running = Running(tmp_path)
    running.write()
    running.file.path.rename(tmp_path / "elsewhere")
    running.write(ref=5)
    running.file.sync_now()
    assert [type(event) for event in running.told] == [AuditFails, AuditFails, Audited]
    assert running.told[1:] == [AuditFails(""), Audited(5)]
    assert b'"what":"kill"' in running.file.path.read_bytes()
    (tmp_path / "elsewhere").rename(tmp_path / file_name(0))
    assert looked_at(tmp_path).wrong == [], "the file that was taken away and the new one are one chain"
    os.truncate(running.file.path, 0)
    running.write(ref=7)
    assert running.told[-2:] == [AuditFails(""), Audited(7)], "lines behind a cut would be of no chain"
    tmp_path.rename(aside := tmp_path.with_name("aside"))
    tmp_path.write_text("in the way of the directory")
    running.write(ref=6)
    refused = running.told[-1]
    tmp_path.unlink()
    aside.rename(tmp_path)
    running.keeper.close()
    assert isinstance(refused, Audited)
    assert "cannot be written" in refused.trouble


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["file", "program"])
def test_the_head_is_signed_and_anchored_and_no_more_often_than_there_are_lines(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "heads"
    append = f"import sys; open({str(place)!r}, 'ab').write(sys.stdin.buffer.read())"
    anchor: Anchor = str(place) if kind == "file" else [sys.executable, "-c", append]
    running = Running(tmp_path / "audit", anchor=anchor, seconds=0.05)

    async def act() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.keeper.run)
            running.write()
            with trio.fail_after(PATIENCE):
                while not place.exists() or not place.read_bytes().endswith(b"\n"):  # noqa: ASYNC110 - a file
                    await trio.sleep(0.01)
            await trio.sleep(0.3)
            nursery.cancel_scope.cancel()
        running.write()
        await running.keeper.finish()

    run(act)
    running.keeper.close()
    heads = [Head(**json.loads(line)) for line in place.read_text().splitlines()]
    assert [head.lines for head in heads] == [2, 4]
    report = looked_at(tmp_path / "audit", heads)
    assert report.wrong == []
    assert (report.signed_heads, report.anchored_heads) == (2, 2)


@pytest.mark.processes
def test_an_anchor_that_does_not_answer_is_ended_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_keeper, "ANCHOR_SECONDS", 0.2)
    running = Running(tmp_path, anchor=["sleep", "600"])

    async def act() -> None:
        running.write()
        with trio.fail_after(PATIENCE):
            await running.keeper.finish()

    run(act)
    running.keeper.close()
    assert [event.text for event in running.told if isinstance(event, Noted)] == [
        "audit: the anchor cannot be given the head: it has not ended after 0.2 s; it is tried again with the next one"
    ]
    assert looked_at(tmp_path).wrong == []

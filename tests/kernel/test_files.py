"""Files that users show to a shared kernel: for whom a reference is good, and how images are written."""

from __future__ import annotations

import os
import stat
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from llmasos.drivers.protocol import Export
from llmasos.kernel.edge import copies, files
from llmasos.kernel.edge.files import Files
from llmasos.kernel.edge.intake import Given
from llmasos.syscalls import limits, shown
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import PRINTABLE
from llmasos.syscalls.showing import Attempt
from llmasos.syscalls.table import TABLE, Checkpoint, Names, Restore, Spawn
from tests.doorway import apart, until
from tests.shown_files import ME, attempt, model_at, peer, plain, serving


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


def contents(path: str) -> bytes:
    return Path(path).read_bytes()


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
            call = (await apart(lambda: attempt(tmp_path, Restore(os.fspath(plain(tmp_path)))))).call
            spool = tmp_path / "files" / copies.SPOOL
            await until(lambda: not list(spool.iterdir()))
            assert served.named(peer(), 1, call)[0] == call

    trio.run(main)


def test_what_a_call_was_shown_stays_until_it_is_answered(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as served:
            spool = tmp_path / "files" / copies.SPOOL
            for end in (lambda: served.answered(1, 7), lambda: served.gone(1)):
                call = (await apart(lambda: attempt(tmp_path, Restore(os.fspath(plain(tmp_path)))))).call
                named, _ = served.named(peer(), 7, call)
                assert isinstance(named, Restore)
                assert contents(named.path) == b"x"
                end()
                await until(lambda: not list(spool.iterdir()))

    trio.run(main)


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

"""What is destroyed cannot be read any more: in no file, with all keys that are left."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from llmasos.syscalls import blocking
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import ShredInfo
from llmasos.syscalls.table import Checkpoint, Decode, Feed, Fork, Ps, Read, Restore, Shred, Spawn
from tests.booted import PATIENCE
from tests.system.home import Home
from tests.system.scan import Scan, needles

pytestmark = pytest.mark.processes

PLANTED = [30_011, 30_023, 30_047, 30_059]
TEXT = b"the planted words of one process"
FORKED = [25_013, 25_031, 25_057]
OTHERS = [20_011, 20_023, 20_047]


def masters(home: Home) -> list[bytes]:
    file = home.config.with_name("seal.key")
    return [bytes.fromhex(line) for line in file.read_text().split()] if file.exists() else []


def scan(home: Home, *more: Path) -> Scan:
    return Scan([home.state, home.run, *more], masters(home))


def lived(home: Home, tmp_path: Path) -> tuple[int, int, Path]:
    """Two processes with a past: a decode that was answered, records, a checkpoint; the pid of each, and the image."""
    image = tmp_path / "images" / "one.img"
    image.parent.mkdir(exist_ok=True)
    with home.connect() as kernel:
        one = kernel(Spawn("sim", [1, 2], name="one", detached=True), timeout=PATIENCE)
        other = kernel(Spawn("sim", OTHERS, name="other", detached=True), timeout=PATIENCE)
        kernel(Feed(one, PLANTED, [TEXT]), timeout=PATIENCE)
        kernel(Decode(one, 20), timeout=PATIENCE)
        kernel(Feed(other, OTHERS), timeout=PATIENCE)
        kernel(Checkpoint(one, str(image)), timeout=PATIENCE)
    return one, other, image


def shred(home: Home, pid: int) -> ShredInfo:
    with home.connect() as kernel:
        return kernel(Shred(pid), timeout=PATIENCE)


@pytest.mark.parametrize("plain", [False, True], ids=["encrypted", "plain"])
def test_nothing_of_a_shredded_process_is_in_any_file_nor_in_copies_made_before(
    home: Home, tmp_path: Path, plain: bool
) -> None:
    home.type("boot", "--detach", *(["--plain"] if plain else []))
    one, other, image = lived(home, tmp_path)
    home.kill(signal.SIGKILL)
    home.type("boot", "--detach", *(["--plain"] if plain else []))
    copies = tmp_path / "copies"
    copies.mkdir()
    for file in (home.state / "llmasos" / "kernel.journal", image):
        shutil.copy(file, copies)
    shutil.copy(file, home.state / "llmasos" / "kernel.journal.damaged-1")
    wanted = [TEXT, *needles(PLANTED)]
    assert home.state / "llmasos" / "kernel.journal" in scan(home).holds(*wanted), "the scan would find it"
    if not plain:
        assert image in scan(home, image.parent).holds(*wanted)
        assert set(scan(home, copies).holds(*wanted)) >= set(copies.iterdir())
    told = shred(home, one)
    assert any("log" in text for text in told.gone)
    assert any("forked" in text for text in told.left)
    assert told.sure is False, "the master key is on the same disk"
    places = [] if plain else [copies, image.parent]  # copies of what was never encrypted are out of reach, and said so
    assert scan(home, *places).holds(*wanted) == []
    assert scan(home).holds(*needles(OTHERS)), "what others said is there"
    with home.connect() as kernel, pytest.raises(SyscallError) as caught:
        kernel(Restore(str(copies / image.name)), timeout=PATIENCE) if not plain else kernel(Read(one + 99))
    assert caught.value.errno in (Errno.EPERM, Errno.ESRCH)
    home.kill(signal.SIGKILL)
    home.type("boot", "--detach", *(["--plain"] if plain else []))
    with home.connect() as kernel:
        assert kernel(Read(other), timeout=PATIENCE).tokens == OTHERS * 2
    assert scan(home, *places).holds(*wanted) == []
    home.type("halt")


def of_tenant(home: Home, tmp_path: Path) -> tuple[int, int, Path]:
    """Agents of a tenant and of the operator, who has forked one of the former; the pids of his, and an image of hers."""
    image = tmp_path / "images" / "hers.img"
    image.parent.mkdir(exist_ok=True)
    with home.connect() as kernel, blocking.connect(home.place, tenant="acme") as hers:
        one = hers(Spawn("sim", [1, 2], name="one", detached=True), timeout=PATIENCE)
        hers(Feed(one, PLANTED, [TEXT]), timeout=PATIENCE)
        hers(Decode(one, 20), timeout=PATIENCE)
        hers(Checkpoint(one, str(image)), timeout=PATIENCE)
        two = hers(Spawn("sim", FORKED, name="two", detached=True), timeout=PATIENCE)
        (child,) = kernel(Fork(two, detached=True), timeout=PATIENCE)
        other = kernel(Spawn("sim", OTHERS, name="other", detached=True), timeout=PATIENCE)
    return child, other, image


@pytest.mark.parametrize("runs", [True, False], ids=["kernel runs", "no kernel"])
def test_nothing_of_a_shredded_owner_is_in_any_file_nor_in_copies_and_others_have_theirs(
    home: Home, tmp_path: Path, runs: bool
) -> None:
    home.type("boot", "--detach")
    child, other, image = of_tenant(home, tmp_path)
    home.kill(signal.SIGKILL)
    copies = tmp_path / "copies"
    copies.mkdir()
    journal = home.state / "llmasos" / "kernel.journal"
    for file in (journal, image):
        shutil.copy(file, copies)
    wanted = [TEXT, *needles(PLANTED)]
    assert set(scan(home, copies, image.parent).holds(*wanted)) >= {journal, image, *copies.iterdir()}
    if runs:
        home.type("boot", "--detach")
    owner = f"{os.getuid()}/acme"
    said = home.type("shred", owner).stdout
    for words in ("gone: the key", "not reached: ", "children", "not sure"):
        assert words in said
    for _ in range(2):
        assert scan(home, copies, image.parent).holds(*wanted) == []
        assert scan(home).holds(*needles(OTHERS)), "what others said is there"
        if not runs:
            home.type("boot", "--detach")
        with home.connect() as kernel:
            assert kernel(Read(child), timeout=PATIENCE).tokens == FORKED
            assert kernel(Read(other), timeout=PATIENCE).tokens == OTHERS
            assert "one" not in {row.name for row in kernel(Ps(), timeout=PATIENCE)}
            with pytest.raises(SyscallError) as caught:
                kernel(Restore(str(copies / image.name)), timeout=PATIENCE)
            assert caught.value.errno is Errno.EPERM
        home.kill(signal.SIGKILL)
        if runs:
            home.type("boot", "--detach")
    if not runs:
        assert "no key of" in home.type("shred", owner, status=1).stderr
        home.type("boot", "--detach")
    home.type("halt")


def test_a_kernel_that_another_one_s_command_cannot_reach_is_named_and_the_rest_is_destroyed(
    home: Home, tmp_path: Path
) -> None:
    home.type("boot", "--detach")
    _, other, image = lived(home, tmp_path)
    ended = home.type("--runtime", str(tmp_path / "elsewhere"), "shred", str(os.getuid()), status=1)
    assert f"gone: the key of process image {image}" in ended.stdout
    assert f"its journal is {home.state / 'llmasos' / 'kernel.journal'}; name that kernel (--runtime" in ended.stderr
    with home.connect() as kernel:
        assert kernel(Read(other), timeout=PATIENCE).tokens == OTHERS * 2
    home.type("halt")


def test_an_owner_that_is_a_file_too_is_refused(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1001").write_text("somebody's")
    assert "./1001" in home.type("shred", "1001", status=1).stderr
    assert (tmp_path / "1001").exists()


def test_a_fork_keeps_what_it_has_and_its_journal_is_readable_without_the_parent_s_key(home: Home) -> None:
    home.type("boot", "--detach")
    with home.connect() as kernel:
        one = kernel(Spawn("sim", PLANTED, name="one", detached=True), timeout=PATIENCE)
        (child,) = kernel(Fork(one, detached=True), timeout=PATIENCE)
    shred(home, one)
    home.kill(signal.SIGKILL)
    home.type("boot", "--detach")
    with home.connect() as kernel:
        assert kernel(Read(child), timeout=PATIENCE).tokens == PLANTED
        assert len(kernel(Decode(child, 3), timeout=PATIENCE).tokens) == 3
    home.type("halt")


def test_the_shell_s_kill_says_what_is_gone_and_shred_takes_a_file_without_a_kernel(home: Home, tmp_path: Path) -> None:
    home.type("boot", "--detach")
    one, _, image = lived(home, tmp_path)
    with home.connect() as kernel:
        kernel(Checkpoint(one, str(image.with_name("two.img"))), timeout=PATIENCE)
    said = home.type("kill", "--shred", "one").stdout
    assert "gone: its key" in said
    assert "not reached: " in said
    assert "not sure" in said
    assert "kept: " not in said
    with home.connect() as kernel:
        again = kernel(Spawn("sim", PLANTED, name="again", detached=True), timeout=PATIENCE)
        kernel(Checkpoint(again, str(image)), timeout=PATIENCE)
    home.type("halt")
    copy = shutil.copy(image, tmp_path / "images" / "copy.img")
    assert scan(home, image.parent).holds(*needles(PLANTED))
    assert "noise" in home.type("shred", str(image)).stdout
    assert not image.exists()
    assert scan(home, image.parent).holds(*needles(PLANTED)) == []
    assert "was not among yours" in home.type("shred", str(copy)).stdout
    assert "no process image" in home.type("shred", str(home.config), status=1).stderr

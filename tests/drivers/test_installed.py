"""Installed models: made once, read ever after, and made again when anything about the file is off."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmasos.drivers.cpu import open_device
from llmasos.drivers.cpu.native import library
from llmasos.drivers.cpu.native.image import NativeImage
from llmasos.drivers.cpu.native.installed_file import Mapped
from llmasos.drivers.cpu.native.network import Blueprint
from llmasos.drivers.engine import files as files_of_models
from llmasos.drivers.engine.engine import Engine
from llmasos.drivers.protocol import Load
from llmasos.syscalls.errno import Errno, SyscallError
from tests.drivers.feeder import IMAGE, Feeder
from tests.drivers.reference import prompt

FRAMES = 16
LOG = "llmasos.drivers.cpu.native.installed"
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(isinstance(library.load(), str), reason="there is no native decoder")


@pytest.fixture
def model(zoo: Callable[[str], Path], tmp_path: Path) -> Path:
    """A model whose files a test may change."""
    return Path(shutil.copytree(zoo("qwen3"), tmp_path / "model"))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture(autouse=True)
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, LOG)
    return caplog


def files(store: Path) -> list[Path]:
    """Installed models in a store."""
    return sorted(path for path in store.glob("*") if path.is_file() and not path.name.startswith("."))


def tokens_of(model: Path, store: Path | str, dtype: str = "int8") -> tuple[list[int], list[float]]:
    """Load the model in a fresh driver and decode; also the fractions that the load reported."""
    device = open_device({"threads": "1", "installed": str(store)})
    assert isinstance(device, Engine)
    fractions: list[float] = []
    device.fetch(Load(1, IMAGE, str(model), dtype, FRAMES), fractions.append)()
    feeder = Feeder(device, frames=FRAMES)
    (decoded,) = feeder.generate([feeder.spawn(prompt(3, 20))], 12)
    device.unload(IMAGE)
    return decoded, fractions


def messages(told: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in told.records if record.levelno == level]


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_model_is_installed_once_and_then_read(
    model: Path, store: Path, dtype: str, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, _ = tokens_of(model, "no", dtype)
    first, fractions = tokens_of(model, store, dtype)
    assert first == wanted
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len(files(store)) == 1
    assert len(messages(told, logging.INFO)) == 1
    assert messages(told, logging.INFO)[0].startswith(f"installed {model}")

    def never(*_: object) -> None:
        raise AssertionError("the model's own files were read")

    monkeypatch.setattr(files_of_models, "open_weights", never)
    assert tokens_of(model, store, dtype)[0] == wanted
    assert len(messages(told, logging.INFO)) == 1


def test_dtypes_are_installed_side_by_side(model: Path, store: Path) -> None:
    for dtype in ("int8", "int4", "int8"):
        tokens_of(model, store, dtype)
    assert len(files(store)) == 2


def test_weights_that_change_are_installed_anew(model: Path, store: Path, zoo: Callable[[str], Path]) -> None:
    first, _ = tokens_of(model, store)
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-2000:] = bytes(2000)  # other weights of the same shape, in the same place
    (model / "model.safetensors").write_bytes(data)
    assert tokens_of(model, store)[0] == tokens_of(model, "no")[0]
    assert len(files(store)) == 2
    shutil.copyfile(zoo("qwen3") / "model.safetensors", model / "model.safetensors")
    assert tokens_of(model, store)[0] == first
    assert len(files(store)) == 2  # the content counts, not the times


def positions(size: int) -> list[int]:
    """In the prelude, the header, the weights and the tables."""
    return [3, 12, 20, 200, size // 3, size // 2, size - 5]


def test_what_was_not_used_for_long_goes_when_another_is_installed(
    model: Path, store: Path, told: pytest.LogCaptureFixture
) -> None:
    tokens_of(model, store)
    (old,) = files(store)
    os.utime(old, (0, 0))
    tokens_of(model, store)  # being read is use
    tokens_of(model, store, "int4")
    assert old in files(store)
    os.utime(old, (0, 0))
    others = [store / name for name in ("llama-int4-g128.v2.safetensors", ".a-int8-0123456789abcdef.v1.2.lock")]
    for other in others:
        other.touch()
        os.utime(other, (0, 0))
    with (model / "config.json").open("a") as file:
        file.write("\n")  # another digest
    tokens_of(model, store, "int4")
    assert old not in files(store)
    assert all(other.exists() for other in others)
    assert len(files(store)) == 3
    assert any(str(old) in line and "not loaded" in line for line in messages(told, logging.INFO))


@pytest.mark.parametrize("part", range(7))
def test_a_flipped_bit_is_noticed_and_the_model_made_again(
    model: Path, store: Path, part: int, told: pytest.LogCaptureFixture
) -> None:
    wanted, _ = tokens_of(model, store)
    (file,) = files(store)
    whole = file.read_bytes()
    broken = bytearray(whole)
    at = positions(len(whole))[part]
    while part >= 4 and not broken[at]:
        at -= 1  # not in the padding, which nothing depends on
    broken[at] ^= 16
    file.write_bytes(broken)
    assert tokens_of(model, store)[0] == wanted
    (warning,) = messages(told, logging.WARNING)
    assert str(file) in warning
    assert "made again" in warning
    assert file.read_bytes() == whole


@pytest.mark.parametrize("keep", [0, 7, 24, 100, 5000, -1])
def test_a_file_cut_short_is_noticed_and_the_model_made_again(
    model: Path, store: Path, keep: int, told: pytest.LogCaptureFixture
) -> None:
    wanted, _ = tokens_of(model, store)
    (file,) = files(store)
    whole = file.read_bytes()
    file.write_bytes(whole[:keep])
    assert tokens_of(model, store)[0] == wanted
    assert any("made again" in line for line in messages(told, logging.WARNING))
    assert file.read_bytes() == whole


def test_a_digest_memory_that_is_damaged_is_done_without(model: Path, store: Path) -> None:
    wanted, _ = tokens_of(model, store)
    for file in (store / "digests").iterdir():
        file.write_bytes(b"\xff\xfe\x80")
    assert tokens_of(model, store)[0] == wanted
    assert len(files(store)) == 1


def test_a_model_that_changes_while_it_is_installed_is_neither_kept_nor_run(
    model: Path, store: Path, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = files_of_models.open_weights

    def load(*arguments: Any) -> Any:
        loaded = whole(*arguments)
        os.utime(model / "config.json")
        (model / "config.json").write_text((model / "config.json").read_text() + "\n")
        return loaded

    monkeypatch.setattr(files_of_models, "open_weights", load)
    with pytest.raises(SyscallError, match="changed while") as refused:  # it may be of two models
        tokens_of(model, store)
    assert refused.value.errno is Errno.EIO
    assert files(store) == []
    assert any("changed while it was read" in line for line in messages(told, logging.WARNING))


def test_a_store_that_cannot_be_made_is_done_without(model: Path, tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert tokens_of(model, tmp_path / "file" / "store")[0] == tokens_of(model, "no")[0]
    assert any("cannot be kept" in line for line in messages(told, logging.WARNING))


_LOADER = """
import logging, resource, signal, sys
sys.path.insert(0, {root!r})
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
from llmasos.drivers.cpu import open_device
from llmasos.drivers.cpu.native import installed
from llmasos.drivers.protocol import Load
{before}
device = open_device({{"threads": "1", "installed": {store!r}}})
print("ready", flush=True)
sys.stdin.readline()
device.fetch(Load(1, 1, {model!r}, "int8", 4), lambda fraction: None)()
print("loaded", flush=True)
"""


def loader(model: Path, store: Path, before: str = "") -> subprocess.Popen[str]:
    """Another process that loads the model when it is told to."""
    code = _LOADER.format(root=str(ROOT), store=str(store), model=str(model), before=before)
    started = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdout
    assert started.stdout.readline() == "ready\n"
    return started


def test_a_full_disk_costs_the_file_and_nothing_else(model: Path, store: Path) -> None:
    """A limit on the size of files stands in for the disk's end: writes fail with an error in the same place."""
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))"
    assert resource.RLIMIT_FSIZE
    out, _ = loader(model, store, before=limit).communicate("\n", timeout=120)
    assert "loaded" in out
    assert "used but not kept" in out
    assert files(store) == []
    assert list(store.glob(".*.part")) == []


def test_an_installer_that_is_killed_leaves_no_half_file(model: Path, store: Path) -> None:
    stop = "installed.os.pwrite = lambda *_: __import__('os').kill(__import__('os').getpid(), signal.SIGKILL)"
    killed = loader(model, store, before=stop)
    killed.communicate("\n", timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert files(store) == []
    tokens_of(model, store)
    assert len(files(store)) == 1
    assert list(store.glob(".*.part")) == []


_SLOW = """
import pathlib, time
waits, make, say = pathlib.Path({waits!r}), installed.Store._write, installed._log.info
def write(*words):
    while not waits.exists():
        time.sleep(0.01)
    return make(*words)
def info(text, *words):
    say(text, *words)
    if text.startswith("waiting for another"):
        waits.touch()
installed.Store._write, installed._log.info = write, info
"""


def test_two_installers_at_once_make_one_model(model: Path, store: Path, tmp_path: Path) -> None:
    both = [loader(model, store, before=_SLOW.format(waits=os.fspath(tmp_path / "waits"))) for _ in range(2)]
    for one in both:
        assert one.stdin
        one.stdin.write("\n")
        one.stdin.flush()
    said = [one.communicate(timeout=120)[0] for one in both]
    assert all("loaded" in text for text in said)
    assert sum("installed " in text for text in said) == 1
    assert sum("waiting for another" in text for text in said) == 1
    assert len(files(store)) == 1


def test_waiting_for_a_lock_shows_life(model: Path, store: Path) -> None:
    import filelock

    tokens_of(model, store)
    (file,) = files(store)
    file.unlink()
    lock = filelock.FileLock(store / f".{file.name}.lock")
    ticks: list[float] = []

    def progress(fraction: float) -> None:
        ticks.append(time.monotonic())
        if len(ticks) == 3:
            lock.release()

    from llmasos.drivers.cpu.native.image import NativeKind
    from llmasos.drivers.cpu.native.installed import Store

    device = open_device({"threads": "1", "installed": "no"})
    assert isinstance(device, Engine)
    kind = device._models._kinds[0]
    assert isinstance(kind, NativeKind)
    lock.acquire()
    with pytest.raises(AssertionError, match="made"):
        Store(store).get(model, "int8", _made, progress)
    assert len(ticks) >= 3


def test_a_first_load_has_its_tables_mapped_as_any_later_one(model: Path, store: Path) -> None:
    for _ in range(2):
        device = open_device({"threads": "1", "installed": str(store)})
        assert isinstance(device, Engine)
        device.fetch(Load(1, IMAGE, str(model), "int8", FRAMES), lambda fraction: None)()
        image = device._images[IMAGE]
        assert isinstance(image, NativeImage)
        assert isinstance(image._network._tables, Mapped)
        device.unload(IMAGE)


def _made(progress: Callable[[float], None]) -> Blueprint:
    raise AssertionError("made")


def test_what_was_read_outlives_the_file(model: Path, store: Path) -> None:
    tokens_of(model, store)
    device = open_device({"threads": "1", "installed": str(store)})
    device.fetch(Load(1, IMAGE, str(model), "int8", FRAMES), lambda fraction: None)()
    for file in files(store):
        os.unlink(file)
    feeder = Feeder(device, frames=FRAMES)
    assert feeder.generate([feeder.spawn(prompt(3, 20))], 12) == [tokens_of(model, "no")[0]]
    device.unload(IMAGE)


def test_an_unreadable_model_is_an_error_and_installs_nothing(model: Path, store: Path) -> None:
    (model / "model.safetensors").write_bytes(b"nonsense")
    device = open_device({"threads": "1", "installed": str(store)})
    with pytest.raises(SyscallError) as caught:
        device.fetch(Load(1, IMAGE, str(model), "int8", FRAMES), lambda fraction: None)()
    assert caught.value.errno is Errno.EIO
    assert files(store) == []

"""Process images through the engine: KV that went to a file and came back, elsewhere, goes on with the same tokens."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmasos.drivers.cpu import open_device
from llmasos.drivers.cpu.native import library
from llmasos.drivers.device import Device
from llmasos.drivers.engine.engine import Engine
from llmasos.drivers.protocol import Export, Exported, Import, Imported, Inspect, Load
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Sampler
from tests.drivers.feeder import GREEDY, IMAGE, Feeder, Process

FRAMES = 40
NATIVE = not isinstance(library.load(), str)
FORMS = [
    ("fp32", "bf16"),
    ("bf16", "bf16"),
    *([("int8", "bf16"), ("int4", "bf16"), ("int8", "int8")] if NATIVE else []),
]
SAMPLED = Sampler(temperature=0.9, top_k=30, seed=5)
LOG = [(i * i + 3 * i) % 190 for i in range(150)]


def opened(model: Path, dtype: str, tmp_path: Path, **options: str) -> Device:
    device = open_device({"threads": "2", "installed": "no", "swapdir": str(tmp_path), **options})
    device.fetch(Load(1, IMAGE, str(model), dtype, FRAMES, [600]), lambda fraction: None)()
    return device


def export(device: Device, process: Process, path: Path, key: bytes = b"") -> Exported:
    places = [(1, place) for place in process.places]
    request = Export(7, IMAGE, process.ctx, str(path), b"head", process.computed, process.table, places, key)
    return device.export(request)()


def bring_back(
    feeder: Feeder, log: list[int], sampler: Sampler, path: Path, key: bytes = b""
) -> tuple[Process, Imported]:
    """A process of another feeder with the KV of a file."""
    found = feeder.device.inspect(Inspect(8, str(path), key))
    assert found.head == b"head"
    process = feeder.spawn(log, sampler)
    frames = [feeder._allocate() for _ in range(-(-found.tokens // 16))]
    done = feeder.device.import_(Import(9, IMAGE, str(path), found.id, 0, frames, found.tokens, key))
    process.table, process.computed = frames[: -(-done.tokens // 16)], done.tokens
    return process, done


CASES = [(dtype, kv, sampler, b"") for dtype, kv in FORMS for sampler in (GREEDY, SAMPLED)]


@pytest.mark.parametrize(("dtype", "kv", "sampler", "key"), [*CASES, ("fp32", "bf16", GREEDY, b"open sesame")])
def test_another_driver_goes_on_with_the_same_tokens(
    zoo: Callable[[str], Path], tmp_path: Path, dtype: str, kv: str, sampler: Sampler, key: bytes
) -> None:
    options = {} if kv == "bf16" else {"kv": kv}
    feeder = Feeder(opened(zoo("qwen3"), dtype, tmp_path, **options), FRAMES)
    process = feeder.spawn(LOG, sampler)
    feeder.generate([process], 7)
    log = list(process.log)
    done = export(feeder.device, process, tmp_path / "image", key)
    assert (done.tokens, done.reason) == (len(log) - 1, "")
    assert done.bytes == (tmp_path / "image").stat().st_size
    wanted = feeder.generate([process], 40)
    other = Feeder(opened(zoo("qwen3"), dtype, tmp_path, **options), FRAMES, seed=1)
    beside = other.spawn(LOG[:70])
    other.generate([beside], 3)
    restored, answer = bring_back(other, log, sampler, tmp_path / "image", key)
    assert (answer.tokens, answer.reason) == (len(log) - 1, "")
    assert other.generate([restored], 40) == wanted
    recomputed = other.spawn(log, sampler)
    assert other.generate([recomputed], 40) == wanted, "without its KV as well"


def test_an_export_has_the_frames_as_they_were_when_it_was_asked_for(zoo: Callable[[str], Path], tmp_path: Path) -> None:
    feeder = Feeder(opened(zoo("llama"), "fp32", tmp_path), FRAMES)
    process = feeder.spawn(LOG)
    feeder.generate([process], 2)
    log = list(process.log)
    request = Export(7, IMAGE, process.ctx, str(tmp_path / "image"), b"head", process.computed, list(process.table))
    rest = feeder.device.export(request)
    wanted = feeder.generate([process], 20)
    feeder.end(process)
    others = [feeder.spawn([token] * 300) for token in (1, 2)]
    feeder.generate(others, 1)  # in the same frames
    for other in others:
        feeder.end(other)
    rest()
    restored, _ = bring_back(feeder, log, GREEDY, tmp_path / "image")
    assert feeder.generate([restored], 20) == wanted


@pytest.mark.parametrize("dtype", ["fp32", *(["int8"] if NATIVE else [])])
def test_kv_below_is_in_the_image_as_far_as_it_can_be_had(zoo: Callable[[str], Path], tmp_path: Path, dtype: str) -> None:
    device = opened(zoo("qwen3"), dtype, tmp_path)
    assert isinstance(device, Engine)
    feeder = Feeder(device, FRAMES)
    process, other = feeder.spawn(LOG), feeder.spawn([3, 4])
    feeder.generate([process], 2)
    log = list(process.log)
    twin = Feeder(opened(zoo("qwen3"), dtype, tmp_path), FRAMES)
    wanted = twin.generate([twin.spawn(log)], 20)
    feeder.move_out(process)
    feeder.generate([other], 1)
    assert export(device, process, tmp_path / "image").tokens == len(log) - 1
    restored, _ = bring_back(feeder, log, GREEDY, tmp_path / "image")
    assert feeder.generate([restored], 20) == wanted
    (places,) = device._images[IMAGE].below
    os.pwrite(places._file.descriptor, b"x", 4 * places._stride + 100)  # type: ignore[attr-defined]
    done = export(device, process, tmp_path / "image")
    assert done.tokens == 64
    assert "place 4 of the swap file" in done.reason
    restored, _ = bring_back(feeder, log, GREEDY, tmp_path / "image")
    assert feeder.generate([restored], 20) == wanted


def test_kv_is_taken_only_where_it_would_have_been_the_same(
    zoo: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feeder = Feeder(opened(zoo("llama"), "fp32", tmp_path), FRAMES)
    process = feeder.spawn(LOG)
    feeder.generate([process], 2)
    export(feeder.device, process, tmp_path / "image")

    def reason(device: Device) -> str:
        _, done = bring_back(Feeder(device, FRAMES), process.log, GREEDY, tmp_path / "image")
        assert (done.tokens > 0) == (not done.reason)
        return done.reason

    copy = tmp_path / "elsewhere"
    shutil.copytree(zoo("llama"), copy)
    assert reason(opened(copy, "fp32", tmp_path)) == "", "the same model, wherever it lies"
    assert "weights was fp32, is bf16" in reason(opened(zoo("llama"), "bf16", tmp_path))
    assert "model was" in reason(opened(zoo("mistral"), "fp32", tmp_path))
    with monkeypatch.context() as without:
        without.setattr(library, "load", lambda: "it is switched off")
        assert not NATIVE or "engine was native" in reason(opened(zoo("llama"), "fp32", tmp_path))
    assert not NATIVE or reason(opened(copy, "fp32", tmp_path, threads="1")) == "", "no bit depends on threads"
    changed = opened(copy, "fp32", tmp_path)
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    assert "are not those that were loaded" in reason(changed)
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert "another user's" in reason(opened(zoo("llama"), "fp32", tmp_path))


def test_torch_trusts_kv_of_as_many_threads_only(zoo: Callable[[str], Path], tmp_path: Path) -> None:
    feeder = Feeder(opened(zoo("gpt2"), "fp32", tmp_path), FRAMES)
    process = feeder.spawn(LOG)
    feeder.generate([process], 2)
    export(feeder.device, process, tmp_path / "image")
    for threads, reason in (("2", ""), ("1", "threads was 2, is 1")):
        device = opened(zoo("gpt2"), "fp32", tmp_path, threads=threads)
        _, done = bring_back(Feeder(device, FRAMES), process.log, GREEDY, tmp_path / "image")
        assert reason in done.reason
        assert (done.tokens > 0) == (not reason)
    torch.set_num_threads(1)


def test_a_model_that_has_changed_since_it_was_loaded_gives_no_kv_away(
    zoo: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(zoo("llama"), copy)
    feeder = Feeder(opened(copy, "fp32", tmp_path), FRAMES)
    process = feeder.spawn(LOG)
    feeder.generate([process], 2)
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    done = export(feeder.device, process, tmp_path / "image")
    assert done.tokens == 0
    assert "are not those that were loaded" in done.reason
    assert feeder.device.inspect(Inspect(8, str(tmp_path / "image"))).head == b"head"


def test_a_damaged_block_ends_what_is_read_and_another_file_is_not_taken_for_it(
    zoo: Callable[[str], Path], tmp_path: Path
) -> None:
    feeder = Feeder(opened(zoo("llama"), "fp32", tmp_path), FRAMES)
    process = feeder.spawn(LOG)
    wanted = feeder.generate([process], 12)
    log = process.log[: len(LOG)]
    image = tmp_path / "image"
    export(feeder.device, process, image)
    size = feeder.device._images[IMAGE].slab.shape.block_bytes  # type: ignore[attr-defined]
    raw = bytearray(image.read_bytes())
    raw[-16 - 3 * (size + 8)] ^= 1  # in the last block but two, of eleven
    image.write_bytes(raw)
    restored, done = bring_back(feeder, log, GREEDY, image)
    assert done.tokens == 8 * 16
    assert "block 8 is damaged" in done.reason
    assert feeder.generate([restored], 12) == wanted
    found = feeder.device.inspect(Inspect(8, str(image)))
    export(feeder.device, process, image)
    frames = [feeder._allocate() for _ in range(10)]
    late = feeder.device.import_(Import(9, IMAGE, str(image), found.id, 0, frames, found.tokens))
    assert (late.tokens, late.reason) == (0, "another file has its name now")
    image.unlink()
    gone = feeder.device.import_(Import(9, IMAGE, str(image), found.id, 2, frames, found.tokens))
    assert gone.tokens == 32
    assert "no such file" in gone.reason
    with pytest.raises(SyscallError) as caught:
        feeder.device.import_(Import(9, IMAGE, str(image), found.id, 0, [FRAMES], 16))
    assert caught.value.errno is Errno.EINVAL


def test_without_kv_no_model_is_needed(tmp_path: Path) -> None:
    device = open_device({"threads": "1", "installed": "no", "swap": "0"})
    request = Export(7, 0, 3, str(tmp_path / "image"), b"head", 0, [])
    assert device.export(request)().tokens == 0
    found = device.inspect(Inspect(8, str(tmp_path / "image")))
    assert (found.head, found.tokens) == (b"head", 0)

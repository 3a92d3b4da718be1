"""Weights that are not all in memory: dropped and brought back, or streamed by layers. No bit of a result changes."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.drivers.cpu import open_device
from llmasos.drivers.cpu.native import library, stream
from llmasos.drivers.cpu.native.guard import Guard
from llmasos.drivers.cpu.native.image import NativeImage
from llmasos.drivers.cpu.native.installed_file import _read_header
from llmasos.drivers.cpu.native.stream import WINDOW, Ahead, choose, resident
from llmasos.drivers.engine.digest import content_digest
from llmasos.drivers.engine.engine import Engine
from llmasos.drivers.protocol import Load, Loaded, Probe, Run, Sample, Step, Trust
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Sampler
from tests import models_zoo
from tests.drivers.feeder import IMAGE, Feeder
from tests.drivers.process import PATIENCE
from tests.drivers.reference import prompt

FRAMES = 64
LAYERS = 12
needs_native = pytest.mark.skipif(isinstance(library.load(), str), reason="there is no native decoder")


# --- which layers stay ----------------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=40), share=st.integers(1, 100))
def test_as_few_layers_are_streamed_as_will_do(sizes: list[int], share: int) -> None:
    room = sum(sizes) * share // 100
    try:
        chosen = choose(sizes, room)
    except MemoryError:
        everything = list(range(len(sizes)))
        assert sum(sizes) > room
        assert len(sizes) <= WINDOW or resident(sizes, everything) > room
        return
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(len(sizes)))
    assert (resident(sizes, chosen) if chosen else sum(sizes)) <= room
    assert bool(chosen) == (sum(sizes) > room)
    assert not chosen or len(chosen) > WINDOW


def test_streamed_layers_are_spread_evenly() -> None:
    chosen = choose([10] * 24, 10 * (24 - 8 + WINDOW))
    assert len(chosen) == 8
    assert {b - a for a, b in itertools.pairwise(chosen)} == {3}


# --- the same bits --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Models with more layers than the window has, of about a megabyte each."""
    built: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in built:
            changes = {"num_hidden_layers": LAYERS, "hidden_size": 256, "intermediate_size": 1024}
            built[name] = models_zoo.build(name, tmp_path_factory.mktemp(name), changes=changes)
        return built[name]

    return get


def native_image(device: Engine) -> NativeImage:
    image = device._images[IMAGE]
    assert isinstance(image, NativeImage)
    return image


def loaded(model: Path, store: Path, dtype: str, share: float, **options: str) -> tuple[Engine, Loaded]:
    """A driver with the model, in as much memory as is that share of its layers, and all of its head."""
    device = open_device({"threads": "1", "installed": str(store), **options})
    assert isinstance(device, Engine)
    room = 0
    if share < 1:
        device.fetch(Load(1, IMAGE, str(model), dtype, FRAMES), lambda _: None)()
        device.unload(IMAGE)
        (file,) = [path for path in store.glob(f"*-{dtype}-*") if not path.name.startswith(".")]
        with file.open("rb") as opened:
            sizes = [page.size for page in _read_header(opened.fileno())[0].pages]
        room = sizes[-1] + int(sum(sizes[:-1]) * share)
    answer = device.fetch(Load(1, IMAGE, str(model), dtype, FRAMES, room=room), lambda _: None)()
    assert answer.resident_bytes <= (room or answer.weight_bytes)
    return device, answer


def said(device: Engine, *, idle: bool = False) -> tuple[list[list[int]], list[object]]:
    feeder = Feeder(device, frames=FRAMES, idle=idle)
    processes = [feeder.spawn(prompt(seed, 20 + 9 * seed), Sampler(temperature=1.0, seed=seed)) for seed in range(3)]
    tokens = feeder.generate(processes, 12, chunk=[7, 30], logprobs=0 if idle else 3)
    return tokens, [process.logprobs for process in processes]


@needs_native
@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_streamed_model_computes_the_same_bits_as_a_resident_one(
    deep: Callable[[str], Path], tmp_path: Path, name: str, dtype: str, threads: str
) -> None:
    whole, _ = loaded(deep(name), tmp_path, dtype, 1)
    wanted = said(whole)
    for share in (0.8, 0.3):
        streamed, answer = loaded(deep(name), tmp_path, dtype, share, threads=threads)
        assert native_image(streamed)._network.streamed
        assert answer.resident_bytes < answer.weight_bytes
        assert said(streamed) == wanted
        assert native_image(streamed).layers_read >= WINDOW, "they were read ahead"
        streamed.unload(IMAGE)


@needs_native
@pytest.mark.parametrize("short", [False, True])
def test_layers_are_read_ahead_in_every_step_where_memory_is_short_else_once(
    deep: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    monkeypatch.setattr(stream, "available", lambda: 0 if short else 1 << 40)
    monkeypatch.setattr(stream, "_major_faults", lambda: 7)
    streamed, _ = loaded(deep("qwen3"), tmp_path, "int8", 0.3)
    count = len(native_image(streamed)._network.streamed)
    if short:
        deadline = time.monotonic() + PATIENCE
        while native_image(streamed).layers_read <= 3 * count and time.monotonic() < deadline:
            said(streamed)  # some fifteen steps, of tiny layers that may be computed before they are read ahead
        assert native_image(streamed).layers_read > 3 * count
    else:
        for _ in range(3):
            said(streamed)
        assert native_image(streamed).layers_read <= 2 * count
    streamed.unload(IMAGE)


@needs_native
def test_steps_that_are_given_up_do_not_confuse_who_reads_ahead(deep: Callable[[str], Path], tmp_path: Path) -> None:
    whole, _ = loaded(deep("qwen3"), tmp_path, "int8", 1)
    wanted = said(whole)[0]
    streamed, _ = loaded(deep("qwen3"), tmp_path, "int8", 0.4, early="yes", threads="1")
    assert said(streamed, idle=True)[0] == wanted
    assert said(streamed, idle=True)[0] == wanted
    streamed.unload(IMAGE)


def guard_of(device: Engine) -> Guard:
    guard = native_image(device)._guard
    assert guard is not None
    return guard


def errors(device: Engine) -> list[str]:
    """What a step of two contexts comes to, each without a token if there is one."""
    runs = [Run(90 + n, IMAGE, 0, prompt(n, 5), 0, [n + 1], Sample(Sampler(), 5, True)) for n in range(2)]
    done = device.step(Step(1, runs))
    results = done.results
    assert done.changed == ([IMAGE] if any(result.error for result in results) else [])
    assert all((result.token < 0) is bool(result.error) for result in results)
    return [result.error for result in results]


def overwrite(file: Path, at: int) -> Callable[[], None]:
    """Write into a file where it is; returns what makes that undone."""
    with file.open("r+b") as opened:
        opened.seek(at)
        before = opened.read(64)
        opened.seek(at)
        opened.write(bytes(byte ^ 0x55 for byte in before))

    def undo() -> None:
        with file.open("r+b") as again:
            again.seek(at)
            again.write(before)

    return undo


@needs_native
@pytest.mark.parametrize("where", ["a streamed layer", "the tables", "cut short"])
def test_a_file_that_changes_under_a_model_gives_no_token_and_is_made_anew_when_the_model_comes_in_again(
    deep: Callable[[str], Path], tmp_path: Path, where: str
) -> None:
    device, _ = loaded(deep("qwen3"), tmp_path, "int8", 0.3)
    wanted = said(device)
    (file,) = [path for path in tmp_path.glob("*-int8-*") if not path.name.startswith(".")]
    os.utime(file)  # as another driver does that loads it
    assert said(device) == wanted
    held = next(one for one in guard_of(device)._held if (one.layer >= 0) is (where == "a streamed layer"))
    if where == "cut short":
        os.truncate(file, held.at)
    else:
        overwrite(file, held.at + held.size // 2)
    for _ in range(2):
        assert all("has changed under the model" in error for error in errors(device))
    device.drop_weights(IMAGE)
    device.fetch(Load(1, IMAGE, str(deep("qwen3")), "int8", FRAMES, again=True), lambda _: None)()
    assert said(device) == wanted
    device.unload(IMAGE)


@needs_native
def test_where_models_have_to_be_trusted_a_disk_s_fault_is_found_when_the_layer_is_brought_in_again(
    deep: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "available", lambda: 0)
    device, answer = loaded(deep("qwen3"), tmp_path, "int8", 0.3)
    device.unload(IMAGE)
    trust = Trust([content_digest(deep("qwen3"), None, lambda: None)])
    load = Load(2, IMAGE, str(deep("qwen3")), "int8", FRAMES, room=answer.resident_bytes, trust=trust)
    device.fetch(load, lambda _: None)()
    guard = guard_of(device)
    assert guard.strict
    wanted = said(device)
    monkeypatch.setattr(guard, "_now", lambda: guard._stamp)  # a fault of the disk changes no times
    (file,) = [path for path in tmp_path.glob("*-int8-*") if not path.name.startswith(".")]
    layer = next(one for one in guard._held if one.layer > 0)
    undo = overwrite(file, layer.at + layer.size // 2)
    deadline = time.monotonic() + PATIENCE
    while not guard.trouble and time.monotonic() < deadline:
        errors(device)
    assert all("has changed under the model" in error for error in errors(device))
    undo()
    device.unload(IMAGE)
    device.fetch(load, lambda _: None)()
    assert said(device) == wanted
    device.unload(IMAGE)


def mapped(file: Path) -> int:
    """Bytes of a file that this process has mapped and in memory."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            ours = line.endswith(str(file))
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


@needs_native
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="it is not told what is in memory")
def test_where_memory_is_short_only_the_window_of_what_is_streamed_stays_mapped(
    deep: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "available", lambda: 0)
    device, _ = loaded(deep("qwen3"), tmp_path, "int8", 0.3)
    stretches = native_image(device)._network.streamed
    (file,) = [path for path in tmp_path.glob("*-int8-*") if not path.name.startswith(".")]
    said(device)
    # Beside the window: the tables, of which rows are read, and what a fault on a layer's border maps around it.
    most = WINDOW * max(stretch.size for stretch in stretches) + native_image(device).weight_bytes // 10
    assert sum(stretch.size for stretch in stretches) > 1.5 * most
    deadline = time.monotonic() + PATIENCE
    while mapped(file) > most and time.monotonic() < deadline:
        time.sleep(0.01)
    assert 0 < mapped(file) <= most
    device.unload(IMAGE)


@needs_native
def test_room_for_less_than_a_window_or_nowhere_to_stream_from_is_an_error_that_says_so(
    deep: Callable[[str], Path], zoo: Callable[[str], Path], tmp_path: Path
) -> None:
    device = open_device({"threads": "1", "installed": str(tmp_path), "dtype": "int8"})
    model = str(deep("qwen3"))
    probed = device.probe(Probe(1, model, "int8"))
    assert 0 < probed.stream_bytes < probed.weight_bytes
    with pytest.raises(SyscallError, match="window") as caught:
        device.fetch(Load(1, IMAGE, model, "int8", 4, room=probed.stream_bytes // 4), lambda _: None)()
    assert caught.value.errno is Errno.ENOMEM
    assert device.probe(Probe(1, model, "bf16")).stream_bytes == 0
    for name, words in (("qwen3", "cannot be streamed"), ("gpt2", "does not stream")):
        with pytest.raises(SyscallError, match=words) as caught:
            device.fetch(Load(1, IMAGE, str(zoo(name)), "bf16", 4, room=1 << 10), lambda _: None)()
        assert caught.value.errno is Errno.ENOMEM
    nowhere = open_device({"threads": "1", "installed": "no"})
    assert nowhere.probe(Probe(1, model, "int8")).stream_bytes == 0
    with pytest.raises(SyscallError, match="installed") as caught:
        nowhere.fetch(Load(1, IMAGE, model, "int8", 4, room=probed.stream_bytes), lambda _: None)()
    assert caught.value.errno is Errno.ENOMEM


def test_who_reads_ahead_ends_when_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    ahead = Ahead([stream.Stretch(i, 0, 0) for i in range(5)], 5)
    monkeypatch.setattr(ahead, "_tell", lambda stretch, what: told.append((stretch.layer, what)))
    for _ in range(3):
        ahead.begin()
        ahead.end()
    ahead.close()
    assert not ahead._thread.is_alive()


# --- without weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_frames_and_contexts_outlive_the_weights(zoo: Callable[[str], Path], tmp_path: Path, dtype: str) -> None:
    model = str(zoo("qwen3"))

    def device() -> Engine:
        made = open_device({"threads": "1", "installed": str(tmp_path), "swapdir": str(tmp_path)})
        assert isinstance(made, Engine)
        made.fetch(Load(1, IMAGE, model, dtype, FRAMES, [FRAMES]), lambda _: None)()
        return made

    plain = Feeder(device(), frames=FRAMES)
    (wanted,) = plain.generate([plain.spawn(prompt(1, 40))], 12)
    engine = device()
    feeder = Feeder(engine, frames=FRAMES)
    process, other = feeder.spawn(prompt(1, 40)), feeder.spawn(prompt(2, 40))
    feeder.generate([other], 1)
    (first,) = feeder.generate([process], 6)
    engine.drop_weights(IMAGE)
    with pytest.raises(SyscallError, match=r"^EINVAL: image 3 "):
        engine.drop_weights(IMAGE)
    refused = engine.step(Step(1, [Run(99, IMAGE, 0, [5], 0, [FRAMES - 1])])).results[0]
    assert "not in memory" in refused.error
    feeder.move_out(process)  # frames can be moved all the same
    feeder.step([])
    with pytest.raises(SyscallError, match=r"^EINVAL: image 3 "):
        engine.fetch(Load(2, IMAGE, model, dtype, FRAMES, [FRAMES]), lambda _: None)()
    engine.fetch(Load(2, IMAGE, model, dtype, FRAMES, [FRAMES], again=True), lambda _: None)()
    feeder.move_in(process)
    computed = process.computed
    (second,) = feeder.generate([process], 6, chunk=1)  # a token a step: it is where it was
    assert first + second == wanted
    assert process.computed == computed + 6
    with pytest.raises(SyscallError, match=r"^EINVAL: image 4 "):
        engine.fetch(Load(3, IMAGE + 1, model, dtype, FRAMES, again=True), lambda _: None)()
    engine.drop_weights(IMAGE)
    engine.unload(IMAGE)


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_kv_of_other_weights_than_come_in_is_said_to_be_so(
    zoo: Callable[[str], Path], tmp_path: Path, dtype: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(zoo("qwen3"), model)
    engine = open_device({"threads": "1", "installed": str(tmp_path), "swapdir": str(tmp_path)})
    assert isinstance(engine, Engine)
    load = Load(1, IMAGE, str(model), dtype, FRAMES, [FRAMES])
    again = Load(1, IMAGE, str(model), dtype, FRAMES, [FRAMES], again=True)
    assert not engine.fetch(load, lambda _: None)().changed
    engine.drop_weights(IMAGE)
    assert not engine.fetch(again, lambda _: None)().changed
    engine.drop_weights(IMAGE)
    shutil.copy(model / "model.safetensors", model / "new")
    (model / "new").replace(model / "model.safetensors")
    assert engine.fetch(again, lambda _: None)().changed
    engine.drop_weights(IMAGE)
    config = json.loads((model / "config.json").read_text())
    config["num_key_value_heads"] = config["num_attention_heads"]
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(SyscallError, match=f"^EIO: .*{model}"):
        engine.fetch(again, lambda _: None)()

"""Frames that go from one owner to another: nothing of the first is read, or can be found there, by the next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmasos.drivers.cpu import open_device
from llmasos.drivers.cpu.native import library
from llmasos.drivers.engine.engine import Engine
from llmasos.drivers.protocol import Copy, Export, Import, Inspect, Load, Step
from llmasos.syscalls.errno import SyscallError
from tests.drivers.feeder import IMAGE, Feeder, Process

FRAMES = 40
NATIVE = not isinstance(library.load(), str)
LOG = [(i * i + 3 * i) % 190 for i in range(83)]
OTHER = [(7 * i) % 180 for i in range(70)]
KINDS = ["torch", *(["fp32", "int8"] if NATIVE else [])]


def opened(model: Path, kind: str, monkeypatch: pytest.MonkeyPatch, **options: str) -> Engine:
    if kind == "torch":
        monkeypatch.setenv(library.SWITCH, "0")
    device = open_device({"threads": "1", "installed": "no", **options})
    assert isinstance(device, Engine)
    dtype = "fp32" if kind == "torch" else kind
    device.fetch(Load(1, IMAGE, str(model), dtype, FRAMES, [8]), lambda fraction: None)()
    return device


def filled(device: Engine, frames: list[int]) -> None:
    """Every byte of these frames set: NaN in bf16 and in fp32."""
    for frame in frames:
        device._images[IMAGE].slab.raw[frame] = 0xFF


def free(feeder: Feeder) -> list[int]:
    return list(feeder._free)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_reads_what_a_freed_frame_holds(
    zoo: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    clean = Feeder(opened(zoo("qwen3"), kind, monkeypatch), FRAMES)
    wanted = clean.generate([clean.spawn(LOG), clean.spawn(LOG[:5])], 25, chunk=20)
    device = opened(zoo("qwen3"), kind, monkeypatch, **({"early": "yes"} if kind == "int8" else {}))
    feeder = Feeder(device, FRAMES, seed=3, idle=True)
    first = feeder.spawn(OTHER)
    feeder.generate([first], 20)
    feeder.end(first)
    filled(device, [*free(feeder), *device._images[IMAGE].slab.spare])
    assert feeder.generate([feeder.spawn(LOG), feeder.spawn(LOG[:5])], 25, chunk=20) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_wipes_before_it_moves_in_and_after_it_copies(
    zoo: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    device = opened(zoo("qwen3"), kind, monkeypatch)
    feeder = Feeder(device, FRAMES)
    process = feeder.spawn(LOG)
    feeder.generate([process], 2)
    slab, frames = device._images[IMAGE].slab, list(process.table)
    before = slab.gather(frames)
    feeder.move_out(process)
    copies, outs = feeder._copies, feeder._outs
    target = next(frame for frame in free(feeder) if frame not in frames)
    step = Step(2, [], [*copies, Copy(IMAGE, frames[0], target)], outs, [], [(IMAGE, frame) for frame in frames])
    assert device.step(step).unwritten == []
    assert not slab.gather(frames).any(), "wiped, all of them"
    assert np.array_equal(slab.gather([target]), before[:1]), "a copy from one of them came before"
    feeder._outs, feeder._free = [], [frame for frame in feeder._free if frame != target]
    feeder.move_in(process)
    wipes = [(IMAGE, frame) for frame in process.table]
    filled(device, process.table)
    device.step(Step(3, [], ins=feeder._ins, wipes=wipes))
    assert np.array_equal(slab.gather(process.table), before), "they were moved out before, and moved in after"
    with pytest.raises(SyscallError):
        device.step(Step(4, [], wipes=[(IMAGE + 1, 0)]))


def test_frames_are_wiped_before_kv_is_read_into_them(
    zoo: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device = opened(zoo("qwen3"), "torch", monkeypatch)
    feeder = Feeder(device, FRAMES)
    process = feeder.spawn(LOG)
    feeder.generate([process], 2)
    path = str(tmp_path / "image")
    device.export(Export(7, IMAGE, process.ctx, path, b"head", process.computed, process.table))()
    found = device.inspect(Inspect(8, path))
    frames = free(feeder)[: len(process.table)]
    filled(device, frames)
    answer = device.import_(Import(9, IMAGE, path, b"another file", 0, frames, found.tokens, wipes=frames))
    assert (answer.tokens, bool(answer.reason)) == (0, True)
    assert not device._images[IMAGE].slab.gather(frames).any(), "whatever becomes of the read"
    device.import_(Import(10, IMAGE, path, found.id, 0, frames, found.tokens, wipes=frames))
    slab = device._images[IMAGE].slab
    assert np.array_equal(slab.gather(frames), slab.gather(process.table))


@pytest.mark.skipif(not NATIVE, reason="there is no native decoder")
def test_a_frame_that_stood_in_for_one_context_has_nothing_for_another(
    zoo: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = opened(zoo("qwen3"), "int8", monkeypatch, early="yes")
    feeder = Feeder(device, FRAMES, idle=True)
    slab = device._images[IMAGE].slab

    def begun(process: Process) -> np.ndarray:
        """What lies in the first spare frame when it stands in for the process's next one."""
        feeder.generate([process], -process.computed % 16 or 16)
        while process.computed % 16:
            feeder.generate([process], 1)
        device.go_on(lambda: False)
        return slab.gather([slab.spare[0]])[0]

    first, second = feeder.spawn(OTHER[:10]), feeder.spawn(LOG[:10])
    begun(first)
    canary = slab.raw[slab.spare[0]]
    canary[canary == 0] = 0xAB  # in slots that the next one does not write
    feeder.end(first)
    assert not (begun(second) == 0xAB).sum() > 16, "the first one's bytes are gone"

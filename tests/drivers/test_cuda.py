"""The CUDA driver: the same engine on a GPU where there is one, and a clear refusal where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmasos.drivers.cuda import open_device
from llmasos.drivers.protocol import EX_UNUSABLE, Load
from llmasos.syscalls.errno import Errno, SyscallError
from tests import models_zoo
from tests.drivers.feeder import IMAGE, Feeder
from tests.drivers.process import driver
from tests.drivers.reference import DECODED, greedy, prompt

GPU = torch.version.cuda is not None and torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not GPU, reason="torch can use no CUDA device here")


@pytest.mark.skipif(GPU, reason="there is a GPU")
def test_without_a_gpu_the_driver_says_so_and_ends(tmp_path: Path) -> None:
    with pytest.raises(SyscallError) as refused:
        open_device({})
    assert refused.value.errno == Errno.ENODEV
    with driver("cuda", tmp_path / "r", hello=False) as process:
        assert process.wait() == EX_UNUSABLE
        assert refused.value.reason in process.output()


@pytest.mark.parametrize(("option", "value"), [("index", "first"), ("threads", "2"), ("host", "much")])
def test_a_wrong_option_is_named(option: str, value: str) -> None:
    with pytest.raises(SyscallError) as refused:
        open_device({option: value})
    assert refused.value.errno == Errno.EINVAL
    assert option in refused.value.reason


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", sorted(models_zoo.ZOO))
def test_greedy_tokens_on_a_gpu_are_those_of_transformers(zoo: Callable[[str], Path], name: str) -> None:
    device = open_device({"dtype": "fp32"})
    device.fetch(Load(1, IMAGE, str(zoo(name)), "", 256), lambda fraction: None)()
    reference = greedy(zoo(name), prompt())
    for chunk in (1, 7, 64):
        feeder = Feeder(device)
        processes = [feeder.spawn(tokens) for tokens in (prompt(), *(prompt(seed, 9 * seed) for seed in range(1, 6)))]
        assert feeder.generate(processes, DECODED, chunk)[0] == reference.tokens
        for process in processes:
            feeder.end(process)
    device.unload(IMAGE)


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_declares_its_memory() -> None:
    hello = open_device({"host": "1GiB", "swap": "64MiB"}).hello()
    assert [(tier.name, tier.size) for tier in hello.tiers[1:]] == [("host", 1 << 30), ("disk", 64 << 20)]
    assert hello.kind == "cuda"
    assert hello.tiers[0].name == "hbm"
    assert hello.tiers[0].size == torch.cuda.get_device_properties(0).total_memory


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("tier", [1, 2])
def test_frames_come_back_from_the_host_and_from_the_disk(zoo: Callable[[str], Path], tier: int) -> None:
    log = [i % 190 for i in range(200)]
    wanted: list[list[int]] = []
    for moved in (False, True):
        device = open_device({"dtype": "fp32"})
        device.fetch(Load(1, IMAGE, str(zoo("qwen3")), "", 64, [64, 64]), lambda fraction: None)()
        feeder = Feeder(device, 64)
        process, other = feeder.spawn(log), feeder.spawn(log[50:])
        made = feeder.generate([process], 5)
        if moved:
            feeder.move_out(process, tier)
            feeder.generate([other], 20)
            feeder.move_in(process, tier)
        made += feeder.generate([process], 5)
        wanted = wanted or made
        assert made == wanted

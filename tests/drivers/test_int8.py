"""The int8 layers: close to what they replace, and a row's bits do not depend on the rows beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmasos.drivers import hal
from llmasos.drivers.cpu import open_device
from llmasos.drivers.cpu.native import library
from llmasos.drivers.engine.int8 import Int8Linear
from llmasos.drivers.protocol import Load, Probe
from llmasos.syscalls.errno import Errno, SyscallError
from tests import models_zoo
from tests.drivers.feeder import IMAGE, Feeder, engine
from tests.drivers.reference import greedy, prompt


@pytest.fixture(autouse=True)
def without_the_native_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """These are the torch engine's layers; test_native.py has the others."""
    monkeypatch.setattr(library, "load", lambda: "it is switched off")


needs_vnni = pytest.mark.skipif(not hal.cpu().int8, reason="this CPU has no VNNI, so the driver refuses int8")


@needs_vnni
@pytest.mark.parametrize("biased", [True, False])
def test_a_row_is_bit_identical_alone_and_in_a_batch_of_sixteen(biased: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    layer = Int8Linear(
        torch.randn(136, 96, generator=generator), torch.randn(136, generator=generator) if biased else None
    )
    rows = torch.randn(16, 96, generator=generator) * torch.logspace(-3, 3, 16)[:, None]  # outliers beside small rows
    together = layer(rows)
    for i in range(16):
        assert torch.equal(layer(rows[i : i + 1]), together[i : i + 1])
    assert torch.equal(layer(rows[3:10]), together[3:10])


@needs_vnni
def test_a_product_is_as_close_as_eight_bits_allow() -> None:
    generator = torch.Generator().manual_seed(2)
    weight, bias = torch.randn(64, 256, generator=generator), torch.randn(64, generator=generator)
    x = torch.randn(2, 5, 256, generator=generator)
    x[0, 0] = 0
    wanted = torch.nn.functional.linear(x, weight, bias)
    got = Int8Linear(weight, bias)(x)
    assert got.shape == wanted.shape
    assert float((got - wanted).abs().max() / wanted.abs().max()) < 0.02
    assert torch.equal(got[0, 0], bias)
    assert Int8Linear(weight, bias)(x[:0]).shape == (0, 5, 64)


@needs_vnni
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "phi3", "gpt_neox"])
def test_an_int8_model_follows_its_original(zoo: Callable[[str], Path], name: str) -> None:
    """The reference's tokens keep nearly the probability they had."""
    reference = greedy(zoo(name), prompt(), 12)
    device = engine(zoo(name), "int8")
    feeder = Feeder(device)
    process = feeder.spawn(reference.prompt)
    feeder.generate([process], 1, logprobs=64)
    ours = dict(zip(process.logprobs[0].top_ids, process.logprobs[0].top_logprobs, strict=True))
    best = reference.logprobs[0].topk(3)
    for token, logprob in zip(best.indices.tolist(), best.values.tolist(), strict=True):
        assert ours[token] == pytest.approx(logprob, abs=0.6)
    device.unload(IMAGE)


@needs_vnni
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "phi3", "qwen3"])
def test_int8_noninterference_is_exact(zoo: Callable[[str], Path], name: str) -> None:
    """Tokens and log-probabilities, to the last bit: alone, among fifteen others, and under another chunking."""
    device = engine(zoo(name), "int8", frames=300)
    feeder = Feeder(device, frames=300)
    alone = feeder.spawn(prompt())
    tokens = feeder.generate([alone], 16, logprobs=5)[0]
    for chunk in ([1], [7], [64, 13]):
        others = [feeder.spawn(prompt(seed, 5 + 6 * seed)) for seed in range(1, 16)]
        among = feeder.spawn(prompt())
        made = feeder.generate([*others[:5], among, *others[5:]], 16, chunk, logprobs=5)
        assert made[5] == tokens
        assert among.logprobs == alone.logprobs
        for process in [*others, among]:
            feeder.end(process)
    device.unload(IMAGE)


def test_int8_is_refused_with_a_reason_where_the_cpu_has_no_vnni(
    monkeypatch: pytest.MonkeyPatch, zoo: Callable[[str], Path]
) -> None:
    without = hal.Cpu("Old CPU", "x86_64", 1, 1, ["avx2"], {}, bf16=False, int8=False)
    monkeypatch.setattr(hal, "cpu", lambda: without)
    device = open_device({})
    assert device.hello().dtypes == ["fp32", "bf16"]
    assert device.probe(Probe(1, str(zoo("llama")), "")).dtype == "fp32"
    with pytest.raises(SyscallError) as refused:
        device.probe(Probe(1, str(zoo("llama")), "int8"))
    assert refused.value.errno == Errno.ENOTSUP
    assert "VNNI" in refused.value.reason
    assert "Old CPU" in refused.value.reason


@needs_vnni
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_a_probe_says_what_an_int8_load_then_takes(zoo: Callable[[str], Path], name: str) -> None:
    device = open_device({"threads": "1"})
    probed = device.probe(Probe(1, str(zoo(name)), "int8"))
    loaded = device.fetch(Load(2, IMAGE, str(zoo(name)), "int8", 4), lambda fraction: None)()
    assert loaded.weight_bytes == pytest.approx(probed.weight_bytes, rel=0.25)  # tiny layers: scales weigh much here


@needs_vnni
def test_int8_is_refused_for_a_mixture_of_experts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Experts are no linear layers, so int8 would quantise next to nothing; it does not pretend."""
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    monkeypatch.setitem(models_zoo.ZOO, "mixtral", ("mixtral", models_zoo.ZOO["llama"][1] | experts))
    models_zoo.build("mixtral", tmp_path)
    with pytest.raises(SyscallError) as refused:
        open_device({"threads": "1"}).probe(Probe(1, str(tmp_path), "int8"))
    assert refused.value.errno == Errno.ENOTSUP
    assert "experts" in refused.value.reason

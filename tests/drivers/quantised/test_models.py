"""Whole models in every shape of quantised file: what the engine makes of them is what transformers makes of the same
weights, and integers that a native form holds are run as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmasos.drivers.cpu import open_device
from llmasos.drivers.cpu.native import library
from llmasos.drivers.protocol import Load, Probe
from llmasos.syscalls.errno import Errno, SyscallError
from tests.drivers.feeder import IMAGE, Feeder, engine
from tests.drivers.quantised.methods import (
    METHODS,
    quantised,
)
from tests.drivers.reference import greedy, prompt


def top(place: Path, dtype: str, tokens: list[int]) -> dict[int, float]:
    device = engine(place, dtype)
    feeder = Feeder(device)
    process = feeder.spawn(tokens)
    feeder.generate([process], 1, logprobs=64)
    found = process.logprobs[0]
    device.unload(IMAGE)
    return dict(zip(found.top_ids, found.top_logprobs, strict=True))


MODELS = [
    ("llama", "gptq", "int4"), ("qwen3", "awq", "int4"), ("gemma2", "W4A16", "int4"), ("qwen2", "W8A8", "int8"),
    ("mistral", "fp8", ""), ("phi3", "gptq", "int4"), ("llama", "nf4", ""), ("gpt2", "gptq", ""), ("gpt_neox", "fp8", ""),
]  # fmt: skip


@pytest.mark.parametrize(("name", "method", "form"), MODELS)
def test_a_quantised_model_has_the_logits_of_its_weights(
    zoo: Callable[[str], Path], tmp_path: Path, name: str, method: str, form: str
) -> None:
    there, plain = quantised(zoo(name), method, tmp_path)
    reference = greedy(plain, prompt(), 1).logprobs[0]
    ours = top(there, "fp32", prompt())
    for token, logprob in ours.items():
        assert logprob == pytest.approx(float(reference[token]), abs=1e-4)
    if not isinstance(library.load(), library.Library):
        return
    probed = open_device({"threads": "1", "installed": "no"}).probe(Probe(1, str(there), ""))
    default = open_device({"threads": "1", "installed": "no"}).probe(Probe(1, str(zoo(name)), "")).dtype
    assert probed.dtype == (form or default)
    assert probed.stored == f"{METHODS[method][1]['quant_method']}, {'as it is' if form else 'dequantised'}"
    if form:  # its integers are exact, what is left is the activations' rounding to 8 bits
        ours = top(there, form, prompt())
        for token in reference.topk(3).indices.tolist():
            assert ours[token] == pytest.approx(float(reference[token]), abs=0.6)


def test_a_driver_that_was_given_a_dtype_runs_everything_in_it(zoo: Callable[[str], Path], tmp_path: Path) -> None:
    there, _ = quantised(zoo("llama"), "gptq", tmp_path)
    device = open_device({"threads": "1", "installed": "no", "dtype": "fp32"})
    assert device.probe(Probe(1, str(there), "")).dtype == "fp32"


@pytest.mark.parametrize("kind", ["native", "torch"])
def test_a_broken_tensor_is_named_and_the_device_lives_on(
    zoo: Callable[[str], Path], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "torch":
        monkeypatch.setattr(library, "load", lambda: "it is switched off")
    there, _ = quantised(zoo("llama"), "gptq", tmp_path)
    tensors = load_file(there / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.scales"] = torch.ones(2, 2).half()
    save_file(tensors, there / "model.safetensors")
    device = open_device({"threads": "1", "installed": "no"})
    with pytest.raises(SyscallError) as refused:
        device.fetch(Load(1, IMAGE, str(there), "fp32", 8), lambda _: None)()
    assert refused.value.errno == Errno.EIO
    assert "model.layers.1.self_attn.q_proj.scales" in refused.value.reason
    device.fetch(Load(2, IMAGE, str(zoo("llama")), "fp32", 8), lambda _: None)()

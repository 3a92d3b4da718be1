"""Whole models in every shape of quantised file: what the engine makes of them is what transformers makes of the same
weights, and integers that a native form holds are run as they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llmasos.drivers.cpu import open_device
from llmasos.drivers.cpu.native import library
from llmasos.drivers.engine.quantised.bitsandbytes import CODES
from llmasos.drivers.protocol import Load, Probe
from llmasos.syscalls.errno import Errno, SyscallError
from tests.drivers.feeder import IMAGE, Feeder, engine
from tests.drivers.quantised.test_gptq_awq import AWQ_ORDER, words
from tests.drivers.quantised.written import opened, write
from tests.drivers.reference import greedy, prompt

GROUP = 32
Layer = dict[str, torch.Tensor]


def integers(weight: torch.Tensor, symmetric: bool) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """4 bits in groups of 32: values and zeros (0 .. 15) and scales in float16, [columns, ...]."""
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.amin(2), groups.amax(2)
    if symmetric:
        scale, zero = (torch.maximum(-low, high) / 7.5).half(), torch.full(low.shape, 8.0)
    else:
        scale = ((high - low) / 15).half()
        zero = (-low / scale.float()).round().clamp(1, 15)
    values = (groups / scale.float()[:, :, None] + zero[:, :, None]).round().clamp(0, 15).flatten(1)
    return values.numpy().astype(np.int64), zero.numpy().astype(np.int64), scale


def gptq(weight: torch.Tensor) -> Layer:
    values, zeros, scale = integers(weight, symmetric=False)
    return {
        "qweight": torch.from_numpy(words(values, 4).T.copy()),
        "qzeros": torch.from_numpy(words(zeros.T - 1, 4)),
        "scales": scale.T,
        "g_idx": (torch.arange(weight.shape[1]) // GROUP).int(),
    }


def awq(weight: torch.Tensor) -> Layer:
    values, zeros, scale = integers(weight, symmetric=False)

    def shuffled(array: np.ndarray) -> torch.Tensor:
        order = array.reshape(len(array), -1, 8)[:, :, AWQ_ORDER].reshape(len(array), -1)
        return torch.from_numpy(words(order, 4))

    return {"qweight": shuffled(values.T), "qzeros": shuffled(zeros.T), "scales": scale.T}


def packed(weight: torch.Tensor) -> Layer:
    values, _, scale = integers(weight, symmetric=True)
    return {
        "weight_packed": torch.from_numpy(words(values, 4)),
        "weight_scale": scale,
        "weight_shape": torch.tensor(weight.shape),
    }


def w8a8(weight: torch.Tensor) -> Layer:
    scale = (weight.abs().amax(1, keepdim=True) / 127).bfloat16()
    return {"weight": (weight / scale.float()).round().clamp(-128, 127).to(torch.int8), "weight_scale": scale}


def fp8(weight: torch.Tensor) -> Layer:
    rows, columns = (-(-size // 32) for size in weight.shape)
    blocks = torch.nn.functional.pad(weight, (0, columns * 32 - weight.shape[1], 0, rows * 32 - weight.shape[0]))
    scale = blocks.unflatten(1, (-1, 32)).unflatten(0, (-1, 32)).abs().amax((1, 3)) / 448
    spread = scale.repeat_interleave(32, 0)[: weight.shape[0]].repeat_interleave(32, 1)[:, : weight.shape[1]]
    return {"weight": (weight / spread).to(torch.float8_e4m3fn), "weight_scale_inv": scale}


def nf4(weight: torch.Tensor) -> Layer:
    blocks = weight.flatten().unflatten(0, (-1, 64))
    absmax = blocks.abs().amax(1)
    table = torch.from_numpy(CODES["nf4"])
    codes = ((blocks / absmax[:, None])[:, :, None] - table).abs().argmin(2).flatten().to(torch.uint8)
    about = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(weight.shape)}
    raw = torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8)
    return {
        "weight": (codes[::2] << 4 | codes[1::2])[:, None],
        "weight.absmax": absmax,
        "weight.quant_map": table,
        "weight.quant_state.bitsandbytes__nf4": raw,
    }


def scheme(form: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}
METHODS: dict[str, tuple[Callable[[torch.Tensor], Layer], dict[str, Any]]] = {
    "gptq": (gptq, GPTQ),
    "awq": (
        awq,
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True},
    ),
    "W4A16": (packed, scheme("pack-quantized", num_bits=4, strategy="group", group_size=GROUP)),
    "W8A8": (w8a8, scheme("int-quantized", num_bits=8, strategy="channel")),
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}),
    "nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
}


def quantised(model: Path, method: str, place: Path) -> tuple[Path, Path]:
    """The model with its linear layers quantised, and one for transformers with the same weights unquantised."""
    make, settings = METHODS[method]
    config = json.loads((model / "config.json").read_text())
    turned = config["model_type"] == "gpt2"
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(model / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        linear = ".layers." in name or ".h." in name
        if linear and tensor.ndim == 2 and name.endswith(".weight"):
            tensors |= {f"{layer}.{part}": made for part, made in make(tensor.T if turned else tensor).items()}
        else:
            tensors[name] = tensor
    config["dtype"] = "float32"
    there = write(place / "quantised", tensors, settings, **config)
    ours = opened(there)
    plain = place / "plain"
    shutil.copytree(model, plain)
    save_file(
        {name: torch.from_numpy(np.array(ours.get(name).float32())) for name in ours.names()},
        plain / "model.safetensors",
        {"format": "pt"},
    )
    return there, plain


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
        device.load(Load(1, IMAGE, str(there), "fp32", 8), lambda _: None)
    assert refused.value.errno == Errno.EIO
    assert "model.layers.1.self_attn.q_proj.scales" in refused.value.reason
    device.load(Load(2, IMAGE, str(zoo("llama")), "fp32", 8), lambda _: None)

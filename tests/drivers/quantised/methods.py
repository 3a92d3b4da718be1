"""Whole models in every shape of quantised file that is read here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from llmasos.drivers.engine.quantised.bitsandbytes import CODES
from tests.drivers.quantised.integers import AWQ_ORDER, words
from tests.drivers.quantised.written import opened, write

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

"""Checkpoints written for the tests of quantised files, and what comes out of them, compared to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from llmasos.drivers.engine.quantised import open_quantised
from llmasos.drivers.engine.quantised.stored import QuantisedWeights
from llmasos.modelfiles.tensors import ITEMS, Packed, SafetensorsWeights, Tensor

_KINDS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def write(
    directory: Path,
    tensors: dict[str, torch.Tensor],
    quantization: dict[str, Any] | None,
    *,
    metadata: dict[str, str] | None = None,
    **config: Any,
) -> Path:
    """A directory with one safetensors file and a config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(whole, directory / "model.safetensors", metadata)
    settings = {} if quantization is None else {"quantization_config": quantization}
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"} | settings | config))
    return directory


def opened(directory: Path) -> QuantisedWeights:
    config = json.loads((directory / "config.json").read_text())
    return open_quantised(directory, config, SafetensorsWeights(directory))


def written(directory: Path, tensors: dict[str, torch.Tensor], quantization: Any, **more: Any) -> QuantisedWeights:
    return opened(write(directory, tensors, quantization, **more))


def bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().view({4: torch.int32, 2: torch.int16, 1: torch.uint8}[tensor.itemsize]).numpy()


def same(ours: Tensor, theirs: torch.Tensor) -> bool:
    """Equal in type, shape and every bit, except that a NaN is as good as another."""
    assert ours.kind == _KINDS[theirs.dtype]
    assert ours.shape == tuple(theirs.shape)
    assert ours.data.dtype == ITEMS[ours.kind]
    mine, wanted = np.ascontiguousarray(ours.data).view(bits(theirs).dtype), bits(theirs)
    return bool(((mine == wanted) | (np.isnan(ours.float32()) & torch.isnan(theirs).numpy())).all())


def meant(packed: Packed) -> np.ndarray:
    """float64 [columns, inputs]: what the integers of a native form say."""
    zero: Any = (0 if packed.bits == 8 else 8) if packed.zero is None else packed.zero
    spread = np.repeat(np.broadcast_to(zero, packed.scale.shape), packed.group, axis=1)
    scale = np.repeat(packed.scale.astype(np.float64), packed.group, axis=1)
    values = np.asarray(packed.values)
    assert values.dtype == (np.int8 if packed.bits == 8 else np.uint8)
    return (values.astype(np.float64) - spread) * scale


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)

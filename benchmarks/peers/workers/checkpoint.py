"""A checkpoint directory of transformers read with numpy alone, for the conversions to other engines' formats."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class Checkpoint:
    """`config` is its config.json; tensors are read when asked for. bf16 and fp32 in one file, as the yardsticks are."""

    def __init__(self, place: str) -> None:
        self.config: dict[str, Any] = json.loads(Path(place, "config.json").read_text())
        file = Path(place, "model.safetensors")
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            self._tensors: dict[str, Any] = json.loads(opened.read(size))
        self._tensors.pop("__metadata__", None)
        self._data = np.memmap(file, np.uint8, "r", offset=8 + size)

    def names(self) -> list[str]:
        return list(self._tensors)

    def tensor(self, name: str) -> Floats:
        """Raises KeyError, or ValueError for a type of number that is not expected."""
        about = self._tensors[name]
        begin, end = about["data_offsets"]
        raw = self._data[begin:end]
        match about["dtype"]:
            case "BF16":
                wide = raw.view(np.uint16).astype(np.uint32) << 16
                values = wide.view(np.float32)
            case "F32":
                values = np.array(raw.view(np.float32))
            case other:
                raise ValueError(f"{name} is of type {other}; BF16 or F32 was wanted")
        return values.reshape(about["shape"])

    def rope(self, key: str, default: Any = None) -> Any:
        """A parameter of the rotary embedding, wherever the version of transformers that wrote it puts it."""
        for place in ("rope_parameters", "rope_scaling"):
            if key in (self.config.get(place) or {}):
                return self.config[place][key]
        return self.config.get(key, default)

    @property
    def head_dim(self) -> int:
        return int(self.config.get("head_dim") or self.config["hidden_size"] // self.config["num_attention_heads"])

    def frequency_divisors(self) -> Floats:
        """By what each of the head_dim / 2 frequencies of the rotary embedding is divided: all 1 but for llama3's scaling
        (as in transformers' _compute_llama3_parameters)."""
        divisors = np.ones(self.head_dim // 2, np.float32)
        if self.rope("rope_type", "default") != "llama3":
            return divisors
        factor, low, high = (self.rope(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
        trained = self.rope("original_max_position_embeddings")
        for i, frequency in enumerate(self._frequencies()):
            turns = trained * frequency / (2 * math.pi)  # over the length it was trained on
            if turns < low:
                divisors[i] = factor
            elif turns <= high:
                smooth = (turns - low) / (high - low)
                divisors[i] = 1 / ((1 - smooth) / factor + smooth)
        return divisors

    def frequencies(self) -> Floats:
        """Radians a position, [head_dim / 2]."""
        return self._frequencies() / self.frequency_divisors()

    def _frequencies(self) -> Floats:
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float32) / self.head_dim
        return (1.0 / self.rope("rope_theta") ** exponents).astype(np.float32)


def int8_rows(weight: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """A matrix [N, K] in int8 with a scale for each of its rows, [N, 1]; symmetric, to nearest."""
    scales = np.maximum(np.abs(weight).max(axis=1, keepdims=True), 1e-8) / 127
    return np.clip(np.rint(weight / scales), -127, 127).astype(np.int8), scales.astype(np.float32)

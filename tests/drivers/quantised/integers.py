"""Layers of random integers as GPTQ and AWQ files hold them, written after their published description."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

INPUTS, COLUMNS = 128, 32

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which column of eight the k-th field of a word holds


def words(values: np.ndarray, bits: int) -> np.ndarray:
    """[rows, count] of whole numbers -> int32 [rows, words], each row one long number written from its lowest bit on."""
    rows = []
    for row in values.tolist():
        number = sum(value << (bits * place) for place, value in enumerate(row))
        rows.append(list(number.to_bytes(-(-len(row) * bits // 32) * 4, "little")))
    return np.array(rows, np.uint8).view("<i4")


class Layer:
    """Random integers, zeros and scales of a layer, and what they mean in float16."""

    def __init__(self, bits: int, group: int, *, seed: int = 0, order: bool = False) -> None:
        random = np.random.default_rng(seed)
        size = INPUTS if group == -1 else group
        self.bits, self.size = bits, size
        self.index = np.arange(INPUTS) // size
        if order:
            self.index = random.permutation(self.index)
        self.values = random.integers(0, 1 << bits, (COLUMNS, INPUTS))
        self.zeros = random.integers(0, 1 << bits, (COLUMNS, INPUTS // size))
        self.scales = torch.from_numpy(random.uniform(0.01, 0.1, (COLUMNS, INPUTS // size))).half()

    @property
    def weight(self) -> torch.Tensor:
        steps = torch.from_numpy(self.values - self.zeros[:, self.index]).half()
        return steps * self.scales[:, torch.from_numpy(self.index)]

    def gptq(self, *, less_one: bool) -> dict[str, torch.Tensor]:
        zeros = (self.zeros - less_one) % (1 << self.bits)
        return {
            "l.qweight": torch.from_numpy(words(self.values, self.bits).T.copy()),
            "l.qzeros": torch.from_numpy(words(zeros.T, self.bits)),
            "l.scales": self.scales.T,
            "l.g_idx": torch.from_numpy(self.index.astype(np.int32)),
        }

    def awq(self) -> dict[str, torch.Tensor]:
        def shuffled(values: np.ndarray) -> np.ndarray:
            return values.reshape(len(values), -1, 8)[:, :, AWQ_ORDER].reshape(len(values), -1)

        return {
            "l.qweight": torch.from_numpy(words(shuffled(self.values.T), 4)),
            "l.qzeros": torch.from_numpy(words(shuffled(self.zeros.T), 4)),
            "l.scales": self.scales.T,
        }


def gptq(bits: int, group: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group} | more

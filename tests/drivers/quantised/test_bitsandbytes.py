"""bitsandbytes: whatever a state says of shapes and blocks is checked before it is believed (values: test_golden.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmasos.syscalls.errno import Errno, SyscallError
from tests.drivers.quantised.layers import FOUR, layer
from tests.drivers.quantised.written import random, same, written

EIGHT = {"quant_method": "bitsandbytes", "load_in_8bit": True}


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_codes_are_quantiles_times_the_scale_of_their_block(model: str, tmp_path: Path) -> None:
    tensors = layer()
    ours = written(tmp_path, tensors, FOUR, model_type=model)
    codes = torch.stack((tensors["l.weight"] >> 4, tensors["l.weight"] & 15), -1).flatten().long()
    spread = tensors["l.weight.absmax"].repeat_interleave(64)[:150]
    wanted = (tensors["l.weight.quant_map"][codes] * spread).reshape(3, 50)
    assert same(ours.get("l.weight"), wanted.T if model == "gpt2" else wanted)
    assert set(ours.names()) == {"l.weight"}
    assert ours.shape("l.weight") == ((50, 3) if model == "gpt2" else (3, 50))


@pytest.mark.parametrize(
    "state",
    [
        {"shape": [3, 51]}, {"shape": [3, -50]}, {"shape": "3x50"}, {"shape": [1 << 60, 1 << 60]}, {"blocksize": 0},
        {"blocksize": 32}, {"blocksize": 1 << 40}, {"dtype": 7}, {"blocksize": "64"},
    ],
)  # fmt: skip
def test_a_state_that_does_not_fit_its_tensors_is_refused(state: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SyscallError) as refused:
        written(tmp_path, layer(**state), FOUR)
    assert refused.value.errno == Errno.EIO


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("l.weight.quant_state.bitsandbytes__nf4", torch.zeros(5, dtype=torch.uint8)),
        ("l.weight.quant_state.bitsandbytes__nf4", torch.full((100_000,), 91, dtype=torch.uint8)),
        ("l.weight.absmax", torch.zeros(4)),
        ("l.weight", torch.zeros(75, dtype=torch.int64)),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(name: str, tensor: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(SyscallError, match=r"l\.weight") as refused:
        written(tmp_path, layer() | {name: tensor}, FOUR)
    assert refused.value.errno == Errno.EIO


def test_int8_is_its_integers_with_the_127th_of_the_greatest(tmp_path: Path) -> None:
    items = torch.randint(-127, 128, (4, 32), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    tensors = {
        "l.weight": items,
        "l.SCB": random(4).abs(),
        "l.weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    packed = written(tmp_path, tensors, EIGHT).packed("l.weight")
    assert packed is not None
    assert np.asarray(packed.values).tolist() == items.tolist()
    assert packed.scale[:, 0] == pytest.approx((tensors["l.SCB"] / 127).numpy(), rel=1e-6)


def test_int8_laid_out_for_a_gpu_is_refused(tmp_path: Path) -> None:
    tensors = {"l.weight": torch.zeros(4, 32, dtype=torch.int8), "l.SCB": torch.ones(4)}
    with pytest.raises(SyscallError, match="laid out") as refused:
        written(tmp_path, tensors | {"l.weight_format": torch.tensor(2, dtype=torch.uint8)}, EIGHT)
    assert refused.value.errno == Errno.ENOTSUP

"""torchao: what it quantises and flattens into safetensors comes out as it dequantises it, to the bit.

transformers imports torchao wherever it is installed, which takes every driver of the other tests seconds; so it is not
among the tests' requirements. test_golden.py has layers of its making; here it makes them where it is there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmasos.syscalls.errno import Errno, SyscallError
from tests.drivers.quantised.written import random, same, written

QUANTIZATION = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}


def flattened(config: Any, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], dict[str, str], torch.Tensor]:
    """One layer as torchao quantises it: its tensors, the file's metadata, its weight dequantised."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import quantize_

    linear = torch.nn.Linear(128, 48)
    model = torch.nn.ModuleDict({"l": linear}).to(dtype)
    with torch.no_grad():
        linear.weight.copy_(random(48, 128))
    quantize_(model, config)
    state = {name: getattr(tensor, "data", tensor) for name, tensor in model.state_dict().items()}
    tensors, metadata = flatten_tensor_state_dict(state)
    weight: Any = linear.weight
    return tensors, metadata, weight.dequantize()


def cases() -> dict[str, tuple[Any, tuple[int, int] | None]]:
    """name -> configuration, and bits and group of the native form that holds it for 16-bit scales."""
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed (pip install torchao)")
    four, eight, three = (getattr(torch, name) for name in ("int4", "int8", "int3"))
    asymmetric = torchao.MappingType.ASYMMETRIC
    of, by = torchao.IntxWeightOnlyConfig, torchao.PerGroup
    return {
        "int8": (torchao.Int8WeightOnlyConfig(version=2), (8, 128)),
        "int8 with int8 activations": (torchao.Int8DynamicActivationInt8WeightConfig(version=2), (8, 128)),
        "float8": (torchao.Float8WeightOnlyConfig(), None),
        "int4 in groups": (of(weight_dtype=four, granularity=by(32)), (4, 32)),
        "int4, asymmetric": (of(weight_dtype=four, granularity=by(64), mapping_type=asymmetric), (4, 64)),
        "int8 in groups, asymmetric": (
            of(weight_dtype=eight, granularity=by(64), mapping_type=asymmetric),
            (8, 64),
        ),
        "int8 by column": (of(weight_dtype=eight, granularity=torchao.PerAxis(0)), (8, 128)),
        "int3": (of(weight_dtype=three, granularity=by(32)), (8, 32)),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_weight_is_what_torchao_dequantises(dtype: torch.dtype, tmp_path: Path) -> None:
    for name, (config, native) in cases().items():
        tensors, metadata, wanted = flattened(config, dtype)
        ours = written(tmp_path / name, tensors, QUANTIZATION, metadata=metadata | {"format": "pt"})
        assert set(ours.names()) == {"l.weight", "l.bias"}
        assert same(ours.get("l.weight"), wanted), name
        packed = ours.packed("l.weight")
        if dtype != torch.float32:
            assert (None if packed is None else (packed.bits, packed.group)) == native, name


def test_int4_is_a_value_times_a_scale_plus_a_zero(tmp_path: Path) -> None:
    """Int4Tensor is quantised by a kernel for GPUs (mslk's int4_row_quantize_zp); this is its published arithmetic."""
    values = torch.arange(-8, 8).repeat(4, 4)  # [4, 64]
    scale, zero = random(2, 4).abs().bfloat16(), random(2, 4, seed=1).bfloat16()
    packed = ((values[:, 1::2] << 4) | (values[:, ::2] & 15)).to(torch.int8)
    about = {"_type": "Int4Tensor", "_data": {"block_size": [1, 32], "shape": [4, 64]}}
    about |= {"_tensor_data_names": ["qdata", "scale", "zero_point"]}
    tensors = {"l._weight_qdata": packed, "l._weight_scale": scale, "l._weight_zero_point": zero}
    metadata = {"l.weight": json.dumps(about), "tensor_names": '["l.weight"]'}
    ours = written(tmp_path, tensors, QUANTIZATION, metadata=metadata)
    spread_scale, spread_zero = (part.float().T.repeat_interleave(32, 1) for part in (scale, zero))
    assert same(ours.get("l.weight"), (values * spread_scale + spread_zero).bfloat16())


@pytest.mark.parametrize(
    ("about", "errno", "words"),
    [
        ({"_type": "Int4TilePackedTo4dTensor", "_data": {}}, Errno.ENOTSUP, "Int4TilePackedTo4dTensor"),
        ({"_type": "\x1b[1m", "_data": {}}, Errno.ENOTSUP, r"\x1b"),
        (
            {"_type": "Int8Tensor", "_data": {"block_size": [1, 7], "dtype": {"_data": "bfloat16"}}},
            Errno.EIO,
            "block_size",
        ),
        ({"_type": "Int8Tensor", "_data": {"block_size": [1, 64], "dtype": 3}}, Errno.EIO, "dtype"),
        ({"_type": "Int8Tensor", "_data": []}, Errno.EIO, "_data"),
        ([1], Errno.EIO, "l.weight"),
    ],
)
def test_metadata_that_say_something_else_are_refused(about: Any, errno: Errno, words: str, tmp_path: Path) -> None:
    tensors = {"l._weight_qdata": torch.zeros(4, 64, dtype=torch.int8), "l._weight_scale": torch.ones(4)}
    with pytest.raises(SyscallError) as refused:
        written(tmp_path, tensors, QUANTIZATION, metadata={"l.weight": json.dumps(about)})
    assert refused.value.errno == errno
    assert words in refused.value.reason
    assert refused.value.reason.isprintable()

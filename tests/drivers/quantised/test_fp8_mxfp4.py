"""8-bit floats and MXFP4: what transformers makes of the same tensors, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from llmasos.syscalls.errno import Errno, SyscallError
from tests.drivers.quantised.layers import E4M3, E5M2, fp8
from tests.drivers.quantised.written import opened, random, same, write, written


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("scale", "block", "items"),
    [
        (random(2, 4).abs(), [64, 64], E4M3),
        (random(2, 4).abs().bfloat16(), [64, 64], E5M2),
        (torch.tensor(0.37), None, E4M3),
        (torch.tensor([0.37]), None, E5M2),
        (torch.randint(100, 140, (2, 4), dtype=torch.uint8), [64, 64], E4M3),
        (torch.randint(100, 140, (2, 4), dtype=torch.uint8).view(torch.float8_e8m0fnu), [64, 64], E4M3),
    ],
)
def test_fp8_is_what_transformers_dequantises(
    scale: torch.Tensor, block: list[int] | None, items: torch.dtype, dtype: torch.dtype, tmp_path: Path
) -> None:
    tensors = fp8(scale, items)
    quantization = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block}
    unread = {"l.activation_scale": torch.tensor(1.0), "l.k_scale": torch.tensor(1.0)}
    ours = written(tmp_path, tensors | unread, quantization, torch_dtype=str(dtype)[6:])
    wanted = Fp8Dequantize(None)._dequantize_one(tensors["l.weight"], scale, dtype)
    assert set(ours.names()) == {"l.weight"}
    assert same(ours.get("l.weight"), wanted)
    assert ours.packed("l.weight") is None


def test_a_block_at_an_edge_is_cut_off(tmp_path: Path) -> None:
    weight, scale = random(100, 130).to(E4M3), random(2, 3).abs()
    quantization = {"quant_method": "fp8", "weight_block_size": [64, 64]}
    ours = written(tmp_path, {"l.weight": weight, "l.weight_scale_inv": scale}, quantization, dtype="bfloat16")
    spread = scale.repeat_interleave(64, 0)[:100].repeat_interleave(64, 1)[:, :130]
    assert same(ours.get("l.weight"), (weight.float() * spread).bfloat16())


def test_a_static_scale_for_a_tensor_is_vllms(tmp_path: Path) -> None:
    weight = random(8, 16).to(E4M3)
    tensors = {"l.weight": weight, "l.weight_scale": torch.tensor(0.3), "l.input_scale": torch.tensor(2.0)}
    ours = written(tmp_path, tensors, {"quant_method": "fp8", "activation_scheme": "static"})
    assert same(ours.get("l.weight"), (weight.float() * 0.3).bfloat16())


def test_fbgemm_has_a_scale_for_each_column(tmp_path: Path) -> None:
    weight, scale = random(8, 16).to(E4M3), random(8, 1).abs()
    tensors = {"l.weight": weight, "l.weight_scale": scale, "lm_head.weight": random(4, 16)}
    ours = written(tmp_path, tensors, {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0})
    assert same(ours.get("l.weight"), (weight.float() * scale).bfloat16())
    assert same(ours.get("lm_head.weight"), tensors["lm_head.weight"])


def test_modelopt_says_how_in_a_file_of_its_own(tmp_path: Path) -> None:
    weight = random(8, 16).to(E4M3)
    tensors = {"l.weight": weight, "l.weight_scale": torch.tensor(0.3), "l.input_scale": torch.tensor(2.0)}
    own = {
        "producer": {"name": "modelopt"},
        "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]},
    }
    tmp_path.joinpath("hf_quant_config.json").write_text(json.dumps(own))
    ours = written(tmp_path, tensors, None)
    assert same(ours.get("l.weight"), (weight.float() * 0.3).bfloat16())
    assert ours.form == "modelopt fp8"


@pytest.mark.parametrize(
    ("quantization", "extra", "errno", "words"),
    [
        ({"quant_method": "fp8", "scale_fmt": "\x1b"}, {}, Errno.ENOTSUP, r"\x1b"),
        ({"quant_method": "fp8", "weight_block_size": [0, 1]}, {}, Errno.EIO, "weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": [64, 32]}, {}, Errno.EIO, "l.weight_scale_inv"),
        (
            {"quant_method": "fp8", "weight_block_size": [64, 64]},
            {"m.weight": torch.zeros(2, 2).to(E4M3)},
            Errno.EIO,
            "m.weight",
        ),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, {}, Errno.ENOTSUP, "W4A8_AWQ"),
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4"},
            {"l.pre_quant_scale": torch.ones(4)},
            Errno.ENOTSUP,
            "pre_quant_scale",
        ),
        ({"quant_method": "fbgemm_fp8"}, {}, Errno.EIO, "l.weight"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    quantization: dict[str, Any], extra: dict[str, torch.Tensor], errno: Errno, words: str, tmp_path: Path
) -> None:
    with pytest.raises(SyscallError) as refused:
        written(tmp_path, fp8(random(2, 4)) | extra, quantization)
    assert refused.value.errno == errno
    assert words in refused.value.reason


def test_mxfp4_is_what_transformers_dequantises(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    blocks = torch.randint(0, 256, (3, 8, 4, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(0, 256, (3, 8, 4), dtype=torch.uint8, generator=generator)
    scales[0, 0, 0], scales[0, 0, 1] = 0, 255
    names = {"m.experts.down_proj_blocks": blocks, "m.experts.down_proj_scales": scales}
    ours = written(tmp_path, names, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    assert set(ours.names()) == {"m.experts.down_proj"}
    assert ours.shape("m.experts.down_proj") == (3, 128, 8)
    assert same(ours.get("m.experts.down_proj"), convert_moe_packed_tensors(blocks, scales))


@pytest.mark.parametrize("shape", [(3, 8, 4, 15), (16,), (3, 0, 4, 16)])
def test_blocks_of_another_size_are_named(shape: tuple[int, ...], tmp_path: Path) -> None:
    tensors = {
        "e_blocks": torch.zeros(shape, dtype=torch.uint8),
        "e_scales": torch.zeros(shape[:-1], dtype=torch.uint8),
    }
    with pytest.raises(SyscallError, match="e_blocks"):
        written(tmp_path, tensors, {"quant_method": "mxfp4"})


def test_a_model_of_which_nothing_is_quantised_is_not_as_it_says(tmp_path: Path) -> None:
    with pytest.raises(SyscallError, match="no weight") as refused:
        written(tmp_path, {"l.weight": random(2, 2)}, {"quant_method": "mxfp4"})
    assert refused.value.errno == Errno.EIO


@pytest.mark.parametrize("content", ["[", "[]", '{"quantization": 3}', "[" * 100_000])
def test_a_file_of_settings_that_is_broken_is_named(content: str, tmp_path: Path) -> None:
    directory = write(tmp_path, {"l.weight": random(2, 2)}, None)
    (directory / "hf_quant_config.json").write_text(content)
    with pytest.raises(SyscallError, match="hf_quant_config") as refused:
        opened(directory)
    assert refused.value.errno == Errno.EIO

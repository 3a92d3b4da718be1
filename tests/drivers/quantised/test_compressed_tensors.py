"""compressed-tensors: checkpoints that the library itself compresses come out as it decompresses them, to the bit."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmasos.syscalls.errno import Errno, SyscallError
from tests.drivers.quantised.written import meant, random, same, written

pytestmark = pytest.mark.skipif(
    find_spec("compressed_tensors") is None, reason="pip install compressed-tensors (the extra `dev` has it)"
)

INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
DYNAMIC = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
WHOLE = {"strategy": "channel", "group_size": None}
ASYMMETRIC = {"symmetric": False}

# name -> (format, the scheme's weights, whether a native form holds it)
SCHEMES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "W8A8": ("int-quantized", INT8 | {"strategy": "channel"}, True),
    "W8A8 by tensor": ("int-quantized", INT8 | {"strategy": "tensor"}, True),
    "W8A8 asymmetric": ("int-quantized", INT8 | ASYMMETRIC | {"strategy": "channel"}, True),
    "W8A8 by tensor, asymmetric": ("int-quantized", INT8 | ASYMMETRIC | {"strategy": "tensor"}, True),
    "W8 in groups": ("int-quantized", INT8 | {"strategy": "group", "group_size": 64}, True),
    "W4A16": ("pack-quantized", INT4, True),
    "W4A16 g64": ("pack-quantized", INT4 | {"group_size": 64}, True),
    "W4A16 g128": ("pack-quantized", INT4 | {"group_size": 128}, True),
    "W4A16 g16": ("pack-quantized", INT4 | {"group_size": 16}, False),
    "W4A16 by channel": ("pack-quantized", INT4 | WHOLE, True),
    "W4A16 asymmetric": ("pack-quantized", INT4 | ASYMMETRIC, True),
    "W4A16 by channel, asymmetric": ("pack-quantized", INT4 | ASYMMETRIC | WHOLE, True),
    "W8A16": ("pack-quantized", INT4 | {"num_bits": 8}, True),
    "W8A16 asymmetric": ("pack-quantized", INT4 | ASYMMETRIC | {"num_bits": 8}, True),
    "W3A16": ("pack-quantized", INT4 | {"num_bits": 3}, False),
    "W5A16 asymmetric": ("pack-quantized", INT4 | ASYMMETRIC | {"num_bits": 5}, False),
    "W2A16": ("pack-quantized", INT4 | {"num_bits": 2}, False),
    "FP8 by tensor": ("float-quantized", FP8 | {"strategy": "tensor"}, False),
    "FP8 by channel": ("float-quantized", FP8 | {"strategy": "channel"}, False),
    "FP8 by block": ("float-quantized", FP8 | {"strategy": "block", "block_structure": [32, 64]}, False),
    "FP8 in groups": ("naive-quantized", FP8 | {"strategy": "group", "group_size": 64}, False),
    "NVFP4": (
        "nvfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16,
         "scale_dtype": "torch.float8_e4m3fn", "zp_dtype": "torch.float8_e4m3fn"},
        False,
    ),
    "MXFP4": (
        "mxfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8",
         "zp_dtype": "torch.uint8"},
        False,
    ),
    "MXFP8": (
        "mxfp8-quantized",
        {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8",
         "zp_dtype": "torch.uint8"},
        False,
    ),
}  # fmt: skip


def compressed(
    form: str, weights: dict[str, Any], weight: torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor, dict[str, Any]]:
    """One layer as the library compresses it, as it decompresses that, and the configuration it writes."""
    from compressed_tensors.compressors import BaseCompressor  # two seconds, of those who run these tests only
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(**weights)
    acts = None if form == "pack-quantized" else QuantizationArgs(**DYNAMIC | {"type": args.type})
    scheme = QuantizationScheme(targets=["Linear"], weights=args, input_activations=acts, format=form)
    layer: dict[str, torch.Tensor] = {"weight": weight}
    if form == "nvfp4-pack-quantized":
        layer["weight_global_scale"] = (448.0 * 6.0 / weight.abs().max().float()).reshape(1)
    rows, columns = weight.shape
    size = {"group": args.group_size, "tensor_group": args.group_size}.get(args.strategy, columns)
    if args.strategy == "tensor":
        low, high = weight.min().reshape(1), weight.max().reshape(1)
    elif args.strategy == "block":
        height, width = args.block_structure
        padded = torch.nn.functional.pad(weight, (0, -columns % width, 0, -rows % height))
        blocks = padded.unflatten(1, (-1, width)).unflatten(0, (-1, height)).transpose(1, 2)
        low, high = blocks.amin((2, 3)), blocks.amax((2, 3))
    else:
        groups = weight.unflatten(1, (-1, size))
        low, high = groups.amin(2), groups.amax(2)
    scale, zero = calculate_qparams(low, high, args, global_scale=layer.get("weight_global_scale"))
    layer |= {"weight_scale": scale, "weight_zero_point": zero}
    compressor = BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress(layer, scheme)
    wanted = compressor.decompress(stored, scheme)["weight"]
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, format=form, quantization_status="compressed", ignore=["lm_head"]
    )
    return (
        {f"model.l.{name}": tensor for name, tensor in stored.items()},
        wanted,
        config.model_dump(mode="json"),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", SCHEMES)
def test_a_weight_is_what_the_library_decompresses(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    form, weights, native = SCHEMES[name]
    tensors, wanted, config = compressed(form, weights, random(48, 256, dtype=dtype))
    plain = {"lm_head.weight": random(8, 4), "model.l.bias": random(48)}
    ours = written(tmp_path, tensors | plain | {"model.l.k_scale": random(1)}, config)
    assert set(ours.names()) == {"lm_head.weight", "model.l.bias", "model.l.weight"}
    assert ours.shape("model.l.weight") == (48, 256)
    assert same(ours.get("model.l.weight"), wanted)
    packed = ours.packed("model.l.weight")
    exact = dtype != torch.float32 or (weights["strategy"] in ("channel", "tensor") and weights["num_bits"] == 8)
    assert (packed is not None) is (native and exact)
    if packed is not None:
        # The library rounds each weight to the scale's type; integers and scales themselves are exact.
        rounded = torch.from_numpy(meant(packed)).to(wanted.dtype)
        assert torch.equal(rounded, wanted)


def test_rows_that_fill_no_word_are_told_by_the_shape(tmp_path: Path) -> None:
    tensors, wanted, config = compressed(
        "pack-quantized", INT4 | WHOLE | ASYMMETRIC, random(33, 77, dtype=torch.bfloat16)
    )
    assert same(written(tmp_path, tensors, config).get("model.l.weight"), wanted)


def test_blocks_at_the_edges_are_cut_off(tmp_path: Path) -> None:
    weights = FP8 | {"strategy": "block", "block_structure": [32, 64]}
    tensors, wanted, config = compressed("float-quantized", weights, random(50, 100, dtype=torch.bfloat16))
    assert same(written(tmp_path, tensors, config).get("model.l.weight"), wanted)


def test_inputs_in_an_order_of_their_own_are_dequantised(tmp_path: Path) -> None:
    """weight_g_idx of older checkpoints: the columns are those of a weight quantised in the order of its groups."""
    tensors, wanted, config = compressed("pack-quantized", INT4, random(16, 128, dtype=torch.bfloat16))
    order = torch.randperm(128, generator=torch.Generator().manual_seed(3))
    groups = (torch.arange(128) // 32).to(torch.int32)
    # Column i of the shuffled weight is column order[i] of the one above, and in its group.
    integers = np.stack([tensors["model.l.weight_packed"].numpy().view(np.uint32) >> (4 * k) & 15 for k in range(8)], -1)
    shuffled = integers.reshape(16, 128)[:, order.numpy()].reshape(16, 16, 8).astype(np.uint32)
    packed = np.array([shuffled[:, :, k] << (4 * k) for k in range(8)]).sum(0).astype(np.uint32).view(np.int32)
    tensors["model.l.weight_packed"] = torch.from_numpy(packed)
    ours = written(tmp_path, tensors | {"model.l.weight_g_idx": groups[order]}, config)
    assert same(ours.get("model.l.weight"), wanted[:, order])
    assert ours.packed("model.l.weight") is None
    ours = written(tmp_path / "side-by-side", tensors | {"model.l.weight_g_idx": groups}, config)
    assert ours.packed("model.l.weight") is not None


def test_layers_of_several_groups_have_the_scheme_that_names_them(tmp_path: Path) -> None:
    four, wanted4, config = compressed("pack-quantized", INT4, random(16, 64, dtype=torch.bfloat16))
    eight, wanted8, other = compressed("pack-quantized", INT4 | {"num_bits": 8}, random(16, 64, dtype=torch.bfloat16))
    config["config_groups"]["group_1"] = other["config_groups"]["group_0"] | {"targets": [r"re:.*\.(down|up)_proj$"]}
    tensors = {name.replace(".l.", ".q_proj."): tensor for name, tensor in four.items()}
    tensors |= {name.replace(".l.", ".up_proj."): tensor for name, tensor in eight.items()}
    ours = written(tmp_path, tensors, config)
    assert same(ours.get("model.q_proj.weight"), wanted4)
    assert same(ours.get("model.up_proj.weight"), wanted8)


@pytest.mark.parametrize(
    ("change", "errno", "words"),
    [
        ({"format": "marlin-24"}, Errno.ENOTSUP, "marlin-24"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, Errno.ENOTSUP, "sparse-24-bitmask"),
        ({"transform_config": {"config_groups": {"R1": {"type": "hadamard"}}}}, Errno.ENOTSUP, "rotated"),
        ({"quantization_status": "frozen"}, Errno.ENOTSUP, "frozen"),
        ({"a_new_field": {"x": "\x1b[31m"}}, Errno.ENOTSUP, "a_new_field"),
        ({"config_groups": {"W8A8\x1b": ["Linear"]}}, Errno.ENOTSUP, r"W8A8\x1b"),
        ({"config_groups": 5}, Errno.EIO, "config_groups"),
    ],
)
def test_what_is_not_read_is_refused_by_name(change: dict[str, Any], errno: Errno, words: str, tmp_path: Path) -> None:
    tensors, _, config = compressed("pack-quantized", INT4, random(16, 64, dtype=torch.bfloat16))
    config["config_groups"]["group_0"]["format"] = None
    with pytest.raises(SyscallError, match=r"(?s).") as refused:
        written(tmp_path, tensors, config | change)
    assert refused.value.errno == errno
    assert words in refused.value.reason
    assert refused.value.reason.isprintable()


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.l.weight_scale", torch.ones(16, 3, dtype=torch.bfloat16)),
        ("model.l.weight_scale", torch.ones(16, 2, dtype=torch.int8)),
        ("model.l.weight_shape", torch.tensor([16, 1 << 40])),
        ("model.l.weight_shape", torch.tensor([15, 64])),
        ("model.l.weight_packed", torch.zeros(16, 8, dtype=torch.int64)),
        ("model.l.weight_packed", torch.zeros(16, 9, dtype=torch.int32)),
    ],
)
def test_a_tensor_that_is_not_as_the_scheme_says_is_named(name: str, tensor: torch.Tensor, tmp_path: Path) -> None:
    tensors, _, config = compressed("pack-quantized", INT4, random(16, 64, dtype=torch.bfloat16))
    with pytest.raises(SyscallError) as refused:
        written(tmp_path, tensors | {name: tensor}, config)
    assert refused.value.errno == Errno.EIO
    assert "model.l.weight" in refused.value.reason


def test_a_missing_scale_is_named(tmp_path: Path) -> None:
    tensors, _, config = compressed("pack-quantized", INT4, random(16, 64, dtype=torch.bfloat16))
    del tensors["model.l.weight_scale"]
    with pytest.raises(SyscallError) as refused:
        written(tmp_path, tensors, config)
    assert (refused.value.errno, "model.l.weight_scale" in refused.value.reason) == (Errno.EIO, True)

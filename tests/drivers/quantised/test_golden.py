"""Layers that the methods' own libraries have written, and what they dequantise them to.

golden.json was made with gptqmodel 7.7.0 (TorchLinear.pack and dequantize_weight, the first format by
convert_gptq_v2_to_v1_format_module), autoawq 0.2.9 (WQLinear_GEMM and WQLinear_GEMV.from_linear, dequantize_gemm),
auto-round 0.16.1 (both QuantLinears of auto_round_extension.torch), bitsandbytes 0.50.2 (quantize_4bit, dequantize_4bit,
int8_vectorwise_quant, int8_vectorwise_dequant, on a CPU), torchao 0.18.0 (quantize_, flatten_tensor_state_dict) and
nvidia-modelopt 0.47.0 (NVFP4QTensor), from random weights; of the dequantised ones it holds the SHA-256.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.drivers.quantised.written import meant, written

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden.json").read_text())


def tensor(dtype: str, shape: list[int], data: str) -> torch.Tensor:
    raw = torch.frombuffer(bytearray(base64.b64decode(data)), dtype=torch.uint8)
    return raw.view(getattr(torch, dtype)).reshape(shape)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_layer_that_its_library_wrote_is_what_it_reads_back(name: str, tmp_path: Path) -> None:
    case = GOLDEN[name]
    tensors = {part: tensor(*entry) for part, entry in case["tensors"].items()}
    ours = written(tmp_path, tensors, case["quantization"], metadata=case.get("metadata"))
    assert set(ours.names()) == {"l.weight"}
    weight = ours.get("l.weight")
    kinds = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    assert (weight.kind, weight.shape) == (kinds[case["dtype"]], tuple(case["shape"]))
    assert hashlib.sha256(weight.data.tobytes()).hexdigest() == case["sha256"]
    packed = ours.packed("l.weight")
    assert (packed is not None) is case["packed"]
    if packed is not None:
        error = np.abs(meant(packed) - weight.float32()).max() / np.abs(weight.float32()).max()
        rounding = 2.0**-8 if weight.kind == "BF16" else 2.0**-11  # the library's, of each weight
        assert error <= rounding

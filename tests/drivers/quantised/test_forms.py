"""The native form of a quantised checkpoint is known from its configuration, and its layers then have it."""

from __future__ import annotations

from typing import Any

import pytest

from llmasos.drivers.engine.quantised.forms import native_form


def scheme(**weights: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


@pytest.mark.parametrize(
    ("settings", "form"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "int4"),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "int8"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True}, ""),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1, "desc_act": True}, "int4"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, ""),
        ({"quant_method": "gptq", "bits": 4, "group_size": 16}, ""),
        ({"quant_method": "gptq", "bits": "4", "group_size": "\x1b"}, ""),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, "int4"),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 128}, "int4"),
        ({"quant_method": "auto-round", "bits": 8, "group_size": 32}, "int8"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, ""),
        ({"quant_method": "fp8"}, ""),
        (scheme(num_bits=8, strategy="channel"), "int8"),
        (scheme(num_bits=4, strategy="group", group_size=32), "int4"),
        (scheme(num_bits=4, strategy="group", group_size=32, actorder="group"), ""),
        (scheme(num_bits=4, strategy="group", group_size=32, actorder="weight"), "int4"),
        (scheme(num_bits=8, type="float", strategy="tensor"), ""),
        ({"quant_method": "compressed-tensors", "config_groups": [3]}, ""),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}, "int8"),
        (
            {
                "quant_method": "torchao",
                "quant_type": {
                    "default": {"_type": "IntxWeightOnlyConfig", "_data": {"weight_dtype": {"_data": "int4"}}}
                },
            },
            "int4",
        ),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Float8WeightOnlyConfig"}}}, ""),
        ({"quant_method": "torchao", "quant_type": "int4_weight_only"}, ""),
        ({}, ""),
    ],
)
def test_the_form_is_told_by_the_configuration(settings: dict[str, Any], form: str) -> None:
    assert native_form(settings) == form

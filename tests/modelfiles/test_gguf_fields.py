"""Every field of every architecture with values of other types and sizes: a configuration, or a refusal with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmasos.modelfiles import bounds
from llmasos.modelfiles.gguf import Entry, Header
from llmasos.modelfiles.gguf_config import config_of
from llmasos.modelfiles.gguf_families import FAMILIES
from llmasos.syscalls.errno import SyscallError

LAYERS, HIDDEN = 4, 64
USUAL: dict[str, Any] = {
    "block_count": LAYERS, "context_length": 512, "embedding_length": HIDDEN, "feed_forward_length": 96,
    "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 16, "attention.value_length": 16,
    "attention.layer_norm_rms_epsilon": 1e-5, "attention.layer_norm_epsilon": 1e-5, "rope.freq_base": 10000.0,
    "rope.dimension_count": 16,
}  # fmt: skip
OTHERS = (
    "attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa", "rope.scaling.type",
    "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.yarn_log_multiplier",
    "attention.temperature_scale", "attention.clamp_kqv", "attention.scale", "embedding_scale", "residual_scale",
    "logit_scale", "expert_count", "expert_used_count", "expert_weights_norm", "expert_weights_scale",
    "expert_gating_func", "expert_group_count", "expert_group_used_count", "expert_shared_count",
    "expert_feed_forward_length", "leading_dense_block_count", "interleave_moe_layer_step", "nextn_predict_layers",
    "use_parallel_residual", "attn_logit_softcapping", "final_logit_softcapping", "pooling_type",
)  # fmt: skip
ODD: tuple[Any, ...] = (
    0, 1, -1, 3, 1 << 62, True, False, 0.5, float("nan"), float("inf"), -2.0, "", "yarn", "x" * 100, [],
    np.array([], "<i4"), np.array([1, 2], "<i4"), np.array([True, False, True, False]), np.array([1.5] * 4, "<f4"),
)  # fmt: skip


def _header(architecture: str, **more: Any) -> Header:
    shapes = {"token_embd.weight": (272, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_gate_inp", "ffn_up_shexp"):
            shapes[f"blk.{layer}.{part}.weight"] = (HIDDEN, HIDDEN)
        shapes[f"blk.{layer}.ffn_up_exps.weight"] = (4, 32, HIDDEN)
    file = Path("model.gguf")
    entries = {name: Entry("F32", shape, file, 0, 0) for name, shape in shapes.items()}
    experts = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
    mixed = experts if "moe" in architecture or "minimax" in architecture else {}
    known = USUAL | mixed | ({"attention.sliding_window": 24} if architecture in ("cohere2", "gemma2") else {})
    metadata = {f"{architecture}.{key}": value for key, value in (known | more).items()}
    return Header(file, (file,), {"general.architecture": architecture} | metadata, entries)


@pytest.mark.parametrize("architecture", sorted(FAMILIES))
def test_odd_values_of_fields_are_a_configuration_or_a_refusal(architecture: str) -> None:
    usual = config_of(_header(architecture))
    assert usual["n_layer" if architecture in ("gpt2", "starcoder") else "num_hidden_layers"] == LAYERS
    refusals = []
    for key in (*USUAL, *OTHERS):
        for value in ODD:
            try:
                found = config_of(_header(architecture, **{key: value}))
                bounds.check(found, Path("model.gguf"))
            except SyscallError as error:
                refusals.append(error.reason)
    assert refusals
    assert all(architecture in reason or "model.gguf" in reason for reason in refusals)


def test_ollamas_names_for_the_bases_of_gemma_3s_rotations_are_read() -> None:
    more = {"attention.sliding_window": 24, "rope.global.freq_base": 1e6, "rope.local.freq_base": 2e4}
    rope = config_of(_header("gemma3", **more))["rope_parameters"]
    assert (rope["full_attention"]["rope_theta"], rope["sliding_attention"]["rope_theta"]) == (1e6, 2e4)


def test_a_pattern_of_windows_in_a_file_decides_which_layers_have_one() -> None:
    pattern = np.array([True, False, True, False])
    for architecture in ("gemma3", "cohere2", "exaone4", "olmo2"):
        more = {"attention.sliding_window": 24, "attention.sliding_window_pattern": pattern}
        kinds = config_of(_header(architecture, **more))["layer_types"]
        assert [kind == "sliding_attention" for kind in kinds] == pattern.tolist()

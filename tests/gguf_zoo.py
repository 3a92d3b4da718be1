"""Tiny models of the architectures that have GGUF files and are not in the zoo: model_type and configuration of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests import models_zoo
from tests.models_zoo import _plain

_MIXED: dict[str, Any] = {"num_experts_per_tok": 2, "intermediate_size": 32}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "glm": ("glm", _plain(head_dim=16, attention_bias=True)),
    "glm4": ("glm4", _plain(head_dim=16, attention_bias=True)),
    "glm4_moe": (
        "glm4_moe",
        _plain(
            head_dim=16, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, n_shared_experts=1,
            first_k_dense_replace=1, n_group=1, topk_group=1, use_qk_norm=True, attention_bias=True,
        ),
    ),
    "cohere": ("cohere", _plain(logit_scale=1.0)),
    "cohere_norms": ("cohere", _plain(logit_scale=1.0, use_qk_norm=True)),
    "cohere2": (
        "cohere2",
        _plain(logit_scale=1.0, sliding_window=24, num_hidden_layers=5, head_dim=16, tie_word_embeddings=True),
    ),
    "qwen2_moe": (
        "qwen2_moe",
        _plain(
            num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=64,
            norm_topk_prob=False,
        ),
    ),
    "olmoe": ("olmoe", _plain(num_experts=4, num_key_value_heads=4, **_MIXED)),
    "granitemoe": (
        "granitemoe",
        _plain(
            num_local_experts=4, **_MIXED, embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.5,
            logits_scaling=2.0,
        ),
    ),
    "exaone4": (
        "exaone4",
        _plain(
            head_dim=16, sliding_window=24, num_hidden_layers=4,
            layer_types=["sliding_attention"] * 3 + ["full_attention"],
        ),
    ),
    "exaone4_whole": ("exaone4", _plain(head_dim=16, sliding_window=None, layer_types=["full_attention"] * 3)),
    "seed_oss": ("seed_oss", _plain(head_dim=16, attention_bias=True, attention_out_bias=False)),
    "phi": ("phi", _plain(intermediate_size=256, partial_rotary_factor=0.5, num_key_value_heads=4)),
    "stablelm": ("stablelm", _plain(use_qkv_bias=True)),
    "stablelm_norms": ("stablelm", _plain(qk_layernorm=True, use_parallel_residual=True)),
    "ernie4_5": ("ernie4_5", _plain(head_dim=16)),
    "ernie4_5_moe": (
        "ernie4_5_moe",
        _plain(
            intermediate_size=128, moe_num_experts=4, moe_k=2, moe_intermediate_size=32, moe_num_shared_experts=2,
            moe_layer_start_index=1, moe_layer_end_index=2, moe_layer_interval=1,
        ),
    ),
    "arcee": ("arcee", _plain(head_dim=16)),
    "ministral3": ("ministral3", _plain(head_dim=16)),
    "apertus": ("apertus", _plain()),
    "minimax_m2": (
        "minimax_m2",
        _plain(
            head_dim=16, num_local_experts=4, **_MIXED,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        ),
    ),
    "gpt_bigcode": ("gpt_bigcode", models_zoo.ZOO["gpt2"][1]),
    "olmo3": (
        "olmo3",
        _plain(
            sliding_window=24, num_hidden_layers=4,
            rope_parameters={
                "full_attention": {
                    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        ),
    ),
}  # fmt: skip


def build(name: str, directory: Path) -> Path:
    before = dict(models_zoo.ZOO)
    models_zoo.ZOO.update(FAMILIES)
    try:
        models_zoo.build(name, directory)
    finally:
        models_zoo.ZOO.clear()
        models_zoo.ZOO.update(before)
    models_zoo.rewrite_config(directory, _as_published)
    return directory


def _as_published(config: dict[str, Any]) -> None:
    """Fields that published configurations have, that the converter wants, and that transformers writes no more."""
    kind = config["model_type"]
    if kind == "cohere2":
        config["rotary_pct"] = 1.0
    elif kind == "minimax_m2":
        config["rotary_dim"] = 8
    elif kind == "glm":
        config["layernorm_epsilon"] = config["rms_norm_eps"]
        config["seq_length"] = config["max_position_embeddings"]


MORE = {
    "gemma": ("gemma", models_zoo._plain(head_dim=16)),
    "gemma3": (
        "gemma3_text",
        models_zoo._plain(head_dim=16, sliding_window=24, query_pre_attn_scalar=16, num_hidden_layers=7),
    ),
    "granite": (
        "granite",
        models_zoo._plain(embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.5),
    ),
    "starcoder2": ("starcoder2", models_zoo._plain(tie_word_embeddings=True, use_bias=True)),
    "smollm3": ("smollm3", models_zoo._plain(num_hidden_layers=5, tie_word_embeddings=True)),
    "olmo2": ("olmo2", models_zoo._plain()),
    "qwen3_moe": (
        "qwen3_moe",
        models_zoo._plain(
            num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True, head_dim=16
        ),
    ),
    "llama_yarn": (
        "llama",
        models_zoo._plain(rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}),
    ),
    "llama_linear": ("llama", models_zoo._plain(rope_scaling={"rope_type": "linear", "factor": 4.0})),
    "llama_bias": ("llama", models_zoo._plain(attention_bias=True, mlp_bias=True)),
}  # fmt: skip

"""The further fields of each architecture's configuration, which a GGUF file leaves to the program.

llama.cpp's code knows an architecture's activation, windows and switches; here each is given in the terms of its
configuration class in transformers. Each function takes the file's fields and the configuration so far.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from llmasos.modelfiles.gguf_fields import Fields

_SIGMOID = 2  # the number of one of llama.cpp's ways to weigh experts
_GEMMA_27B = {"gemma2": 46, "gemma3": 62}  # layers of those whose queries are scaled by hidden / heads


def _llama(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    if fields.whole_or_none("expert_count"):
        raise fields.refused("it has experts (Mixtral)")
    tensors = fields.header.tensors
    found: dict[str, Any] = {
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    }
    if window := fields.whole_or_none("attention.sliding_window"):
        found |= {"model_type": "mistral", "sliding_window": window}
    return found


def _granite(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    return _llama(fields, config) | _scaled(fields, config)


def _scaled(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "embedding_multiplier": fields.real("embedding_scale", 1.0),
        "residual_multiplier": fields.real("residual_scale", 1.0),
        "attention_multiplier": fields.real("attention.scale", config["head_dim"] ** -0.5),
        "logits_scaling": fields.real("logit_scale", 1.0),
    }


def _gemma(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    whole = layers == _GEMMA_27B[fields.architecture]
    every = 2 if fields.architecture == "gemma2" else 6
    default = 4096 if fields.architecture == "gemma2" else None
    types = ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(min(layers, 4096))]
    if default is None and fields.get("attention.sliding_window") is None:
        types = ["full_attention"] * len(types)
        default = 4096
    found = {
        "query_pre_attn_scalar": config["hidden_size"] // heads if whole else config["head_dim"],
        "sliding_window": fields.whole("attention.sliding_window", default),
        "layer_types": types,
    }
    if fields.get("attention.sliding_window_pattern") is not None:
        found |= _windows(fields, config, every)
    if fields.architecture == "gemma3":
        rope = config["rope_parameters"]  # Ollama's own converter has other names for both bases
        whole_base = fields.real("rope.global.freq_base", rope["rope_theta"])
        local_base = fields.real("rope.local.freq_base", fields.real("rope.freq_base_swa", 10000.0))
        found["rope_parameters"] = {
            "sliding_attention": {"rope_type": "default", "rope_theta": local_base},
            "full_attention": rope | {"rope_theta": whole_base},
        }
    return found


def _phi3(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    original = config["rope_parameters"].get("original_max_position_embeddings")
    window = fields.whole_or_none("attention.sliding_window")
    return {
        "sliding_window": window or None,
        "original_max_position_embeddings": original
        or fields.get("rope.scaling.original_context_length")
        or config["max_position_embeddings"],
    }


def _starcoder2(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "use_bias": "blk.0.ffn_up.bias" in fields.header.tensors,
        "sliding_window": fields.whole_or_none("attention.sliding_window") or None,
    }


def _experts(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_experts": fields.whole("expert_count"),
        "num_experts_per_tok": fields.whole("expert_used_count"),
        "moe_intermediate_size": fields.whole("expert_feed_forward_length"),
        "norm_topk_prob": True,
        "intermediate_size": fields.whole("feed_forward_length", 1),
    }


def _biased(fields: Fields) -> dict[str, Any]:
    return {"attention_bias": "blk.0.attn_q.bias" in fields.header.tensors}


def _windows(fields: Fields, config: Mapping[str, Any], every: int) -> dict[str, Any]:
    """The window, and the layers that have it: those that the file names, or all but each `every`th."""
    layers = config["num_hidden_layers"]
    pattern = fields.get("attention.sliding_window_pattern")
    if isinstance(pattern, np.ndarray) and pattern.ndim == 1:
        local = [bool(one) for one in pattern]
    else:
        every = fields.whole_or_none("attention.sliding_window_pattern") or every
        local = [(i + 1) % every != 0 for i in range(min(layers, 4096))]
    if len(local) != layers:
        raise fields.wrong(f"it says which of {len(local)} layers have a window, {layers} there are")
    return {
        "sliding_window": fields.whole("attention.sliding_window"),
        "layer_types": ["sliding_attention" if one else "full_attention" for one in local],
    }


def _expert_size(fields: Fields, part: str, layer: int = 0) -> int:
    """The rows of an expert's matrix: files older than this field have no other source for it."""
    entry = fields.header.tensors.get(f"blk.{layer}.{part}.weight")
    if entry is None or len(entry.shape) < 2:
        raise fields.wrong(f"it has no experts blk.{layer}.{part}.weight")
    for key in ("expert_feed_forward_length", "expert_shared_feed_forward_length"):
        fields.get(key)
    return entry.shape[-2]


def _qwen2_moe(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_experts": fields.whole("expert_count"),
        "num_experts_per_tok": fields.whole("expert_used_count"),
        "moe_intermediate_size": _expert_size(fields, "ffn_up_exps"),
        "shared_expert_intermediate_size": _expert_size(fields, "ffn_up_shexp"),
        "norm_topk_prob": fields.flag("expert_weights_norm", False),
        "decoder_sparse_step": 1,
    }


def _olmoe(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    return _biased(fields) | {
        "num_experts": fields.whole("expert_count"),
        "num_experts_per_tok": fields.whole("expert_used_count"),
        "intermediate_size": _expert_size(fields, "ffn_up_exps"),
        "norm_topk_prob": fields.flag("expert_weights_norm", False),
        "clip_qkv": fields.real("attention.clamp_kqv", 0.0) or None,
    }


def _olmo(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    """OLMo 3 is OLMo 2 with windows; only layers without a window are stretched."""
    if not fields.whole_or_none("attention.sliding_window"):
        return _biased(fields)
    theta = fields.real("rope.freq_base_swa", config["rope_parameters"]["rope_theta"])
    local = {"rope_type": "default", "rope_theta": theta}
    return (
        _biased(fields)
        | _windows(fields, config, 4)
        | {
            "model_type": "olmo3",
            "rope_parameters": {"sliding_attention": local, "full_attention": config["rope_parameters"]},
        }
    )


def _granite_moe(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    return (
        _scaled(fields, config)
        | _biased(fields)
        | {
            "num_local_experts": fields.whole("expert_count"),
            "num_experts_per_tok": fields.whole("expert_used_count"),
            "intermediate_size": _expert_size(fields, "ffn_up_exps"),
        }
    )


def _glm(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    tensors = fields.header.tensors
    return {"attention_bias": "blk.0.attn_q.bias" in tensors or "blk.0.attn_qkv.bias" in tensors}


def _glm_moe(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    dense, layers = fields.whole("leading_dense_block_count", 1), config["num_hidden_layers"]
    if fields.whole("expert_gating_func", 2) != _SIGMOID or dense >= layers:
        raise fields.refused("it chooses its experts in another way than GLM 4.5")
    return _biased(fields) | {
        "use_qk_norm": "blk.0.attn_q_norm.weight" in fields.header.tensors,
        "n_routed_experts": fields.whole("expert_count"),
        "num_experts_per_tok": fields.whole("expert_used_count"),
        "n_shared_experts": fields.whole("expert_shared_count", 1),
        "moe_intermediate_size": _expert_size(fields, "ffn_up_exps", dense),
        "first_k_dense_replace": dense,
        "n_group": fields.whole("expert_group_count", 1),
        "topk_group": fields.whole("expert_group_used_count", 1),
        "routed_scaling_factor": fields.real("expert_weights_scale", 1.0),
        "norm_topk_prob": fields.flag("expert_weights_norm", True),
    }


def _cohere(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    found = _biased(fields) | {"logit_scale": fields.real("logit_scale", 0.0625)}
    if fields.architecture == "cohere2":
        return found | _windows(fields, config, 4)
    return found | {"use_qk_norm": "blk.0.attn_q_norm.weight" in fields.header.tensors}


def _exaone4(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    """If there are windows, only the layers that have one rotate."""
    if not fields.whole_or_none("attention.sliding_window"):
        return {
            "sliding_window": None,
            "layer_types": ["full_attention"] * min(config["num_hidden_layers"], 4096),
        }
    return _windows(fields, config, 4)


def _stablelm(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    tensors = fields.header.tensors
    fields.get("use_parallel_residual")  # in old files of a model without it, it is true
    return {
        "use_qkv_bias": "blk.0.attn_q.bias" in tensors,
        "qk_layernorm": "blk.0.attn_q_norm.weight" in tensors,
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in tensors,
    }


def _ernie_moe(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    dense, layers = fields.whole_or_none("leading_dense_block_count"), config["num_hidden_layers"]
    if dense >= layers:
        raise fields.wrong(f"{str(dense)[:40]} of its {layers} layers are said to have no experts")
    size, shared = _expert_size(fields, "ffn_up_exps", dense), 0
    if f"blk.{dense}.ffn_up_shexp.weight" in fields.header.tensors:
        shared = _expert_size(fields, "ffn_up_shexp", dense) // size
    return {
        "use_bias": "blk.0.attn_q.bias" in fields.header.tensors,
        "moe_num_experts": fields.whole("expert_count"),
        "moe_k": fields.whole("expert_used_count"),
        "moe_intermediate_size": size,
        "moe_num_shared_experts": shared,
        "moe_layer_start_index": dense,
        "moe_layer_end_index": layers - 1,
        "moe_layer_interval": fields.whole("interleave_moe_layer_step", 1),
    }


def _mistral3(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    """Ministral 3 scales queries by their position; without that it is Mistral Small 3, which is a Mistral."""
    if not (beta := fields.real("attention.temperature_scale", 0.0)):
        return {"model_type": "mistral", "sliding_window": None}
    both = fields.real("rope.scaling.yarn_log_multiplier", 1.0)
    rope = config["rope_parameters"] | {"llama_4_scaling_beta": beta, "mscale": both, "mscale_all_dim": both}
    return {"rope_parameters": rope, "sliding_window": None}


def _minimax(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    if fields.whole("expert_gating_func", _SIGMOID) != _SIGMOID:
        raise fields.refused("it chooses its experts in another way than MiniMax M2")
    return {
        "num_local_experts": fields.whole("expert_count"),
        "num_experts_per_tok": fields.whole("expert_used_count"),
        "intermediate_size": _expert_size(fields, "ffn_up_exps"),
    }


FURTHER: dict[str, Callable[[Fields, Mapping[str, Any]], dict[str, Any]]] = {
    "llama": _llama,
    "arcee": _llama,
    "granite": _granite,
    "granitemoe": _granite_moe,
    "glm4": _glm,
    "chatglm": _glm,
    "glm4moe": _glm_moe,
    "command-r": _cohere,
    "cohere2": _cohere,
    "qwen2moe": _qwen2_moe,
    "olmoe": _olmoe,
    "olmo2": _olmo,
    "exaone4": _exaone4,
    "seed_oss": lambda fields, config: {
        "attention_bias": "blk.0.attn_q.bias" in fields.header.tensors,
        "attention_out_bias": "blk.0.attn_output.bias" in fields.header.tensors,
    },
    "stablelm": _stablelm,
    "ernie4_5": lambda fields, config: {"use_bias": "blk.0.attn_q.bias" in fields.header.tensors},
    "ernie4_5-moe": _ernie_moe,
    "mistral3": _mistral3,
    "minimax-m2": _minimax,
    "gemma2": _gemma,
    "gemma3": _gemma,
    "phi3": _phi3,
    "starcoder2": _starcoder2,
    "qwen3moe": _experts,
    "smollm3": lambda fields, config: {"no_rope_layer_interval": 4},
    "gptneox": lambda fields, config: {
        "use_parallel_residual": fields.flag("use_parallel_residual", True),
        "attention_bias": "blk.0.attn_qkv.bias" in fields.header.tensors,
    },
}

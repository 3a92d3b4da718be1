"""The architectures of GGUF files: what their tensors are called in transformers' checkpoints, and what was done to them.

llama.cpp's converter renames tensors, and changes some for its own code's sake: rows of q and k are permuted where RoPE
rotates neighbours, Gemma's norms are stored as 1 + w, GPT-2's matrices turned, experts stacked, GPT-NeoX's heads
regrouped. Each family says here what to undo.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# What becomes of a tensor's rows (its first dimension), or of its values.
PAIRED = "paired"  # rows of each head: halves interleaved for RoPE of neighbours
REGROUPED = "regrouped"  # all q, all k, all v in place of q, k, v of each head
TURNED = "turned"  # a matrix stored as [out, in], wanted as [in, out]
SHIFTED = "shifted"  # 1 + w
STACKED = "stacked"  # experts in one tensor

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}  # fmt: skip
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_TWO_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_FOUR_NORMS = {
    "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
_LLAMA = {**_ATTENTION, **_MLP, **_TWO_NORMS}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate", "ffn_gate_exps": "mlp.experts.{}.gate_proj", "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}  # fmt: skip
_STACKED = {"ffn_gate_exps": STACKED, "ffn_up_exps": STACKED, "ffn_down_exps": STACKED}
_PAIRED = {"attn_q": PAIRED, "attn_k": PAIRED}


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture. Names are without `.weight` and `.bias`, those of layers without the layer."""

    model_type: str
    layer: Mapping[str, str]
    top: Mapping[str, str] = field(default_factory=lambda: _TOP)
    blocks: str = "model.layers"
    changes: Mapping[str, str] = field(default_factory=dict)
    shifted: bool = False  # every norm is stored as 1 + w
    activation: tuple[str, str] = (
        "hidden_act",
        "silu",
    )  # field of the configuration, value: files do not say it
    epsilon: tuple[str, str] = (
        "rms_norm_eps",
        "layer_norm_rms_epsilon",
    )  # field, and what it is called in files
    tied: bool = False  # always, and files have no head of their own


FAMILIES: dict[str, Family] = {
    "llama": Family("llama", _LLAMA, changes=_PAIRED),
    "qwen2": Family("qwen2", _LLAMA),
    "qwen3": Family("qwen3", {**_LLAMA, **_HEAD_NORMS}),
    "gemma": Family(
        "gemma", _LLAMA, shifted=True, activation=("hidden_act", "gelu_pytorch_tanh"), tied=True,
    ),
    "gemma2": Family(
        "gemma2", {**_ATTENTION, **_MLP, **_FOUR_NORMS}, shifted=True,
        activation=("hidden_activation", "gelu_pytorch_tanh"), tied=True,
    ),
    "gemma3": Family(
        "gemma3_text", {**_ATTENTION, **_MLP, **_FOUR_NORMS, **_HEAD_NORMS}, shifted=True,
        activation=("hidden_activation", "gelu_pytorch_tanh"), tied=True,
    ),
    "phi3": Family(
        "phi3",
        {
            "attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj", "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj", **_TWO_NORMS,
        },
    ),
    "gpt2": Family(
        "gpt2",
        {
            "attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
        },
        {
            "token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        "transformer.h",
        {"attn_qkv": TURNED, "attn_output": TURNED, "ffn_up": TURNED, "ffn_down": TURNED},
        activation=("activation_function", "gelu_new"), epsilon=("layer_norm_epsilon", "layer_norm_epsilon"),
    ),
    "gptneox": Family(
        "gpt_neox",
        {
            "attn_norm": "input_layernorm", "attn_qkv": "attention.query_key_value", "attn_output": "attention.dense",
            "ffn_norm": "post_attention_layernorm", "ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h",
        },
        {"token_embd": "gpt_neox.embed_in", "output_norm": "gpt_neox.final_layer_norm", "output": "embed_out"},
        "gpt_neox.layers", {"attn_qkv": REGROUPED}, activation=("hidden_act", "gelu"),
        epsilon=("layer_norm_eps", "layer_norm_epsilon"),
    ),
    "starcoder2": Family(
        "starcoder2", {**_ATTENTION, **_TWO_NORMS, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        activation=("hidden_act", "gelu_pytorch_tanh"), epsilon=("norm_epsilon", "layer_norm_epsilon"),
    ),
    "granite": Family("granite", _LLAMA, changes=_PAIRED),
    "smollm3": Family("smollm3", _LLAMA, changes=_PAIRED),
    "olmo2": Family(
        "olmo2",
        {
            **_ATTENTION, **_MLP, **_HEAD_NORMS, "post_attention_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
    ),
    "qwen3moe": Family(
        "qwen3_moe", {**_ATTENTION, **_HEAD_NORMS, **_TWO_NORMS, **_EXPERTS}, changes=_STACKED
    ),
}  # fmt: skip

# Tensors that say how to rotate; they become part of the configuration.
ROPE_FREQS, ROPE_SHORT, ROPE_LONG = (
    "rope_freqs.weight",
    "rope_factors_short.weight",
    "rope_factors_long.weight",
)

"""The architectures of GGUF files: the names of their tensors in transformers' checkpoints, and the changes to undo.

llama.cpp's converter renames tensors, and changes some for its own code: rows of q and k are permuted where RoPE rotates
neighbours, Gemma's norms are stored as 1 + w, GPT-2's matrices are transposed, experts stacked (or their fused matrices
taken apart), GPT-NeoX's heads regrouped, Apertus's scalars made metadata. Each family says here what to undo.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Changes of a tensor's rows (its first dimension), or of its values.
PAIRED = "paired"  # rows of each head: halves interleaved for RoPE of neighbours
REGROUPED = "regrouped"  # all q, all k, all v in place of q, k, v of each head
TURNED = "turned"  # a matrix stored as [out, in], wanted as [in, out]
SHIFTED = "shifted"  # 1 + w
STACKED = "stacked"  # experts in one tensor, or the norms of heads
JOINED = "joined"  # with another tensor (see `joined`) behind it: of each expert first its gate, then the gated part
ROW = "row"  # a matrix of one row, which is stored with one dimension or with two

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
_SHARED = {
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
_POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GLM = {
    **_ATTENTION, "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
_GPT2 = {
    "attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
}  # fmt: skip
_GPT2_TOP = {
    "token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f",
    "output": "lm_head",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture. Names are without `.weight` and `.bias`, and those of layers without the layer; a name that
    begins with = is the whole name."""

    model_type: str
    layer: Mapping[str, str]
    top: Mapping[str, str] = field(default_factory=lambda: _TOP)
    blocks: str = "model.layers"
    changes: Mapping[str, str] = field(default_factory=dict)
    shifted: bool = False  # every norm is stored as 1 + w
    activation: tuple[str, str] = (
        "hidden_act",
        "silu",
    )  # field of the configuration, and its value: files do not have it
    epsilon: tuple[str, str] = (
        "rms_norm_eps",
        "layer_norm_rms_epsilon",
    )  # field, and its name in files
    tied: bool = False  # always, and files have no head of their own
    joined: Mapping[str, str] = field(default_factory=dict)  # what lies behind a tensor that is JOINED
    scalars: Mapping[str, str] = field(default_factory=dict)  # weights of layers that are metadata: names of both
    predicts: bool = False  # layers that predict further tokens may follow its layers; they are left out


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
        "gpt2", _GPT2, _GPT2_TOP, "transformer.h",
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
    "olmo2": Family("olmo2", {**_ATTENTION, **_MLP, **_HEAD_NORMS, **_POST_NORMS}),
    "exaone4": Family("exaone4", {**_ATTENTION, **_MLP, **_HEAD_NORMS, **_POST_NORMS}),
    "arcee": Family("arcee", _LLAMA, changes=_PAIRED, activation=("hidden_act", "relu2")),
    "mistral3": Family("ministral3", _LLAMA, changes=_PAIRED),
    "ernie4_5": Family("ernie4_5", _LLAMA),
    "seed_oss": Family(
        "seed_oss",
        {**_ATTENTION, **_MLP, "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"},
    ),
    "chatglm": Family("glm", _GLM),
    "glm4": Family(
        "glm4", {**_GLM, "post_attention_norm": "post_self_attn_layernorm", "post_ffw_norm": "post_mlp_layernorm"},
    ),
    "command-r": Family(
        "cohere", {**_ATTENTION, **_HEAD_NORMS, **_MLP, "attn_norm": "input_layernorm"},
        epsilon=("layer_norm_eps", "layer_norm_epsilon"), tied=True,
    ),
    "cohere2": Family(
        "cohere2", {**_ATTENTION, **_MLP, "attn_norm": "input_layernorm"},
        epsilon=("layer_norm_eps", "layer_norm_epsilon"), tied=True,
    ),
    "apertus": Family(
        "apertus",
        {
            **_ATTENTION, **_HEAD_NORMS, "attn_norm": "attention_layernorm", "ffn_norm": "feedforward_layernorm",
            "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
        },
        activation=("hidden_act", "xielu"),
        scalars={
            "xielu.alpha_n": "mlp.act_fn.alpha_n", "xielu.alpha_p": "mlp.act_fn.alpha_p", "xielu.beta": "mlp.act_fn.beta",
            "xielu.eps": "mlp.act_fn.eps",
        },
    ),
    "phi2": Family(
        "phi",
        {
            "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj", "attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2",
        },
        {**_TOP, "output_norm": "model.final_layernorm"},
        activation=("hidden_act", "gelu_new"), epsilon=("layer_norm_eps", "layer_norm_epsilon"),
    ),
    "stablelm": Family(
        "stablelm",
        {
            **_LLAMA, "attn_q_norm": "self_attn.q_layernorm.norms.{}", "attn_k_norm": "self_attn.k_layernorm.norms.{}",
        },
        changes={"attn_q_norm": STACKED, "attn_k_norm": STACKED}, epsilon=("layer_norm_eps", "layer_norm_epsilon"),
    ),
    "starcoder": Family(
        "gpt_bigcode", _GPT2, _GPT2_TOP, "transformer.h", activation=("activation_function", "gelu_pytorch_tanh"),
        epsilon=("layer_norm_epsilon", "layer_norm_epsilon"),
    ),
    "qwen2moe": Family(
        "qwen2_moe",
        {
            **_ATTENTION, **_TWO_NORMS, **_EXPERTS, "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
            "ffn_gate_shexp": "mlp.shared_expert.gate_proj", "ffn_up_shexp": "mlp.shared_expert.up_proj",
            "ffn_down_shexp": "mlp.shared_expert.down_proj",
        },
        changes={**_STACKED, "ffn_gate_inp_shexp": ROW},
    ),
    "olmoe": Family("olmoe", {**_ATTENTION, **_HEAD_NORMS, **_TWO_NORMS, **_EXPERTS}, changes=_STACKED),
    "granitemoe": Family(
        "granitemoe",
        {
            **_ATTENTION, **_TWO_NORMS, "ffn_gate_inp": "block_sparse_moe.router.layer",
            "ffn_gate_exps": "block_sparse_moe.input_linear", "ffn_down_exps": "block_sparse_moe.output_linear",
        },
        changes={**_PAIRED, "ffn_gate_exps": JOINED}, joined={"ffn_gate_exps": "ffn_up_exps"},
    ),
    "ernie4_5-moe": Family(
        "ernie4_5_moe",
        {
            **_LLAMA, **_EXPERTS, **_SHARED, "exp_probs_b": "=mlp.moe_statics.e_score_correction_bias",
        },
        changes={**_STACKED, "exp_probs_b": ROW},
    ),
    "glm4moe": Family(
        "glm4_moe",
        {
            **_ATTENTION, **_HEAD_NORMS, **_MLP, **_EXPERTS, **_SHARED, "attn_norm": "input_layernorm",
            "post_attention_norm": "post_attention_layernorm", "exp_probs_b": "=mlp.gate.e_score_correction_bias",
        },
        changes=_STACKED, predicts=True,
    ),
    "minimax-m2": Family(
        "minimax_m2",
        {
            **_ATTENTION, **_HEAD_NORMS, **_TWO_NORMS, "ffn_gate_inp": "block_sparse_moe.gate",
            "exp_probs_b": "=block_sparse_moe.e_score_correction_bias",
            "ffn_gate_exps": "block_sparse_moe.experts.{}.w1", "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
            "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
        },
        changes=_STACKED,
    ),
    "qwen3moe": Family(
        "qwen3_moe", {**_ATTENTION, **_HEAD_NORMS, **_TWO_NORMS, **_EXPERTS}, changes=_STACKED
    ),
}  # fmt: skip

# Tensors that set the rotation; they become part of the configuration.
ROPE_FREQS, ROPE_SHORT, ROPE_LONG = (
    "rope_freqs.weight",
    "rope_factors_short.weight",
    "rope_factors_long.weight",
)

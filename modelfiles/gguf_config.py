"""The configuration of a model in a GGUF file, as the config.json that transformers would have written for it.

llama.cpp's converter keeps the fields that its own code cannot know, under names of its own; the fields that follow from
the architecture are restored here. Stretched RoPE is partly metadata and partly a tensor of factors, which is small and
is read.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from llmasos.modelfiles.gguf import Header, Texts
from llmasos.modelfiles.gguf_families import ROPE_FREQS, ROPE_LONG, ROPE_SHORT
from llmasos.modelfiles.gguf_fields import MOST_FACTORS, Fields
from llmasos.modelfiles.gguf_further import FURTHER

# Tokens that end an answer even if a file names only one: llama.cpp looks for these by their text.
ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>",
    "<|end_of_text|>", "<end_of_utterance>", "<turn|>", "<|return|>", "<|call|>",
)  # fmt: skip
_SAMPLING = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty",
}  # fmt: skip
_CONTROL, _USER_DEFINED = 3, 4
_PARTIAL = (
    "phi3",
    "gptneox",
    "chatglm",
    "glm4",
    "glm4moe",
    "phi2",
    "stablelm",
    "minimax-m2",
)  # not all by default
_LLAMA3 = (1.0, 4.0)  # low and high factor of all published models; trying finds the length


def config_of(header: Header) -> dict[str, Any]:
    """The configuration, with `model_type` and every field that a causal language model of it needs.

    Raises ENOEXEC: no language model, or an unknown architecture. EIO: a value that makes no sense.
    """
    fields = Fields(header)
    family = fields.family
    hidden, heads = fields.whole("embedding_length"), fields.whole("attention.head_count")
    layers, context = fields.layers(), fields.whole("context_length")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise fields.wrong("it has no tensor token_embd.weight, so no vocabulary")
    eps_field, eps_key = family.epsilon
    config: dict[str, Any] = {
        "model_type": family.model_type,
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": context,
        "tie_word_embeddings": family.tied or "output.weight" not in header.tensors,
        eps_field: fields.real(f"attention.{eps_key}"),
        family.activation[0]: family.activation[1],
        "bos_token_id": fields.token("bos"),
        "pad_token_id": fields.token("padding"),
        "eos_token_id": ends(header),
    }
    if family.model_type in ("gpt2", "gpt_bigcode"):
        for old, new in (("hidden_size", "n_embd"), ("num_hidden_layers", "n_layer"), ("num_attention_heads", "n_head"),
                         ("max_position_embeddings", "n_positions")):  # fmt: skip
            config[new] = config.pop(old)
        fields.all_known()
        return config | {"n_inner": fields.whole("feed_forward_length")}
    if family.model_type != "qwen3_moe":
        config["intermediate_size"] = fields.whole("feed_forward_length")
    kv_heads = fields.whole("attention.head_count_kv", heads)
    head_dim = fields.whole("attention.key_length", hidden // heads if heads else 0)
    if not head_dim or fields.whole("attention.value_length", head_dim) != head_dim:
        raise fields.refused("its keys and values have different sizes")
    config |= {"num_key_value_heads": kv_heads, "head_dim": head_dim}
    config["rope_parameters"] = _rope(fields, head_dim, context)
    for key, name in (("attn_logit_softcapping", "attn_logit_softcapping"), ("final_logit_softcapping",) * 2):
        if (cap := fields.real(key, 0.0)) or family.model_type in ("gemma2", "gemma3_text"):
            config[name] = cap or None
    if further := FURTHER.get(fields.architecture):
        config |= further(fields, config)
    fields.all_known()
    return config


def ends(header: Header) -> list[int]:
    """Ids of the tokens that end an answer."""
    metadata = header.metadata
    found = [
        value
        for name in ("eos", "eot", "eom")
        if isinstance(value := metadata.get(f"tokenizer.ggml.{name}_token_id"), int)
    ]
    tokens, kinds = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if isinstance(tokens, Texts) and isinstance(kinds, np.ndarray) and len(kinds) == len(tokens):
        special = np.flatnonzero((kinds == _CONTROL) | (kinds == _USER_DEFINED))
        found += [int(i) for i in special if tokens[int(i)] in ENDS]
    return sorted(set(found))


def sampling_of(header: Header) -> dict[str, Any]:
    """The sampling that the model's makers advise, in the terms of generation_config.json."""
    return {
        name: value
        for key, name in _SAMPLING.items()
        if (value := header.metadata.get(f"general.sampling.{key}")) is not None
    }


def _rope(fields: Fields, head_dim: int, context: int) -> dict[str, Any]:
    rotated = fields.whole("rope.dimension_count", head_dim)
    if rotated > head_dim or head_dim > 2 * MOST_FACTORS:
        raise fields.wrong(f"{rotated} items of heads of {head_dim} are rotated")
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": fields.real("rope.freq_base", 10000.0)}
    if rotated != head_dim or fields.architecture in _PARTIAL:
        found["partial_rotary_factor"] = rotated / head_dim
    kind, factor = fields.get("rope.scaling.type", "none"), fields.get("rope.scaling.factor")
    if not isinstance(kind, str):
        raise fields.wrong(f"its rotation is stretched by {str(kind)[:40]!r}, a name was wanted")
    original = fields.get("rope.scaling.original_context_length")
    if original is not None:
        original = fields.whole("rope.scaling.original_context_length")
    if (factors := fields.factors(ROPE_FREQS)) is not None:
        if len(factors) != rotated // 2:
            raise fields.wrong(f"it has {len(factors)} factors of rotation, {rotated // 2} were wanted")
        return found | _stretched(factors, found["rope_theta"], rotated, context)
    short, long = fields.factors(ROPE_SHORT), fields.factors(ROPE_LONG)
    if short is not None and long is not None:
        if len(short) != rotated // 2 or len(long) != rotated // 2:
            raise fields.wrong(f"it has {len(short)} factors of rotation, {rotated // 2} were wanted")
        found |= {"rope_type": "longrope", "short_factor": short, "long_factor": long}
        found["original_max_position_embeddings"] = original or context
        if fields.get("rope.scaling.attn_factor") is not None:
            found["attention_factor"] = fields.real("rope.scaling.attn_factor")
        return found
    if kind == "linear" and factor is not None:
        return found | {"rope_type": "linear", "factor": fields.real("rope.scaling.factor")}
    if kind == "yarn":
        found |= {"rope_type": "yarn", "factor": fields.real("rope.scaling.factor")}
        found["original_max_position_embeddings"] = original or context
        for key, name in (("yarn_attn_factor", "attention_factor"), ("yarn_beta_fast", "beta_fast"),
                          ("yarn_beta_slow", "beta_slow")):  # fmt: skip
            if fields.get(f"rope.scaling.{key}") is not None:
                found[name] = fields.real(f"rope.scaling.{key}")
        return found
    if kind not in ("none", "linear", "longrope"):
        raise fields.refused(f"its rotation is stretched by {str(kind)[:40]!r}")
    return found


def _stretched(factors: list[float], theta: float, rotated: int, context: int) -> dict[str, Any]:
    """The divisors of the frequencies: Llama 3's formula if it gives these factors, else the factors themselves."""
    (low, high), factor = _LLAMA3, max(factors)
    lengths = 2 * math.pi * theta ** (np.arange(0, rotated, 2) / rotated)
    for original in (1 << k for k in range(4, 21)):
        smooth = (original / lengths - low) / (high - low)
        between = 1 / ((1 - smooth) / factor + smooth)
        long, short = lengths > original / low, lengths < original / high
        wanted = np.where(short, 1.0, np.where(long, factor, between))
        if len(factors) == len(wanted) and np.allclose(wanted, factors, rtol=1e-4, atol=0):
            return {
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }  # fmt: skip
    return {
        "rope_type": "longrope", "short_factor": factors, "long_factor": factors, "attention_factor": 1.0,
        "factor": 1.0, "original_max_position_embeddings": context,
    }  # fmt: skip

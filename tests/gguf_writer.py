"""GGUF files for the tests: a model directory of transformers, written as llama.cpp's converter writes it.

Names of tensors come from the `gguf` package's own map and bytes from its writer; what the converter does to weights is
repeated here by its published formulas (the permutation of q and k, 1 + w). A reader and a writer by one author may err
alike: files of the converter itself have been compared with these.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

ARCHITECTURES = {
    "gemma3_text": "gemma3", "gpt_neox": "gptneox", "mistral": "llama", "qwen3_moe": "qwen3moe", "glm": "chatglm",
    "glm4_moe": "glm4moe", "cohere": "command-r", "qwen2_moe": "qwen2moe", "phi": "phi2", "ministral3": "mistral3",
    "ernie4_5_moe": "ernie4_5-moe", "minimax_m2": "minimax-m2", "gpt_bigcode": "starcoder", "olmo3": "olmo2",
}  # fmt: skip
_PAIRED = ("llama", "granite", "granitemoe", "smollm3", "arcee", "mistral3")
_SHIFTED = ("gemma", "gemma2", "gemma3")


def convert(directory: Path, target: Path, kind: str = "F32", *, tokens: bool = True) -> Path:
    """Write the model in `directory` to `target`, its matrices as items of `kind` where their rows have whole blocks."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    number = next(n for n, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    writer = gguf.GGUFWriter(target, architecture)
    _metadata(writer, config)
    if tokens:
        _vocabulary(writer, directory, config)
    wanted = gguf.GGMLQuantizationType[kind]
    for name, values in _together(model.state_dict()).items():
        if name == "lm_head.weight" and (config.tie_word_embeddings or architecture == "gemma2"):
            continue
        if ".act_fn." in name:  # Apertus: metadata
            continue
        for new, array in _stored(name, values.numpy(), architecture, config):
            stem, _, ending = new.rpartition(".")
            mapped = names.get_name(stem, try_suffixes=()) or names.get_name(new)
            assert mapped is not None, f"the gguf package knows no name for {new}"
            block = gguf.GGML_QUANT_SIZES[wanted][0]
            items = wanted if array.ndim > 1 and array.shape[-1] % block == 0 else gguf.GGMLQuantizationType.F32
            writer.add_tensor(f"{mapped}.{ending}", gguf.quants.quantize(array, items), raw_dtype=items)
    for scalar in ("alpha_n", "alpha_p", "beta", "eps") if architecture == "apertus" else ():
        numbers = [
            float(model.state_dict()[f"model.layers.{i}.mlp.act_fn.{scalar}"]) for i in range(config.num_hidden_layers)
        ]
        getattr(writer, f"add_xielu_{scalar}")(numbers)
    for name, factors in _factors(config).items():
        writer.add_tensor(name, np.array(factors, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _together(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The norms of heads that are modules of their own (StableLM) as one tensor."""
    found: dict[str, torch.Tensor] = {}
    for name, values in tensors.items():
        stem, norms, rest = name.partition(".norms.")
        if norms and rest == "0.weight":
            heads = [other for key, other in tensors.items() if key.startswith(stem + norms)]
            found[f"{stem}.weight"] = torch.stack(heads)
        elif not norms:
            found[name] = values
    return found


def permuted(array: np.ndarray, heads: int) -> np.ndarray:
    """As the converter permutes q and k."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def _stored(name: str, array: np.ndarray, architecture: str, config: Any) -> list[tuple[str, np.ndarray]]:
    array = np.ascontiguousarray(array, dtype=np.float32)
    if architecture in _PAIRED and "q_proj" in name:
        array = permuted(array, config.num_attention_heads)
    if architecture in _PAIRED and "k_proj" in name:
        array = permuted(array, config.num_key_value_heads)
    if architecture in _SHIFTED and name.endswith("norm.weight"):
        array = array + np.float32(1)
    if architecture == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        array = np.ascontiguousarray(array.T)
    if architecture == "gptneox" and "query_key_value" in name:
        heads = config.num_attention_heads
        parts = array.reshape(heads, 3, -1, *array.shape[1:])
        array = np.concatenate([parts[:, i].reshape(-1, *array.shape[1:]) for i in range(3)])
    if name.endswith("experts.gate_up_proj"):
        gate, up = np.split(array, 2, axis=1)
        stem = name.removesuffix("gate_up_proj")
        return [(f"{stem}gate_proj.weight", gate), (f"{stem}up_proj.weight", up)]
    return [(f"{name}.weight" if name.endswith("experts.down_proj") else name, array)]


def _metadata(writer: gguf.GGUFWriter, config: Any) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if hasattr(config, "num_key_value_heads"):
        writer.add_head_count_kv(config.num_key_value_heads)
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(
            next(
                getattr(config, n) for n in ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon") if hasattr(config, n)
            )
        )
    rope = getattr(config, "rope_parameters", None) or {}
    plain = rope.get("full_attention", rope)
    if config.model_type != "gpt2":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_rope_dimension_count(int(head_dim * plain.get("partial_rotary_factor", 1.0)))
        writer.add_rope_freq_base(plain.get("rope_theta", 10000.0))
    if plain.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(plain["rope_type"]))
        writer.add_rope_scaling_factor(plain["factor"])
    if plain.get("rope_type") in ("yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(plain["original_max_position_embeddings"])
    if config.model_type == "ministral3":
        writer.add_rope_scaling_yarn_beta_fast(plain["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(plain["beta_slow"])
        writer.add_rope_scaling_yarn_log_mul(plain["mscale_all_dim"])
        writer.add_attn_temperature_scale(plain["llama_4_scaling_beta"])
    if plain.get("rope_type") == "longrope":
        original = plain["original_max_position_embeddings"]
        scale = config.max_position_embeddings / original
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))
    if getattr(config, "sliding_window", None) and config.model_type != "qwen2":
        writer.add_sliding_window(config.sliding_window)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name, None):
            getattr(writer, f"add_{name}")(getattr(config, name))
    for name, add in (
        ("attention_multiplier", writer.add_attention_scale), ("embedding_multiplier", writer.add_embedding_scale),
        ("residual_multiplier", writer.add_residual_scale), ("logits_scaling", writer.add_logit_scale),
        ("logit_scale", writer.add_logit_scale),
        ("num_experts", writer.add_expert_count), ("num_experts_per_tok", writer.add_expert_used_count),
        ("moe_intermediate_size", writer.add_expert_feed_forward_length),
    ):  # fmt: skip
        if hasattr(config, name):
            add(getattr(config, name))
    if config.model_type == "gpt_neox":
        writer.add_parallel_residual(config.use_parallel_residual)


def _factors(config: Any) -> dict[str, list[float]]:
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return {
            "rope_factors_long.weight": rope["long_factor"],
            "rope_factors_short.weight": rope["short_factor"],
        }
    if rope.get("rope_type") != "llama3":
        return {}
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    original, factor = rope["original_max_position_embeddings"], rope["factor"]
    found = []
    for i in range(0, dim, 2):
        length = 2 * math.pi * rope["rope_theta"] ** (i / dim)
        smooth = (original / length - low) / (high - low)
        found.append(
            1.0
            if length < original / high
            else factor
            if length > original / low
            else 1 / ((1 - smooth) / factor + smooth)
        )
    return {"rope_freqs.weight": found}


def _vocabulary(writer: gguf.GGUFWriter, directory: Path, config: Any) -> None:
    """A byte-level tokenizer, or one with pieces for bytes, as sentencepiece's: merges become scores."""
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    vocab = dict(tokenizer["model"]["vocab"]) | {one["content"]: one["id"] for one in tokenizer["added_tokens"]}
    special = {one["id"] for one in tokenizer["added_tokens"] if one["special"]}
    by_id = {i: token for token, i in vocab.items()}
    rows = config.vocab_size
    merges = tokenizer["model"]["merges"]
    pieces = tokenizer["model"]["byte_fallback"]
    bytes_ = {vocab[f"<0x{byte:02X}>"] for byte in range(256)} if pieces else set()
    writer.add_tokenizer_model("llama" if pieces else "gpt2")
    writer.add_token_list([by_id.get(i, f"[PAD{i}]") for i in range(rows)])
    writer.add_token_types([3 if i in special else 6 if i in bytes_ else 1 if i in by_id else 5 for i in range(rows)])
    if pieces:
        ranks = {"".join(pair): rank for rank, pair in enumerate(merges)}
        writer.add_token_scores([-float(ranks.get(by_id.get(i, ""), len(ranks))) for i in range(rows)])
    else:
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges([" ".join(pair) for pair in merges])
    for name, value in (
        ("bos", config.bos_token_id),
        ("eos", config.eos_token_id),
        ("pad", config.pad_token_id),
    ):
        if value is not None:
            getattr(writer, f"add_{name}_token_id")(value[0] if isinstance(value, list) else value)
    template = directory / "chat_template.jinja"
    if template.exists():
        writer.add_chat_template(template.read_text())

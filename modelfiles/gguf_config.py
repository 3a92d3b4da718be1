"""The configuration of a model in a GGUF file, as the config.json that transformers would have written for it.

llama.cpp's converter keeps what its own code cannot know, under names of its own; what follows from the architecture is
put back here. Stretched RoPE is partly metadata and partly a tensor of factors, which is small and is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from modelfiles.files import broken, shown
from modelfiles.gguf import Entry, Header, Texts
from modelfiles.gguf_families import FAMILIES, ROPE_FREQS, ROPE_LONG, ROPE_SHORT, Family
from modelfiles.spans import Spans
from syscalls.errno import Errno, SyscallError

# Tokens that end an answer although a file may name only one: llama.cpp looks for these by their text.
ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>",
    "<|end_of_text|>", "<end_of_utterance>", "<turn|>", "<|return|>", "<|call|>",
)  # fmt: skip
_SAMPLING = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty",
}  # fmt: skip
_CONTROL, _USER_DEFINED = 3, 4
_MOST_FACTORS = 1 << 12
_FACTORS = (1e-4, 1e6)  # of which fp32 still makes frequencies
_LLAMA3 = (1.0, 4.0)  # low and high factor of all that are published; the length is found by trying
_GEMMA_27B = {"gemma2": 46, "gemma3": 62}  # layers of those whose queries are scaled by hidden / heads


def config_of(header: Header) -> dict[str, Any]:
    """The configuration, with `model_type` and all that a causal language model of it needs.

    Raises ENOEXEC: no language model, or an architecture that is not known here. EIO: a value that makes no sense.
    """
    fields = Fields(header)
    family = fields.family
    hidden, heads = fields.whole("embedding_length"), fields.whole("attention.head_count")
    layers, context = fields.whole("block_count"), fields.whole("context_length")
    if fields.get("nextn_predict_layers", 0):
        raise fields.refused("it has layers that predict several tokens")
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
    if family.model_type == "gpt2":
        for old, new in (("hidden_size", "n_embd"), ("num_hidden_layers", "n_layer"), ("num_attention_heads", "n_head"),
                         ("max_position_embeddings", "n_positions")):  # fmt: skip
            config[new] = config.pop(old)
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
    further = _FURTHER.get(fields.architecture)
    return config | further(fields, config) if further else config


class Fields:
    """A header's metadata under its architecture's prefix, each checked for what it is."""

    def __init__(self, header: Header) -> None:
        """Raises ENOEXEC for what is no language model of a known architecture."""
        self.header = header
        architecture = header.metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise SyscallError(Errno.ENOEXEC, f"{header.path} does not say which architecture it is")
        kind = header.metadata.get("general.type", "model")
        self.architecture = architecture
        if kind != "model" or architecture in ("clip", "imatrix"):
            what = "a vision or audio tower" if architecture == "clip" else str(kind)[:40]
            raise SyscallError(
                Errno.ENOEXEC,
                f"{header.path} holds no language model but {what!r}; name the model's own file",
            )
        if architecture not in FAMILIES:
            raise SyscallError(
                Errno.ENOEXEC,
                f"architecture {architecture[:40]!r} of {header.path} is not read from GGUF files; those are "
                f"{', '.join(sorted(FAMILIES))}; try the model's safetensors",
            )
        self.family: Family = FAMILIES[architecture]

    def get(self, key: str, default: Any = None) -> Any:
        return self.header.metadata.get(f"{self.architecture}.{key}", default)

    def whole(self, key: str, default: int | None = None) -> int:
        """A number of things; where there is one for each layer it has to be the same."""
        value = self.get(key, default)
        if isinstance(value, np.ndarray) and value.ndim == 1 and value.size:
            if not (value == value[0]).all():
                raise self.refused(f"its layers differ in {key}")
            value = value[0].item()
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 40:
            raise self.wrong(f"{self.architecture}.{key} is {str(value)[:60]!r}, a number above 0 was wanted")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(f"{self.architecture}.{key} is {str(value)[:60]!r}, a number was wanted")
        return shortest(float(value))

    def token(self, name: str) -> int | None:
        """The id of a named token, if there is one."""
        value = self.header.metadata.get(f"tokenizer.ggml.{name}_token_id")
        vocab = self.header.tensors["token_embd.weight"].shape[0]
        return value if isinstance(value, int) and 0 <= value < vocab else None

    def factors(self, name: str) -> list[float] | None:
        """A small tensor of fp32. None if there is none."""
        entry: Entry | None = self.header.tensors.get(name)
        if entry is None:
            return None
        if entry.kind != "F32" or len(entry.shape) != 1 or entry.shape[0] > _MOST_FACTORS:
            raise self.wrong(f"tensor {name} is {entry.kind} {entry.shape}, a row of F32 was wanted")
        found = Spans().read(entry.file, entry.offset, entry.size).view("<f4")
        least, greatest = _FACTORS
        if not ((found >= least) & (found <= greatest)).all():
            raise self.wrong(
                f"tensor {name} has values that are no factors: from {least:g} to {greatest:g} they go"
            )
        return [shortest(float(value)) for value in found]

    def wrong(self, what: str) -> SyscallError:
        return broken(f"broken GGUF file: {shown(self.header.path)}: {what}; copy or download it again")

    def refused(self, what: str) -> SyscallError:
        return SyscallError(
            Errno.ENOEXEC,
            f"architecture {self.architecture!r} of {self.header.path} is not supported: {what}",
        )


def shortest(value: float) -> float:
    """The decimal that is meant by an fp32 number: 1e-05, not 9.999999747378752e-06."""
    single = np.float32(value)
    return float(str(single)) if float(single) == value else value


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
    """How the model's makers want it to be sampled, in the words of generation_config.json."""
    return {
        name: value
        for key, name in _SAMPLING.items()
        if (value := header.metadata.get(f"general.sampling.{key}")) is not None
    }


def _rope(fields: Fields, head_dim: int, context: int) -> dict[str, Any]:
    rotated = fields.whole("rope.dimension_count", head_dim)
    if rotated > head_dim or head_dim > 2 * _MOST_FACTORS:
        raise fields.wrong(f"{rotated} items of heads of {head_dim} are rotated")
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": fields.real("rope.freq_base", 10000.0)}
    if rotated != head_dim or fields.architecture in ("phi3", "gptneox"):
        found["partial_rotary_factor"] = rotated / head_dim
    kind, factor = fields.get("rope.scaling.type", "none"), fields.get("rope.scaling.factor")
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
    """What divides the frequencies: Llama 3's formula where it gives these factors, else the factors themselves."""
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


def _llama(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    if fields.get("expert_count", 0):
        raise fields.refused("it has experts (Mixtral)")
    tensors = fields.header.tensors
    found: dict[str, Any] = {
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    }
    if window := fields.get("attention.sliding_window", 0):
        found |= {"model_type": "mistral", "sliding_window": window}
    return found


def _granite(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    return _llama(fields, config) | {
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
    types = [
        "full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(min(layers, 4096))
    ]
    if default is None and fields.get("attention.sliding_window") is None:
        types = ["full_attention"] * len(types)
        default = 4096
    found = {
        "query_pre_attn_scalar": config["hidden_size"] // heads if whole else config["head_dim"],
        "sliding_window": fields.whole("attention.sliding_window", default),
        "layer_types": types,
    }
    if fields.architecture == "gemma3":
        local = {"rope_type": "default", "rope_theta": fields.real("rope.freq_base_swa", 10000.0)}
        found["rope_parameters"] = {"sliding_attention": local, "full_attention": config["rope_parameters"]}
    return found


def _phi3(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    original = config["rope_parameters"].get("original_max_position_embeddings")
    window = fields.get("attention.sliding_window", 0)
    return {
        "sliding_window": window or None,
        "original_max_position_embeddings": original or fields.get("rope.scaling.original_context_length")
        or config["max_position_embeddings"],
    }  # fmt: skip


def _starcoder2(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "use_bias": "blk.0.ffn_up.bias" in fields.header.tensors,
        "sliding_window": fields.get("attention.sliding_window"),
    }


def _experts(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_experts": fields.whole("expert_count"),
        "num_experts_per_tok": fields.whole("expert_used_count"),
        "moe_intermediate_size": fields.whole("expert_feed_forward_length"),
        "norm_topk_prob": True,
        "intermediate_size": fields.whole("feed_forward_length", 1),
    }


_FURTHER: dict[str, Callable[[Fields, Mapping[str, Any]], dict[str, Any]]] = {
    "llama": _llama,
    "granite": _granite,
    "gemma2": _gemma,
    "gemma3": _gemma,
    "phi3": _phi3,
    "starcoder2": _starcoder2,
    "qwen3moe": _experts,
    "smollm3": lambda fields, config: {"no_rope_layer_interval": 4},
    "gptneox": lambda fields, config: {
        "use_parallel_residual": bool(fields.get("use_parallel_residual", True)),
        "attention_bias": "blk.0.attn_qkv.bias" in fields.header.tensors,
    },
}

"""Bounds of the numbers in a configuration, checked before anything is built from them.

A model's classes allocate what their configuration says: 20,000 layers take minutes to build, a hidden size of a million
takes gigabytes. No published model comes near these bounds; numbers beyond them are refused in microseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmasos.modelfiles.files import broken, shown

_LAYERS, _WIDTH, _HEADS, _VOCABULARY, _POSITIONS, _EXPERTS = 512, 1 << 17, 4096, 1 << 21, 1 << 27, 1 << 14
_MOST = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers",
                     "decoder_layers", "num_nextn_predict_layers", "depth"), _LAYERS),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embed_dim", "embedding_size", "hidden_dim",
                     "word_embed_proj_dim"), _WIDTH),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff", "moe_intermediate_size", "ffn_hidden_size",
                     "shared_expert_intermediate_size"), 1 << 20),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads", "num_kv_heads",
                     "n_head_kv"), _HEADS),
    **dict.fromkeys(("head_dim", "d_kv", "kv_channels", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 1 << 14),
    **dict.fromkeys(("vocab_size", "padded_vocab_size", "type_vocab_size"), _VOCABULARY),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "seq_length",
                     "max_seq_len", "original_max_position_embeddings"), _POSITIONS),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok", "n_shared_experts"),
                    _EXPERTS),
}  # fmt: skip
_REALS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("rope_theta", "rotary_emb_base", "rope_local_base_freq", "rope_base"), (1e-3, 1e18)),
    **dict.fromkeys(("factor", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor", "attention_factor",
                     "short_mscale", "long_mscale"), (1e-4, 1e6)),
    **dict.fromkeys(("beta_fast", "beta_slow", "mscale", "mscale_all_dim"), (0.0, 1e6)),  # 0: as if absent
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct", "rope_pct"), (0.0, 1.0)),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_epsilon",
                     "norm_eps"), (0.0, 1.0)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), (0.0, 1e6)),
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling",
                     "query_pre_attn_scalar", "logit_scale"), (1e-8, 1e8)),
}  # fmt: skip
_ENCODABLE = 1 << 63  # what a message can carry
_DEPTH = 16
_ITEMS = 1 << 20  # of all lists and objects together


def check(config: dict[str, Any], file: Path) -> None:
    """Raise EIO naming the field whose number is out of bounds."""
    for count, (where, name, value) in enumerate(_fields(config, "", 0, file)):
        if count > _ITEMS:
            raise broken(f"{shown(file)} has more than {_ITEMS} values; is it a configuration?")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        most = _MOST.get(name)
        if most is not None and not 0 <= value <= most:
            raise broken(
                f"{shown(file)}: {shown(where)} is {_number(value)}; numbers from 0 to {most} are taken",
            )
        least, greatest = _REALS.get(name, (-math.inf, math.inf))
        if name in _REALS and not least <= value <= greatest:  # fp32 turns them into infinities, and then NaN
            raise broken(
                f"{shown(file)}: {shown(where)} is {_number(value)}; numbers from {least:g} to {greatest:g} are taken"
            )
        if isinstance(value, int) and not -_ENCODABLE <= value < _ENCODABLE:
            raise broken(f"{shown(file)}: {shown(where)} is {_number(value)}, which is out of all bounds")


def _fields(value: Any, where: str, depth: int, file: Path) -> Iterator[tuple[str, str, Any]]:
    """Every value that is no list and no object: its path, its name, and the value."""
    if depth > _DEPTH:
        raise broken(f"{shown(file)}: {shown(where[:80])} is nested more than {_DEPTH} deep")
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _named(inner, f"{where}.{key}" if where else str(key), str(key), depth, file)
    else:
        for number, inner in enumerate(value):
            name = where.rpartition(".")[2].partition("[")[0]
            yield from _named(inner, f"{where}[{number}]", name, depth, file)


def _named(value: Any, where: str, name: str, depth: int, file: Path) -> Iterator[tuple[str, str, Any]]:
    if isinstance(value, dict | list):
        yield from _fields(value, where, depth + 1, file)
    else:
        yield where, name, value


def _number(value: float) -> str:
    """A number as short text: an integer may have a million digits."""
    if isinstance(value, int) and abs(value) > 1 << 256:
        return f"an integer of {value.bit_length()} bits"
    return str(value)

"""What the native decoder reads from a config.json, against transformers' own classes and modules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmasos.drivers.cpu.native import config as native
from llmasos.drivers.engine import architecture
from llmasos.syscalls.errno import Errno, SyscallError
from tests import models_zoo

NATIVE_ZOO = sorted(name for name, (kind, _) in models_zoo.ZOO.items() if kind in native.FAMILIES)
POSITIONS = 700
ULPS = 2.5e-7  # of a cosine

_ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "theta": {"rope_theta": 500_000.0},
    "new style": {"rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000}},
    "linear": {"rope_scaling": {"type": "linear", "factor": 3.7}, "rope_theta": 12_345.0},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 1.7}},
    "yarn": {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        "rope_theta": 1e6,
    },
    "yarn of deepseek": {
        "rope_scaling": {
            "type": "yarn", "factor": 40, "beta_fast": 24, "beta_slow": 2, "mscale": 1.0, "mscale_all_dim": 0.707,
            "original_max_position_embeddings": 4096,
        },
    },
    "yarn untruncated": {
        "rope_scaling": {
            "rope_type": "yarn", "factor": 8.0, "truncate": False, "attention_factor": 1.25,
            "original_max_position_embeddings": 64,
        },
    },
    "llama3": {
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        },
        "rope_theta": 500_000.0,
    },
    "longrope": {
        "rope_scaling": {
            "rope_type": "longrope", "short_factor": [1.0 + i / 9 for i in range(32)], "long_factor": [4.0] * 32,
            "original_max_position_embeddings": 128,
        },
    },
    "longrope with a factor": {
        "rope_scaling": {
            "rope_type": "longrope", "short_factor": [1.0] * 32, "long_factor": [4.0] * 32, "factor": 16.0,
            "original_max_position_embeddings": 128,
        },
    },
}  # fmt: skip
_PHI3_ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "partial": {"partial_rotary_factor": 0.75},
    "su": {
        "rope_scaling": {"type": "su", "short_factor": [1.1] * 32, "long_factor": [4.0] * 32}
        | {"original_max_position_embeddings": 128},
        "original_max_position_embeddings": 256,
        "max_position_embeddings": 4096,
    },
    "partial longrope": {
        "rope_scaling": {"type": "longrope", "short_factor": [1.1] * 24, "long_factor": [4.0] * 24},
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 256,
    },
}
_SIZE = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
_SIZE |= {"intermediate_size": 96, "vocab_size": 99, "pad_token_id": 0, "max_position_embeddings": 512}


def theirs(raw: dict[str, Any], directory: Path) -> Any:
    (directory / "config.json").write_text(json.dumps(raw))
    return architecture.open_config(raw, directory)


@pytest.mark.parametrize("kind", sorted(native.FAMILIES))
def test_fields_that_are_absent_have_the_defaults_of_transformers(kind: str, tmp_path: Path) -> None:
    ours = native.read({"model_type": kind}, "it")
    wanted = theirs({"model_type": kind}, tmp_path)
    heads = wanted.num_attention_heads
    assert (ours.vocab, ours.hidden, ours.middle) == (
        wanted.vocab_size,
        wanted.hidden_size,
        wanted.intermediate_size,
    )
    assert (ours.layers, ours.heads, ours.kv_heads) == (
        wanted.num_hidden_layers,
        heads,
        wanted.num_key_value_heads,
    )
    assert ours.head_dim == (getattr(wanted, "head_dim", None) or wanted.hidden_size // heads)
    assert (ours.context, ours.epsilon) == (wanted.max_position_embeddings, wanted.rms_norm_eps)
    assert ours.tied == wanted.tie_word_embeddings
    name = getattr(wanted, "hidden_activation", None) or wanted.hidden_act
    assert ours.activation == native.ACTIVATIONS[name]
    assert list(ours.eos) == ([] if wanted.eos_token_id is None else [wanted.eos_token_id])
    if kind == "gemma2":
        assert ours.attention_scale == wanted.query_pre_attn_scalar**-0.5
        assert ours.attention_softcap == wanted.attn_logit_softcapping
        assert ours.logit_softcap == wanted.final_logit_softcapping


def small(kind: str, **more: Any) -> dict[str, Any]:
    head = {"head_dim": 64} if kind in ("gemma2", "ministral", "qwen3", "seed_oss") else {}
    return {"model_type": kind, **_SIZE, **head, **more}


CASES: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in sorted(native.FAMILIES)),
    *((kind, {"tie_word_embeddings": tied}) for kind in sorted(native.FAMILIES) for tied in (True, False)),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"num_key_value_heads": None, "head_dim": None}),
    ("qwen3", {"attention_bias": True, "head_dim": 32}),
    ("gemma2", {"attention_bias": True, "final_logit_softcapping": None, "attn_logit_softcapping": None}),
    ("gemma2", {"sliding_window": None, "query_pre_attn_scalar": 144}),
    ("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}),
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": 40, "head_dim": 48}),
    ("phi3", {"sliding_window": 33}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    ("qwen2", {"use_sliding_window": True, "layer_types": ["sliding_attention", "attention"]}),
    ("qwen2", {"use_sliding_window": False, "layer_types": ["sliding_attention", "full_attention"]}),
    ("qwen2", {"eos_token_id": [3, 5]}),
    ("ministral", {"sliding_window": None}),
    ("ministral", {"layer_types": ["full_attention", "sliding_attention"]}),
    ("seed_oss", {"attention_bias": False}),
    ("seed_oss", {"attention_out_bias": True, "mlp_bias": True}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "more"), CASES, ids=range(len(CASES)))
def test_the_layout_is_the_one_that_a_dry_run_of_transformers_finds(
    kind: str, more: dict[str, Any], tmp_path: Path
) -> None:
    raw = small(kind, **more)
    assert native.why_not(raw) == ""
    read = native.read(raw, "it")
    config = theirs(raw, tmp_path)
    model = architecture.build_meta(config)
    wanted = architecture.examine(model, config)
    ours = read.layout
    for name in (
        "layers", "kv_heads", "head_dim", "windows", "context", "vocab", "parameters", "linear_parameters",
        "embedding_parameters", "tied_parameters", "eos",
    ):  # fmt: skip
        assert getattr(ours, name) == getattr(wanted, name), name
    first = model.get_submodule(wanted.attention[0])
    assert read.attention_scale == pytest.approx(float(first.scaling), rel=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((kind, name) for kind in ("llama", "mistral", "qwen3", "gemma2") for name in _ROPES),
        *(("phi3", name) for name in _PHI3_ROPES),
    ],
)
def test_cosines_and_sines_are_those_of_transformers(kind: str, name: str, tmp_path: Path) -> None:
    raw = small(kind, **(_PHI3_ROPES if kind == "phi3" else _ROPES)[name])
    assert native.why_not(raw) == ""
    ours = native.read(raw, "it")
    config = theirs(raw, tmp_path)
    with torch.device("cpu"):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(config)
    limit = architecture.pin_rope(model, config)
    assert ours.context == min(limit or config.max_position_embeddings, config.max_position_embeddings)
    rotary = model.model.rotary_emb
    np.testing.assert_array_max_ulp(ours.rope.frequencies, rotary.inv_freq.numpy(), 1)
    cosine, sine = rotary(torch.zeros(1), torch.arange(POSITIONS)[None])
    half = cosine.shape[-1] // 2
    tables = ours.rope.tables(POSITIONS)
    for got, wanted in zip(tables, (cosine[0, :, :half], sine[0, :, :half]), strict=True):
        assert got.dtype == np.float32
        assert got.shape == wanted.shape
        # An ulp of a frequency is one of the angle, which has up to 2^9 of them.
        np.testing.assert_allclose(got, wanted.numpy(), atol=POSITIONS * ULPS, rtol=0)
    np.testing.assert_allclose(tables[0][:8], cosine[0, :8, :half].numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        (small("llama", hidden_act="relu"), "relu"),
        (small("llama", layer_types=["full_attention"] * 2), "layer_types"),
        (small("qwen2", layer_types=["full_attention", "linear_attention"]), "linear_attention"),
        (small("llama", rope_parameters={"rope_type": "proportional", "rope_theta": 1e4}), "proportional"),
        (small("llama", partial_rotary_factor=0.5), "partial_rotary_factor"),
        (small("gemma2", rope_parameters={"full_attention": {"rope_type": "default"}}), "layer to layer"),
        (small("gemma2", use_bidirectional_attention=True), "use_bidirectional_attention"),
    ],
)
def test_what_is_not_understood_is_named_and_left_to_torch(raw: dict[str, Any], words: str) -> None:
    assert words in native.why_not(raw)


@pytest.mark.parametrize(
    "more",
    [
        {"hidden_size": "wide"},
        {"hidden_size": None},
        {"num_attention_heads": 3},
        {"num_attention_heads": 0},
        {"num_hidden_layers": 0},
        {"intermediate_size": -1},
        {"vocab_size": 2.5},
        {"rms_norm_eps": float("nan")},
        {"rope_scaling": {"rope_type": "linear"}},
        {"rope_scaling": {"rope_type": "linear", "factor": "much"}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_theta": 0},
        {"head_dim": 7},
        {"eos_token_id": "end"},
        {"tie_word_embeddings": "yes"},
    ],
)
def test_what_makes_no_sense_is_eio_and_named(more: dict[str, Any]) -> None:
    with pytest.raises(SyscallError) as caught:
        native.read(small("llama", **more), "/m/config.json")
    assert caught.value.errno is Errno.EIO
    name = next(iter(more))
    assert {"head_dim": "a head of 7", "rope_scaling": "rope_parameters"}.get(name, name) in caught.value.reason

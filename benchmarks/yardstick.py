"""The yardstick models: shapes of public models with random weights, built once on disk, that speeds are compared on.

Only the shape matters for speed, so the weights come from a seed and nothing is downloaded. Kept under
$XDG_CACHE_HOME/llmasos/bench (else ~/.cache, else the temporary directory): about 1 GB for Qwen2.5-0.5B in bf16, which
is the usual one, 2.5 GB for Llama-3.2-1B.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

VOCAB = 151_936
PROMPT_TOKENS = 64
DECODED_TOKENS = 32


@dataclass(frozen=True)
class Shape:
    """A network but for its weights: transformers' name of its architecture and the fields of its configuration."""

    name: str
    architecture: str
    fields: Mapping[str, Any]

    @property
    def vocab(self) -> int:
        return int(self.fields["vocab_size"])


QWEN2 = Shape(
    "qwen2-0.5b",
    "qwen2",
    MappingProxyType(
        {
            "vocab_size": VOCAB,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "rope_theta": 1_000_000.0,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32_768,
        }
    ),
)
LLAMA3 = Shape(
    "llama3-1.2b",
    "llama",
    MappingProxyType(
        {
            "vocab_size": 128_256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500_000.0,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131_072,
        }
    ),
)


def ensure_yardstick(shape: Shape = QWEN2, seed: int = 0) -> Path:
    """The model's directory, building it if it is not there yet. Another seed: other weights."""
    place = cache() / f"yardstick-{shape.name}{f'-{seed}' if seed else ''}"
    if (place / "model.safetensors").is_file():
        return place
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(shape.architecture, **shape.fields)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    unfinished = Path(tempfile.mkdtemp(dir=place.parent))
    try:
        model.save_pretrained(unfinished)
        unfinished.rename(place)  # whoever looks meanwhile finds a whole model or none
    except OSError:
        if not (place / "model.safetensors").is_file():  # else somebody else was first
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return place


def prompts(count: int, length: int = PROMPT_TOKENS, vocab: int = VOCAB, seed: int = 7) -> list[list[int]]:
    """`count` different prompts of random tokens below `vocab`, the same every time for a seed."""
    import random

    chosen = random.Random(seed)
    return [[chosen.randrange(vocab) for _ in range(length)] for _ in range(count)]


def cache() -> Path:
    """The directory, there now, of what is built once for benchmarks."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    try:
        place = Path(base, "llmasos", "bench")
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        place = Path(tempfile.gettempdir(), f"llmasos-bench-{os.getuid()}")
        place.mkdir(mode=0o700, exist_ok=True)
    return place

"""The yardstick model: a Qwen2.5-0.5B shape with random weights, built once on disk, that speeds are compared on.

Only the shape matters for speed, so the weights come from a seed and nothing is downloaded. About 1 GB in bf16, under
$XDG_CACHE_HOME/llmasos/bench (else ~/.cache, else the temporary directory).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

VOCAB = 151_936
SHAPE = {
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
PROMPT_TOKENS = 64
DECODED_TOKENS = 32


def ensure_yardstick() -> Path:
    """The model's directory, building it if it is not there yet."""
    place = _cache() / "yardstick-qwen2-0.5b"
    if (place / "model.safetensors").is_file():
        return place
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("qwen2", **SHAPE)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    place.parent.mkdir(parents=True, exist_ok=True)
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


def prompts(count: int, length: int = PROMPT_TOKENS) -> list[list[int]]:
    """`count` different prompts of random tokens, the same every time."""
    import random

    chosen = random.Random(7)
    return [[chosen.randrange(VOCAB) for _ in range(length)] for _ in range(count)]


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    try:
        place = Path(base, "llmasos", "bench")
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        place = Path(tempfile.gettempdir(), f"llmasos-bench-{os.getuid()}")
        place.mkdir(mode=0o700, exist_ok=True)
    return place

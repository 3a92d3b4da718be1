"""A hub with one model of few bytes."""

from __future__ import annotations

import numpy as np
from safetensors.numpy import save

WEIGHTS = save({"a": np.arange(500_000, dtype=np.float32)})
FILES = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", "model.safetensors": WEIGHTS}

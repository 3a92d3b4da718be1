"""How far the logits of a GGUF file's model are from another engine's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmasos.drivers.cpu import open_device
from llmasos.drivers.engine.contexts import Context
from llmasos.drivers.protocol import Load, Run

CLOSE = 0.5  # where llama.cpp's first two logits are nearer, rounding may choose the other
TOLERANCE = 1e-4  # of logits, against transformers
EXACT = 1e-5  # mean KL in fp32: llama.cpp looks up GELU in a table of halves


def logits(file: Path, dtype: str, ids: list[int]) -> np.ndarray:
    """[tokens, vocab] of the CPU driver."""
    device: Any = open_device({"threads": "1", "installed": "no"})
    frames = -(-len(ids) // 16)
    device.fetch(Load(1, 1, str(file), dtype, frames), lambda fraction: None)()
    run, context = Run(0, 1, 0, ids, 0, list(range(frames))), Context(0)
    image = device._images[1]
    assert not image.check(run)
    assert not context.follow(run)
    rows = np.array(image.forward(image.prepare([run], [context]), list(range(len(ids)))))
    device.unload(1)
    return rows


def divergence(theirs: np.ndarray, ours: np.ndarray) -> float:
    """The mean of KL(theirs, ours)."""
    first, second = (torch.log_softmax(torch.from_numpy(rows).double(), -1) for rows in (theirs, ours))
    return float((first.exp() * (first - second)).sum(-1).mean())


def differing(theirs: np.ndarray, ours: np.ndarray) -> int:
    """At how many positions the greatest logit is another's, of those where theirs leads by more than CLOSE."""
    two = np.sort(theirs, axis=-1)[:, -2:]
    sure = two[:, 1] - two[:, 0] > CLOSE
    assert sure.sum() > len(theirs) // 10, "nearly nothing is compared"
    return int((sure & (theirs.argmax(-1) != ours.argmax(-1))).sum())

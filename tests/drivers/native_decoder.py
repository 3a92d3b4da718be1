"""The native decoder of this machine, and what it makes of a model's logits."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from llmasos.drivers.cpu.native import library
from llmasos.drivers.cpu.native.image import NativeKind
from llmasos.drivers.cpu.native.library import INSTRUCTION_SETS, Library
from llmasos.drivers.engine.contexts import Context
from llmasos.drivers.engine.image import Examined, Frames
from llmasos.drivers.protocol import BLOCK_TOKENS, Run
from llmasos.modelfiles import source
from llmasos.modelfiles.tensors import SafetensorsWeights

FAMILIES = ("gemma2", "llama", "llama3_rope", "mistral", "phi3", "qwen2", "qwen2_window", "qwen3")
FRAMES = 160


def native() -> Library:
    loaded = library.load()
    if isinstance(loaded, str):
        pytest.skip(f"no native decoder: {loaded}")
    return loaded


def instruction_sets() -> list[str]:
    return [isa for isa in INSTRUCTION_SETS if native().has(isa)]


def image(
    directory: Path, dtype: str, threads: int = 1, kind: Any = None, kv: str = "bf16", weights: Any = None
) -> Frames:
    kind = kind or NativeKind(native(), threads, kv=kv)
    config, layout = kind.examine(directory, source.read_config(directory), lambda: None)
    model = Examined(directory, config, layout, dtype, lambda: weights or SafetensorsWeights(directory))
    built: Frames = kind.build(model, FRAMES, lambda _: None)
    return built


def logits_of(
    built: Frames, prompts: Sequence[list[int]], chunk: Callable[[int], int], seed: int = 0
) -> list[list[torch.Tensor]]:
    """The logits after each token of each prompt, all computed side by side, `chunk(prompt)` tokens of each at a time, in
    frames in random order."""
    rng = random.Random(seed)
    free = list(range(built.slab.frames))
    rng.shuffle(free)
    contexts = [Context(0) for _ in prompts]
    blocks = [[free.pop() for _ in range(-(-len(tokens) // BLOCK_TOKENS))] for tokens in prompts]
    got: list[list[torch.Tensor]] = [[] for _ in prompts]
    with torch.inference_mode():
        while waiting := [i for i, tokens in enumerate(prompts) if len(got[i]) < len(tokens)]:
            runs = []
            for i in waiting:
                done = len(got[i])
                tokens = prompts[i][done : done + chunk(i)]
                runs.append(Run(i, 0, done, tokens, len(blocks[i]) if done else 0, [] if done else blocks[i]))
                assert not contexts[i].follow(runs[-1])
            batch = built.prepare(runs, [contexts[i] for i in waiting])
            rows: list[int] = []
            first = 0
            for run in runs:
                rows += range(first, first + len(run.tokens))
                first += len(run.tokens)
            logits = iter(torch.from_numpy(built.forward(batch, rows)))
            for i, run in zip(waiting, runs, strict=True):
                got[i] += [next(logits) for _ in run.tokens]
    return got

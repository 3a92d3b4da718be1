"""A trial run of a model whose architecture no test has compared: packed and paged, against transformers' own forward.

What architecture.py accepts by its form may still differ in what it computes. So before such a model is served, a few
tokens go through its unchanged code at once and through the engine in two chunks, and the logits must agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from drivers.engine.contexts import Context
from drivers.engine.kv import KVShape
from drivers.engine.layout import Layout, refuse
from drivers.engine.torch_image import Image
from drivers.engine.torch_kv import TorchSlab
from drivers.protocol import BLOCK_TOKENS, Run

_TOKENS, _FIRST = 40, 29  # all of them, and how many in the first chunk
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # of the logits' norm about their mean


def check(model: nn.Module, config: Any, layout: Layout, progress: Callable[[], None]) -> None:
    """Raises ENOEXEC if the engine computes something else than the model's own code. `model` is as it was loaded."""
    dtype = next(model.parameters()).dtype
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, layout.vocab, (_TOKENS,), generator=generator)
    with torch.inference_mode():
        last = torch.tensor([_TOKENS - 1])
        wanted = model(input_ids=tokens[None], use_cache=False, logits_to_keep=last).logits[0, -1].float()
        progress()
        blocks = -(-_TOKENS // BLOCK_TOKENS)
        shape = KVShape(layout.layers, layout.kv_heads, layout.head_dim, str(dtype).removeprefix("torch."))
        slab = TorchSlab(shape, blocks, torch.device("cpu"))
        image = Image(model, config, layout, "fp32" if dtype == torch.float32 else "bf16", slab, progress)
        context = Context(0)
        chunks = (tokens[:_FIRST].tolist(), tokens[_FIRST:].tolist())
        runs = [
            Run(0, 0, 0, chunks[0], 0, list(range(blocks))[::-1]),
            Run(0, 0, _FIRST, chunks[1], blocks, []),
        ]
        for run in runs:
            context.follow(run)
            batch = image.prepare([run], [context])
            got = image.logits(batch, batch.last_row)[0]
            progress()
        image.close()
    off = float((got - wanted).norm() / (wanted - wanted.mean()).norm())
    if not off <= _TOLERANCE[dtype]:  # NaN is refused too
        raise refuse(
            config.model_type, f"a trial run differs from transformers' own by {off:.3g} of the logits"
        )

"""A trial run of a model whose architecture no test has compared: packed and paged, against transformers' own forward.

A model whose form architecture.py accepts may still compute something else. So before the engine serves it, a few tokens
go through its unchanged code at once and through the engine in two chunks, and the logits must agree. In bf16 two orders
of summation can differ far on a good model (a router that chooses another expert is enough), so if they differ both are
computed again in fp32, and that decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from llmasos.drivers.engine.contexts import Context
from llmasos.drivers.engine.kv import KVShape
from llmasos.drivers.engine.layout import Layout, refuse
from llmasos.drivers.engine.torch_image import Image
from llmasos.drivers.engine.torch_kv import TorchSlab
from llmasos.drivers.protocol import BLOCK_TOKENS, Run

_TOKENS, _FIRST = 40, 29  # all of them, and how many in the first chunk
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # of the logits' norm about their mean


def check(model: nn.Module, config: Any, layout: Layout, progress: Callable[[], None]) -> None:
    """Raises ENOEXEC if the engine computes something else than the model's own code. Leaves `model` as it was loaded."""
    dtype = next(model.parameters()).dtype
    off = _difference(model, config, layout, dtype, progress)
    if dtype != torch.float32 and not off <= _TOLERANCE[dtype]:
        dtype = torch.float32
        with _in_fp32(model):
            off = _difference(model, config, layout, dtype, progress)
    if not off <= _TOLERANCE[dtype]:  # NaN is refused too
        raise refuse(config.model_type, f"a trial run differs from transformers' own by {off:.3g} of the logits")


def _difference(model: nn.Module, config: Any, layout: Layout, dtype: torch.dtype, progress: Callable[[], None]) -> float:
    """The difference of the last token's logits, as a share of their norm about their mean. Leaves the model as it
    was."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, layout.vocab, (_TOKENS,), generator=generator)
    with torch.inference_mode(), _restored(model):
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
    return float((got - wanted).norm() / (wanted - wanted.mean()).norm())


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Undo afterwards what an image changes of a model (architecture.py: attention, pinned rotations)."""
    modules = list(model.modules())
    configs = {id(one): one for module in modules if (one := getattr(module, "config", None)) is not None}
    ways = {key: one._attn_implementation for key, one in configs.items()}
    forwards = [module.__dict__.get("forward") for module in modules]
    try:
        yield
    finally:
        for key, one in configs.items():
            one._attn_implementation = ways[key]
        for module, forward in zip(modules, forwards, strict=True):
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.__dict__["forward"] = forward


@contextmanager
def _in_fp32(model: nn.Module) -> Iterator[None]:
    """Each module's own weights are fp32 while it computes, and only then: memory for one of them is enough. fp32 holds
    their bf16 values exactly."""
    kept: dict[nn.Module, list[tuple[nn.Parameter, torch.Tensor]]] = {}

    def before(module: nn.Module, _: Any) -> None:
        held = [(weight, weight.data) for weight in module.parameters(recurse=False)]
        kept[module] = held
        for weight, stored in held:
            weight.data = stored.float()

    def after(module: nn.Module, _: Any, out: Any) -> None:
        for weight, stored in kept.pop(module, []):
            weight.data = stored

    hooks = [
        hook
        for module in model.modules()
        if next(module.parameters(recurse=False), None) is not None
        for hook in (
            module.register_forward_pre_hook(before),
            module.register_forward_hook(after, always_call=True),
        )
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in list(kept):
            after(module, None, None)

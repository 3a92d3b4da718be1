"""A model in memory for torch: transformers' own module, in which only attention is ours (attention.py), and with int8
the linear layers (int8.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from llmasos.drivers.engine import architecture, int8, plan
from llmasos.drivers.engine.attention import PagedAttention
from llmasos.drivers.engine.contexts import Context
from llmasos.drivers.engine.defaults import DEFAULTS
from llmasos.drivers.engine.early import Stop
from llmasos.drivers.engine.image import Frames
from llmasos.drivers.engine.layout import Layout
from llmasos.drivers.engine.torch_kv import TorchSlab
from llmasos.drivers.protocol import BLOCK_TOKENS, Run

# Matrix products over fewer rows take other paths on a CPU (matrix times vector), with other sums; so a batch is padded
# to a multiple of it, and a row's bits do not depend on how many others there are. int8 needs none of it.
ROW_UNIT = 8
_names = itertools.count()


class Image(Frames):
    """One loaded model. `model` is consumed: its attention is rerouted, with int8 its linear layers are replaced."""

    def __init__(
        self,
        model: nn.Module,
        config: Any,
        layout: Layout,
        dtype: str,
        slab: TorchSlab,
        progress: Callable[[], None],
    ) -> None:
        super().__init__(layout, dtype, slab)
        self.pages = slab
        self.device = device = slab.data.device
        architecture.pin_rope(model, config)
        quantised = 0
        if dtype == "int8":
            quantised = int8.quantise_model(model, progress)
        self.model = model.to(device)
        self.weight_bytes = quantised + sum(p.numel() * p.itemsize for p in model.parameters())
        self.attention = PagedAttention({model.get_submodule(n): i for i, n in enumerate(layout.attention)})
        self._name = f"llmasos-{next(_names)}"
        architecture.route_attention(model, self.attention, self._name)
        self.attention.slab = slab
        self._row_unit = 1 if dtype == "int8" or device.type != "cpu" else ROW_UNIT

    def close(self) -> None:
        """And of what a registry outside would keep alive."""
        super().close()
        architecture.unroute_attention(self._name)
        self.attention.slab = self.attention.plan = None
        self.model = nn.Module()

    @torch.inference_mode()
    def prepare(self, runs: list[Run], contexts: list[Context], stop: Stop | None = None) -> plan.Plan:
        """The batch of runs whose contexts have been told (Context.follow); clears what they will leave unwritten."""
        torch.get_num_threads()  # OpenMP's number is each thread's own: in a thread's first call this sets it
        for run, context in zip(runs, contexts, strict=True):
            end = run.position + len(run.tokens)
            block, offset = divmod(end, BLOCK_TOKENS)
            entered = block * BLOCK_TOKENS >= run.position
            if offset and (entered or context.end != run.position):
                self.pages.clear(context.table[block], offset)
            context.end = end
        return plan.build(runs, contexts, self.pages, self.layout.windows, self._row_unit)

    def choose(self, batch: plan.Plan, rows: list[int], plain: Sequence[bool]) -> tuple[list[int], Sequence[np.ndarray]]:
        with torch.inference_mode():
            logits = self.logits(batch, rows)
            best = [-1] * len(rows)
            if any(plain):
                finite = torch.isfinite(logits.amax(dim=1))
                best = torch.where(finite, logits.argmax(dim=1), -1).tolist()
            scored = [i for i, only in enumerate(plain) if not only]
            if len(scored) < len(rows):
                logits = logits[scored]
            return best, list(logits.cpu().numpy())

    def logits(self, batch: plan.Plan, rows: list[int]) -> torch.Tensor:
        """Compute the batch; logits of `rows`, [rows, vocab] in fp32, where the model is."""
        self.attention.plan = batch
        padding = [0] * (-len(rows) % self._row_unit)
        with DEFAULTS, torch.inference_mode():
            out = self.model(
                input_ids=batch.tokens,
                position_ids=batch.positions,
                use_cache=False,
                logits_to_keep=torch.tensor(rows + padding, dtype=torch.long, device=self.device),
            )
            logits: torch.Tensor = out.logits[0, : len(rows)]
            return logits.float()

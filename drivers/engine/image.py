"""A model in memory with the KV frames that belong to it: what a program's text and data are to a Unix kernel.

The network is transformers' own module; only attention is ours (attention.py), and with int8 the linear layers
(int8.py). An image computes a batch of runs and returns logits; it knows nothing of sampling or of processes.
"""

from __future__ import annotations

import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from torch import nn

from drivers.engine import architecture, int8, plan
from drivers.engine.attention import PagedAttention
from drivers.engine.contexts import Context
from drivers.engine.defaults import DEFAULTS
from drivers.engine.early import Stop
from drivers.engine.guess import Guesser
from drivers.engine.kv import KVShape, KVSlab
from drivers.engine.layout import Layout
from drivers.engine.swap import Places
from drivers.protocol import BLOCK_TOKENS, Run
from syscalls.errno import Errno, SyscallError

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "int8": torch.bfloat16,
}  # of weights and KV; with int8, of the embedding and KV
# Matrix products over fewer rows take other paths on a CPU (matrix times vector), with other sums; so a batch is padded
# to a multiple of it, and a row's bits do not depend on how many others there are. int8 needs none of it.
ROW_UNIT = 8
MOST_UNQUANTISED = 0.1  # of the parameters, besides embeddings, that int8 may leave in fp32
_READ_SHARE = 0.9  # of building an image is reading its weights; the rest is what follows
_names = itertools.count()
_log = logging.getLogger(__name__)


class ImageKind(Protocol):
    """A way to run a model: what engine.py asks before it loads one."""

    def why_not(self, config: Any, dtype: str) -> str:
        """What keeps a model from being run so, or ""."""

    def kv_shape(self, layout: Layout, dtype: str) -> KVShape:
        """What a token's KV takes."""

    def way(self, layout: Layout, dtype: str) -> dict[str, str]:
        """What besides the model's own files decides about the bits of its KV, by name."""

    def weight_bytes(self, config: Any, layout: Layout, dtype: str) -> int:
        """What the weights will take. Raises ENOTSUP."""

    def stream_bytes(self, config: Any, layout: Layout, dtype: str) -> int:
        """The least memory for weights with which it can be streamed; 0: it cannot."""

    def build(
        self,
        directory: Path,
        read: Callable[[Callable[[float], None]], nn.Module],
        config: Any,
        layout: Layout,
        dtype: str,
        frames: int | KVSlab,
        progress: Callable[[float], None],
        room: int = 0,
    ) -> Frames:
        """The image of the model in a directory, which `read` reads (calling back with fractions), with so many frames of
        its own, or with those that it had. `room`, if not 0: bytes that its weights may take, the rest is streamed.
        `progress` is told fractions of the whole, also where there is none, as a sign of life. Raises what `read` does,
        and MemoryError; ENOMEM where it cannot be streamed."""


class Frames(ABC):
    """What images of every kind share: a layout, KV frames, and the rules for what may be run over them."""

    weight_bytes: int
    complete = True  # are the weights there (close)?
    exact = False  # do a row's logits have the same bits whatever rows are beside it?
    stops = False  # can a step be given up when something else is asked for?

    def __init__(self, layout: Layout, dtype: str, slab: KVSlab) -> None:
        self.layout = layout
        self.dtype = dtype
        self.slab = slab
        self.guesser = Guesser()
        self.below: list[Places] = []  # in lower tiers

    @property
    def resident_bytes(self) -> int:
        """Of the weights, what is in memory."""
        return self.weight_bytes

    def check(self, run: Run) -> str:
        """What of a run cannot be computed here, or ""."""
        end = run.position + len(run.tokens)
        if not self.complete:
            return f"context {run.ctx}: the weights of image {run.image} are not in memory"
        if not run.tokens:
            return f"context {run.ctx}: a run without tokens"
        if end > self.layout.context:
            return f"context {run.ctx}: {end} tokens, the model's window is {self.layout.context}"
        if max(run.tokens) >= self.layout.vocab or min(run.tokens) < 0:
            return f"context {run.ctx}: a token id is not in the vocabulary of {self.layout.vocab}"
        if run.blocks and not 0 <= min(run.blocks) <= max(run.blocks) < self.slab.frames:
            return f"context {run.ctx}: a frame is not among the image's {self.slab.frames}"
        if (run.keep + len(run.blocks)) * BLOCK_TOKENS < end:
            return f"context {run.ctx}: {run.keep + len(run.blocks)} blocks do not hold {end} tokens"
        return ""

    def room(self, run: Run) -> int:
        """How many of the tokens a run allows to be guessed there is room for."""
        end = run.position + len(run.tokens)
        return min(run.ahead, (run.keep + len(run.blocks)) * BLOCK_TOKENS - end, self.layout.context - end)

    def close(self) -> None:
        """Let go of the weights; frames and places stay."""
        self.complete = False

    @abstractmethod
    def prepare(self, runs: list[Run], contexts: list[Context], stop: Stop | None = None) -> Any:
        """The batch of checked runs whose contexts have been told (Context.follow). Its `last_row[i]` is the row of run
        i's last token. The contexts must not be told anything else until it has been computed. Where the image `stops`,
        computing the batch raises Stopped soon after `stop` is set."""

    @abstractmethod
    def forward(self, batch: Any, rows: list[int]) -> torch.Tensor:
        """Compute a batch; logits of `rows`, [rows, vocab] in fp32."""

    def greatest(self, batch: Any, rows: list[int]) -> list[int]:
        """Compute a batch; for each of `rows` the first token of the greatest logit, -1 if that is not finite."""
        logits = self.forward(batch, rows)
        finite = torch.isfinite(logits.amax(dim=1))
        chosen: list[int] = torch.where(finite, logits.argmax(dim=1), -1).tolist()
        return chosen


@dataclass(frozen=True)
class TorchKind:
    """transformers' own module on a torch device: any model, in fp32, bf16 and, unless `no_int8` says why not, int8."""

    device: torch.device
    no_int8: str = ""
    warning: str = ""  # about every model that is built so

    def why_not(self, config: Any, dtype: str) -> str:
        if dtype == "int8" and self.no_int8:
            return self.no_int8
        return "" if dtype in DTYPES else f"the torch engine offers {', '.join(DTYPES)}, not {dtype}"

    def kv_shape(self, layout: Layout, dtype: str) -> KVShape:
        return KVShape(layout.layers, layout.kv_heads, layout.head_dim, DTYPES[dtype])

    def way(self, layout: Layout, dtype: str) -> dict[str, str]:
        """Sums of torch's products may have another order with other libraries, instructions and numbers of threads."""
        if self.device.type == "cuda":
            where = {"processor": torch.cuda.get_device_name(self.device)}
        else:
            where = {
                "processor": torch.backends.cpu.get_cpu_capability(),
                "threads": str(torch.get_num_threads()),
            }
        return {
            "engine": f"torch {torch.__version__}",
            "transformers": transformers.__version__,
            "weights": dtype,
            "kv": self.kv_shape(layout, dtype).name,
            **where,
        }

    def weight_bytes(self, config: Any, layout: Layout, dtype: str) -> int:
        """Raises ENOTSUP where int8 would leave most of a model as it is."""
        if dtype != "int8":
            return layout.parameters * DTYPES[dtype].itemsize
        quantised = layout.linear_parameters
        rest = layout.parameters + layout.tied_parameters - quantised - layout.embedding_parameters
        if rest > MOST_UNQUANTISED * layout.parameters:
            raise SyscallError(
                Errno.ENOTSUP,
                f"dtype int8: {rest:,} of this model's {layout.parameters:,} parameters are not in linear layers "
                "(experts of a mixture are not); use bf16",
            )
        return quantised + 2 * layout.embedding_parameters + 4 * rest

    def stream_bytes(self, config: Any, layout: Layout, dtype: str) -> int:
        return 0

    def build(
        self,
        directory: Path,
        read: Callable[[Callable[[float], None]], nn.Module],
        config: Any,
        layout: Layout,
        dtype: str,
        frames: int | KVSlab,
        progress: Callable[[float], None],
        room: int = 0,
    ) -> Frames:
        if room:
            raise SyscallError(
                Errno.ENOMEM, f"{directory} in {dtype}: the torch engine does not stream weights"
            )
        if self.warning:
            _log.warning("%s in %s: %s", directory, dtype, self.warning)
        slab = (
            KVSlab(self.kv_shape(layout, dtype), frames, self.device) if isinstance(frames, int) else frames
        )
        model = read(lambda fraction: progress(fraction * _READ_SHARE))
        return Image(model, config, layout, dtype, slab, lambda: progress(_READ_SHARE))


class Image(Frames):
    """One loaded model. `model` is consumed: its attention is rerouted, with int8 its linear layers are replaced."""

    def __init__(
        self,
        model: nn.Module,
        config: Any,
        layout: Layout,
        dtype: str,
        slab: KVSlab,
        progress: Callable[[], None],
    ) -> None:
        super().__init__(layout, dtype, slab)
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
        self.attention.slab = self.slab
        self._row_unit = 1 if dtype == "int8" or device.type != "cpu" else ROW_UNIT

    def close(self) -> None:
        """And of what a registry outside would keep alive."""
        super().close()
        architecture.unroute_attention(self._name)
        self.attention.slab = self.attention.plan = None
        self.model = nn.Module()

    def prepare(self, runs: list[Run], contexts: list[Context], stop: Stop | None = None) -> plan.Plan:
        """The batch of runs whose contexts have been told (Context.follow); clears what they will leave unwritten."""
        for run, context in zip(runs, contexts, strict=True):
            end = run.position + len(run.tokens)
            block, offset = divmod(end, BLOCK_TOKENS)
            entered = block * BLOCK_TOKENS >= run.position
            if offset and (entered or context.end != run.position):
                self.slab.clear(context.table[block], offset)
            context.end = end
        return plan.build(runs, contexts, self.slab, self.layout.windows, self._row_unit)

    def forward(self, batch: plan.Plan, rows: list[int]) -> torch.Tensor:
        """Compute the batch; logits of `rows`, [rows, vocab] in fp32."""
        self.attention.plan = batch
        padding = [0] * (-len(rows) % self._row_unit)
        with DEFAULTS:
            out = self.model(
                input_ids=batch.tokens,
                position_ids=batch.positions,
                use_cache=False,
                logits_to_keep=torch.tensor(rows + padding, dtype=torch.long, device=self.device),
            )
        logits: torch.Tensor = out.logits[0, : len(rows)]
        return logits.float()

"""A model in memory with the KV frames that belong to it: what a program's text and data are to a Unix kernel.

All images share `Frames`, and all kinds fill in `ImageKind`: torch's (torch_kind.py) and the native decoder's
(cpu/native/image.py). An image computes a batch of runs and returns scores; it knows nothing of sampling or of processes.
Nothing here imports torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llmasos.drivers.engine.contexts import Context
from llmasos.drivers.engine.early import Stop
from llmasos.drivers.engine.guess import Guesser
from llmasos.drivers.engine.kv import KVShape, KVSlab
from llmasos.drivers.engine.layout import Layout
from llmasos.drivers.engine.swap import Places
from llmasos.drivers.protocol import BLOCK_TOKENS, Run
from llmasos.modelfiles.tensors import Weights

Raw = Mapping[str, Any]
"""A config.json."""


@dataclass(frozen=True, slots=True)
class Examined:
    """A model on disk as a kind has examined it: what an image is built from."""

    place: Path
    config: Any  # in the kind's own form
    layout: Layout
    dtype: str  # to run it in
    weights: Callable[[], Weights]  # opens its files
    strict: bool = False  # it has to be trusted: what is read of it later is looked at each time


class ImageKind(Protocol):
    """A way to run models."""

    @property
    def name(self) -> str: ...

    @property
    def keeps_integers(self) -> bool:
        """Does it take the integers of a quantised checkpoint as they are?"""

    def why_not(self, raw: Raw, dtype: str) -> str:
        """Why this kind cannot run a model, or "". Raises ENOEXEC for a model that no kind can run."""

    def examine(self, place: Path, raw: Raw, tick: Callable[[], None]) -> tuple[Any, Layout]:
        """The configuration of the model in `place` as this kind wants it, and its layout. `tick` is a sign of life.
        Raises ENOEXEC, EIO."""

    def kv_shape(self, layout: Layout, dtype: str) -> KVShape:
        """The shape of a token's KV."""

    def way(self, layout: Layout, dtype: str) -> dict[str, str]:
        """All that decides about the bits of a model's KV besides its own files, by name."""

    def weight_bytes(self, config: Any, layout: Layout, dtype: str, as_it_is: bool = False) -> int:
        """Bytes that the weights will take; `as_it_is`: with a quantised checkpoint's own integers. Raises ENOTSUP."""

    def stream_bytes(self, config: Any, layout: Layout, dtype: str) -> int:
        """The least memory for weights with which it can be streamed; 0: it cannot."""

    def build(self, model: Examined, frames: int | KVSlab, progress: Callable[[float], None], room: int = 0) -> Frames:
        """The image of a model with `frames` new frames, or with the frames that it had. `room`, if not 0: bytes that its
        weights may take; the rest is streamed. `progress` is told fractions of the whole, at times the same one again, as
        a sign of life. Raises EIO, and MemoryError; ENOMEM where it cannot be streamed."""


class Frames(ABC):
    """The part that all images share: a layout, KV frames, and the rules for runs over them."""

    weight_bytes: int
    complete = True  # are the weights there (close)?
    exact = False  # do a row's logits have the same bits whatever rows are beside it?
    stops = False  # can a step be given up when something else is asked for?
    changed = False  # is something in its files, while they are used, not what was loaded?

    def __init__(self, layout: Layout, dtype: str, slab: KVSlab) -> None:
        self.layout = layout
        self.dtype = dtype
        self.slab = slab
        self.guesser = Guesser()
        self.below: list[Places] = []  # in lower tiers

    @property
    def resident_bytes(self) -> int:
        """Bytes of the weights that are in memory."""
        return self.weight_bytes

    def check(self, run: Run) -> str:
        """Why a run cannot be computed here, or ""."""
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
        """How many of the tokens that may be guessed after a run have room."""
        end = run.position + len(run.tokens)
        return min(run.ahead, (run.keep + len(run.blocks)) * BLOCK_TOKENS - end, self.layout.context - end)

    def close(self) -> None:
        """Let go of the weights; frames and places stay."""
        self.complete = False

    @abstractmethod
    def prepare(self, runs: list[Run], contexts: list[Context], stop: Stop | None = None) -> Any:
        """The batch of checked runs whose contexts have been told of them (Context.follow). Its `last_row[i]` is the row
        of run i's last token. The contexts must not change until the batch has been computed. Where the image `stops`,
        computing the batch raises Stopped soon after `stop` is set."""

    @abstractmethod
    def choose(self, batch: Any, rows: list[int], plain: Sequence[bool]) -> tuple[list[int], Sequence[np.ndarray]]:
        """Compute a batch. For each of `rows` that is `plain` the first token of the greatest logit, -1 if that is not
        finite (for the others nothing of meaning); and the logits of the others, [vocab] in fp32 each."""

    def greatest(self, batch: Any, rows: list[int]) -> list[int]:
        """Compute a batch; for each of `rows` the first token of the greatest logit, -1 if that is not finite."""
        return self.choose(batch, rows, [True] * len(rows))[0]

    def forward(self, batch: Any, rows: list[int]) -> np.ndarray:
        """Compute a batch; logits of `rows`, [rows, vocab] in fp32."""
        return np.asarray(self.choose(batch, rows, [False] * len(rows))[1])

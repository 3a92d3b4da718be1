"""A model in memory for the native decoder, with its KV frames: what engine/image.py is for torch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from drivers.cpu.native import network, stream
from drivers.cpu.native.installed import Store
from drivers.cpu.native.library import Batch, Library
from drivers.cpu.native.packing import BITS
from drivers.engine.architecture import Layout
from drivers.engine.contexts import Context
from drivers.engine.early import Stop
from drivers.engine.image import Frames
from drivers.engine.kv import KVShape, KVSlab
from drivers.protocol import BLOCK_TOKENS, Run
from syscalls.errno import Errno, SyscallError

DTYPES = ("int8", "int4")  # that are asked of it
KV_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
SPARE_FRAMES = 64  # for steps that are begun early: as many of their runs may need a new frame
_READ_SHARE = 0.3  # of making a blueprint is reading the model


class Rows:
    """The rows of a step: each token of each run, in order. `last_row[i]` is the row of run i's last token. `table`
    points into the contexts, which must not be told anything until the step is done."""

    def __init__(self, runs: list[Run], contexts: list[Context], stop: Stop | None) -> None:
        self.stop = stop
        tokens: list[int] = []
        positions: list[int] = []
        tables: list[int] = []
        self.last_row: list[int] = []
        for run, context in zip(runs, contexts, strict=True):
            count = len(run.tokens)
            tokens += run.tokens
            positions += range(run.position, run.position + count)
            tables += [context.table.buffer_info()[0]] * count
            self.last_row.append(len(tokens) - 1)
        self.token = np.array(tokens, dtype=np.int64)
        self.position = np.array(positions, dtype=np.int64)
        self.table = np.array(tables, dtype=np.uint64)


class NativeImage(Frames):
    """One loaded model, for int8 and int4."""

    exact = True
    stops = True

    def __init__(
        self,
        library: Library,
        blueprint: network.Blueprint,
        layout: Layout,
        dtype: str,
        slab: KVSlab,
        threads: int,
    ) -> None:
        super().__init__(layout, dtype, slab)
        self._library = library
        self._network = network.Network(blueprint, max(1, slab.frames) * BLOCK_TOKENS)
        self.weight_bytes = self._network.weight_bytes
        self._resident_bytes = self._network.resident_bytes
        self._columns = self._network.model.head.columns
        self._decoder = library.open(self._network.model, threads)
        streamed = self._network.streamed
        self._ahead = stream.Ahead(streamed, layout.layers) if streamed else None

    @property
    def resident_bytes(self) -> int:
        return self._resident_bytes

    @property
    def layers_read(self) -> int:
        """Layers read ahead so far, where the image is streamed."""
        return self._ahead.reads if self._ahead else 0

    def close(self) -> None:
        super().close()
        if self._decoder:
            self._library.close(self._decoder)
            self._decoder = 0
            if self._ahead:
                self._ahead.close()
            del self._network

    def prepare(self, runs: list[Run], contexts: list[Context], stop: Stop | None = None) -> Rows:
        for run, context in zip(runs, contexts, strict=True):
            context.end = run.position + len(run.tokens)
        return Rows(runs, contexts, stop)

    def forward(self, batch: Rows, rows: list[int]) -> torch.Tensor:
        """Compute the batch; logits of `rows`, [rows, vocab] in fp32."""
        stride = self._columns
        logits = torch.empty(len(rows), stride, dtype=torch.float32)
        self._step(batch, rows, logits)
        return logits[:, : self.layout.vocab]

    def greatest(self, batch: Rows, rows: list[int]) -> list[int]:
        """Compute the batch; for each of `rows` the first token of the greatest logit, -1 if that is not finite."""
        return self._step(batch, rows, None)

    def _step(self, batch: Rows, rows: list[int], logits: torch.Tensor | None) -> list[int]:
        output = np.array(rows, dtype=np.int64)
        best = np.full(len(rows), -1, dtype=np.int64)
        slab, ahead = self.slab.data, self._ahead
        work = Batch(
            rows=len(batch.token),
            outputs=len(rows),
            token=batch.token.ctypes.data,
            position=batch.position.ctypes.data,
            table=batch.table.ctypes.data,
            slab=slab.data_ptr(),
            frame_size=slab.stride(0) * slab.itemsize,
            kv_bits=8 * slab.itemsize,
            output=output.ctypes.data,
            logits=None if logits is None else ctypes.c_void_p(logits.data_ptr()),
            logits_stride=0 if logits is None else logits.stride(0),
            best=best.ctypes.data,
            stop=batch.stop.address if batch.stop else None,
            layer=ahead.at_address if ahead else None,
            ready=ahead.ready_address if ahead else None,
        )
        if ahead is None:
            self._library.step(self._decoder, work)
        else:
            ahead.begin()
            try:
                self._library.step(self._decoder, work)
            finally:
                ahead.end()
        chosen: list[int] = best.tolist()
        return chosen


@dataclass(frozen=True)
class NativeKind:
    """The native decoder with a team of `threads`. Models are kept installed in `store`, if there is one. `kv` is what
    keys and values are kept in: int8 takes little more than half the memory of bf16."""

    library: Library
    threads: int
    store: Store | None = None
    kv: str = "bf16"

    def why_not(self, config: Any, dtype: str) -> str:
        if dtype not in DTYPES:
            return f"the native decoder offers {', '.join(DTYPES)}, not {dtype}"
        return network.why_not(config)

    def kv_shape(self, layout: Layout, dtype: str) -> KVShape:
        """Of a frame in the native order (native.h), which has as many bytes as one in the engine's with padded heads; in
        int8 each vector has a scale of four bytes."""
        scale = 4 if self.kv == "int8" else 0
        return KVShape(
            layout.layers, layout.kv_heads, network.padded_head_dim(layout) + scale, KV_DTYPES[self.kv]
        )

    def way(self, layout: Layout, dtype: str) -> dict[str, str]:
        """The compiled library as it is: another compiler, or a change of its source, may sum in another order."""
        return {
            "engine": f"native {self.library.isa}",
            "library": self.library.digest,
            "weights": dtype,
            "kv": self.kv_shape(layout, dtype).name,
        }

    def weight_bytes(self, config: Any, layout: Layout, dtype: str) -> int:
        tables = (
            network.embedding_bits(BITS[dtype]) // 8 * layout.vocab * int(config.hidden_size)
            + 4 * layout.context * layout.head_dim
        )
        return network.arena_bytes(config, layout, BITS[dtype]) + tables

    def stream_bytes(self, config: Any, layout: Layout, dtype: str) -> int:
        if self.store is None or layout.layers <= stream.WINDOW:
            return 0
        layer, head = network.page_bytes(config, layout, BITS[dtype])
        return head + stream.WINDOW * layer

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
        def make(told: Callable[[float], None]) -> network.Blueprint:
            model = read(lambda fraction: told(fraction * _READ_SHARE))
            rest = 1 - _READ_SHARE
            return network.describe(
                model, config, layout, BITS[dtype], lambda fraction: told(_READ_SHARE + fraction * rest)
            )

        slab = frames
        if isinstance(slab, int):
            slab = KVSlab(self.kv_shape(layout, dtype), slab, torch.device("cpu"), spare=SPARE_FRAMES)
        store = self.store
        blueprint = store.get(directory, BITS[dtype], make, progress, room) if store else make(progress)
        if room and blueprint.parts is None and blueprint.weights.used > room:
            raise SyscallError(
                Errno.ENOMEM,
                f"{directory} in {dtype} can only be streamed from its installed form, which could not be kept"
                + (
                    f" in {store.directory}" if store else ": the driver's option installed names a directory"
                ),
            )
        return NativeImage(self.library, blueprint, layout, dtype, slab, self.threads)

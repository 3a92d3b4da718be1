"""A model in memory for the native decoder, with its KV frames: the counterpart of engine/torch_image.py.

Packing a model in int8 or int4 takes long, so the packed form is kept installed (installed.py). In fp32 and bf16 packing
is a copy, as fast as reading, and an installed form would only take disk, so a model is packed at every load.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmasos.drivers.cpu.native import config as configs
from llmasos.drivers.cpu.native import network, stream
from llmasos.drivers.cpu.native.config import Config
from llmasos.drivers.cpu.native.installed import Store
from llmasos.drivers.cpu.native.library import Batch, Library
from llmasos.drivers.cpu.native.packing import FORMS, USUAL_OF_GROUP
from llmasos.drivers.engine.contexts import Context
from llmasos.drivers.engine.early import Stop
from llmasos.drivers.engine.image import Examined, Frames, Raw
from llmasos.drivers.engine.kv import ITEM_BYTES, KVShape, KVSlab
from llmasos.drivers.engine.layout import Layout
from llmasos.drivers.protocol import BLOCK_TOKENS, Run
from llmasos.syscalls.errno import Errno, SyscallError

KV_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}
INSTALLED = ("int8", "int4")  # dtypes that are kept installed

SPARE_FRAMES = 64  # for steps that are begun early: as many of their runs may need a new frame
_log = logging.getLogger(__name__)


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
    """One loaded model."""

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
        self._logits = np.empty((0, self._columns), dtype=np.float32)
        self._kv_bits = 8 * ITEM_BYTES[slab.shape.dtype]
        self._decoder = library.open(self._network.model, threads)
        streamed = self._network.streamed
        self._guard = blueprint.guard
        told = self._guard.brought_in if self._guard is not None else lambda layer: None
        self._ahead = stream.Ahead(streamed, layout.layers, told) if streamed else None

    @property
    def resident_bytes(self) -> int:
        return self._resident_bytes

    @property
    def changed(self) -> bool:  # type: ignore[override]  # read only here
        return self._guard is not None and bool(self._guard.trouble)

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
            if self._guard:
                self._guard.close()
            del self._network

    def prepare(self, runs: list[Run], contexts: list[Context], stop: Stop | None = None) -> Rows:
        for run, context in zip(runs, contexts, strict=True):
            context.end = run.position + len(run.tokens)
        return Rows(runs, contexts, stop)

    def choose(self, batch: Rows, rows: list[int], plain: Sequence[bool]) -> tuple[list[int], Sequence[np.ndarray]]:
        """The logits hold until the next step."""
        if all(plain):
            return self._step(batch, rows, None), []
        if len(self._logits) < len(rows):
            self._logits = np.empty((len(rows), self._columns), dtype=np.float32)
        self._step(batch, rows, self._logits)  # with logits it does not find the greatest
        best, scored = [-1] * len(rows), []
        for i, only in enumerate(plain):
            row = self._logits[i, : self.layout.vocab]
            if not only:
                scored.append(row)
            elif np.isfinite(row[at := int(row.argmax())]):  # a NaN counts as the greatest
                best[i] = at
        return best, scored

    def _step(self, batch: Rows, rows: list[int], logits: np.ndarray | None) -> list[int]:
        """The first of the greatest logits of each row, where `logits` is None; else nothing of meaning."""
        output = np.array(rows, dtype=np.int64)
        best = np.full(len(rows), -1, dtype=np.int64)
        slab, ahead, guard = self.slab.raw, self._ahead, self._guard
        if guard is not None:
            guard.look()
        work = Batch(
            rows=len(batch.token),
            outputs=len(rows),
            token=batch.token.ctypes.data,
            position=batch.position.ctypes.data,
            table=batch.table.ctypes.data,
            slab=slab.ctypes.data,
            frame_size=slab.strides[0],
            kv_bits=self._kv_bits,
            output=output.ctypes.data,
            logits=None if logits is None else ctypes.c_void_p(logits.ctypes.data),
            logits_stride=0 if logits is None else self._columns,
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
        if guard is not None:  # what it computed with may have changed meanwhile
            guard.look()
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
    name = "native"
    keeps_integers = True

    def why_not(self, raw: Raw, dtype: str) -> str:
        if dtype not in FORMS:
            return f"the native decoder offers {', '.join(FORMS)}, not {dtype}"
        return configs.why_not(raw)

    def examine(self, place: Path, raw: Raw, tick: Callable[[], None]) -> tuple[Config, Layout]:
        config = configs.read(raw, str(place / "config.json"))
        return config, config.layout

    def kv_shape(self, layout: Layout, dtype: str) -> KVShape:
        """Of a frame in the native order (native.h), which has as many bytes as one in the engine's with padded heads; in
        int8 each vector has a scale of four bytes. fp32 is fp32 throughout."""
        kv = "fp32" if dtype == "fp32" else self.kv
        scale = 4 if kv == "int8" else 0
        dim = network.padded_head_dim(layout.head_dim) + scale
        return KVShape(layout.layers, layout.kv_heads, dim, KV_DTYPES[kv])

    def way(self, layout: Layout, dtype: str) -> dict[str, str]:
        """The compiled library as it is: another compiler, or a change of its source, may sum in another order."""
        return {
            "engine": f"native {self.library.isa}",
            "library": self.library.digest,
            "weights": dtype,
            "kv": self.kv_shape(layout, dtype).name,
        }

    def weight_bytes(self, config: Config, layout: Layout, dtype: str, as_it_is: bool = False) -> int:
        packed = network.arena_bytes(config, dtype, USUAL_OF_GROUP if as_it_is else 0)
        return packed + network.tables_bytes(config, dtype, layout.context)

    def stream_bytes(self, config: Config, layout: Layout, dtype: str) -> int:
        if self.store is None or dtype not in INSTALLED or layout.layers <= stream.WINDOW:
            return 0
        layer, head = network.page_bytes(config, dtype)
        return head + stream.WINDOW * layer

    def build(self, model: Examined, frames: int | KVSlab, progress: Callable[[float], None], room: int = 0) -> Frames:
        place, dtype, layout = model.place, model.dtype, model.layout
        slab = frames
        if isinstance(slab, int):
            slab = KVSlab(self.kv_shape(layout, dtype), slab, spare=SPARE_FRAMES)
        if dtype == "fp32" and self.kv == "int8":
            _log.warning("%s in fp32: kv=int8 is not for fp32, whose keys and values are fp32", place)
        store = self.store if dtype in INSTALLED else None
        # An installed form must serve any number of frames; one made for this image alone need not.
        positions = layout.context if store else min(layout.context, max(1, slab.frames) * BLOCK_TOKENS)

        def make(told: Callable[[float], None]) -> network.Blueprint:
            return network.describe(model.weights(), model.config, dtype, positions, told, str(place))

        blueprint = store.get(place, dtype, make, progress, room, strict=model.strict) if store else make(progress)
        if room and blueprint.parts is None and blueprint.weights.used > room:
            raise SyscallError(Errno.ENOMEM, f"{place} in {dtype} {self._unstreamed(dtype)}")
        return NativeImage(self.library, blueprint, layout, dtype, slab, self.threads)

    def _unstreamed(self, dtype: str) -> str:
        if dtype not in INSTALLED:
            return f"cannot be streamed; {' and '.join(INSTALLED)} can"
        where = f" in {self.store.directory}" if self.store else ": the driver's option installed names a directory"
        return f"can only be streamed from its installed form, which could not be kept{where}"

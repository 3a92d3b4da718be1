"""Running a model with torch: any that transformers knows and whose attention is ours to replace (architecture.py).

torch and transformers take seconds to import and gigabytes to install. So they are imported when the first model comes
that only they can run; where they are missing, that model is refused and the reason names what to install.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmasos.drivers.engine.image import Examined, Frames, Raw
from llmasos.drivers.engine.kv import ITEM_BYTES, KVShape, KVSlab
from llmasos.drivers.engine.layout import TESTED, Layout, refuse, refused_unseen
from llmasos.syscalls.errno import Errno, SyscallError

NEEDED = ("torch", "transformers")
INSTALL = "pip install 'torch>=2.9,<2.14' 'transformers>=5,<6'"
# Of weights and KV; with int8, of the embedding and KV.
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "int8": "bfloat16"}
MOST_UNQUANTISED = 0.1  # of the parameters, besides embeddings, that int8 may leave in fp32
_READ_SHARE = 0.9  # of building an image is reading its weights; the rest is what follows
_TICK_SECONDS = 1.0
_MOST_IMPORT_SECONDS = 300.0
_log = logging.getLogger(__name__)


def missing() -> str:
    """The packages that torch lacks to run a model, and how to install them; or ""."""
    lacking = [name for name in NEEDED if not _is_there(name)]
    if not lacking:
        return ""
    verb = "is" if len(lacking) == 1 else "are"
    return f"{' and '.join(lacking)} {verb} not installed: {INSTALL}"


def version() -> str:
    """Of torch, for people, without importing it; "" where there is none."""
    if not _is_there("torch"):
        return ""
    found = importlib.util.find_spec("torch")
    with suppress(OSError):
        if found is not None and found.origin is not None:
            text = Path(found.origin).with_name("version.py").read_text()
            if said := re.search(r"__version__ = ['\"]([^'\"]+)", text):
                return said[1]
    return "of unknown version"


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # an import hook keeps it out
        return False


@dataclass(frozen=True)
class TorchKind:
    """transformers' own module on a torch device: any model, in fp32, bf16 and, unless `no_int8` says why not, int8."""

    device: str = "cpu"
    no_int8: str = ""
    warning: str = ""  # about every model that is built so
    threads: int = 0  # 0: as torch would have it
    name = "torch"
    keeps_integers = False

    def why_not(self, raw: Raw, dtype: str) -> str:
        lacking = missing()
        if lacking and (why := refused_unseen(raw)):  # torch would not run it either
            raise refuse(raw["model_type"], why)
        if dtype == "int8" and self.no_int8:
            return self.no_int8
        if dtype not in DTYPES:
            return f"the torch engine offers {', '.join(DTYPES)}, not {dtype}"
        if lacking:
            return f"it takes the torch engine, but {lacking}"
        return ""

    def examine(self, place: Path, raw: Raw, tick: Callable[[], None]) -> tuple[Any, Layout]:
        self._import(tick)
        from llmasos.drivers.engine import architecture

        config = architecture.open_config(dict(raw), place)
        tick()
        return config, architecture.examine(architecture.build_meta(config), config)

    def _import(self, tick: Callable[[], None]) -> None:
        with alive(tick):
            from llmasos.drivers.engine import torch_image  # noqa: F401 - loaded here, with signs of life
            from llmasos.drivers.engine.loading import quiet_transformers

            quiet_transformers()
            import torch
            import transformers  # noqa: F401 - likewise
        if self.threads:
            torch.set_num_threads(self.threads)

    def kv_shape(self, layout: Layout, dtype: str) -> KVShape:
        return KVShape(layout.layers, layout.kv_heads, layout.head_dim, DTYPES[dtype])

    def way(self, layout: Layout, dtype: str) -> dict[str, str]:
        """Sums of torch's products may have another order with other libraries, instructions and numbers of threads."""
        import torch
        import transformers

        if self.device != "cpu":
            where = {"processor": torch.cuda.get_device_name(torch.device(self.device))}
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

    def weight_bytes(self, config: Any, layout: Layout, dtype: str, as_it_is: bool = False) -> int:
        """Raises ENOTSUP where int8 would leave most of a model as it is."""
        if dtype != "int8":
            return layout.parameters * ITEM_BYTES[DTYPES[dtype]]
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

    def build(self, model: Examined, frames: int | KVSlab, progress: Callable[[float], None], room: int = 0) -> Frames:
        import torch

        from llmasos.drivers.engine import loading, verify
        from llmasos.drivers.engine.torch_image import Image
        from llmasos.drivers.engine.torch_kv import TorchSlab

        place, dtype, layout = model.place, model.dtype, model.layout
        if room:
            raise SyscallError(Errno.ENOMEM, f"{place} in {dtype}: the torch engine does not stream weights")
        if self.warning:
            _log.warning("%s in %s: %s", place, dtype, self.warning)
        device = torch.device(self.device)
        read_as = torch.float32 if dtype == "fp32" else torch.bfloat16

        def read(fraction: float) -> None:
            progress(fraction * _READ_SHARE)

        def alive_after_reading() -> None:
            progress(_READ_SHARE)

        try:
            if isinstance(frames, int):
                slab = TorchSlab(self.kv_shape(layout, dtype), frames, device)
            else:
                slab = TorchSlab.over(frames)
            module = loading.load_model(place, model.weights(), model.config, read_as, read)
            if model.config.model_type not in TESTED:
                verify.check(module, model.config, layout, alive_after_reading)
            return Image(module, model.config, layout, dtype, slab, alive_after_reading)
        except RuntimeError as error:  # torch's own of memory is one
            if not isinstance(error, torch.OutOfMemoryError) and "memory" not in str(error):
                raise
            raise MemoryError(str(error)) from None


@contextmanager
def alive(tick: Callable[[], None]) -> Iterator[None]:
    """Call `tick` now and then during a long call that cannot; but not for ever."""
    over = threading.Event()

    def run() -> None:
        for _ in range(int(_MOST_IMPORT_SECONDS / _TICK_SECONDS)):
            if over.wait(_TICK_SECONDS):
                return
            tick()

    threading.Thread(target=run, name="alive", daemon=True).start()
    try:
        yield
    finally:
        over.set()

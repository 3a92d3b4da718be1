"""The way a model is run: the kind of image, the dtype, and the memory it takes.

The first of a device's kinds that can run a model in the dtype that is asked for runs it. Where no dtype is asked for, a
quantised checkpoint is run in that of its own integers, if a kind takes them as they are; any other model in the device's
default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmasos.drivers.engine import files
from llmasos.drivers.engine.dtypes import Dtypes
from llmasos.drivers.engine.image import Examined, ImageKind
from llmasos.drivers.engine.kv import KVShape
from llmasos.drivers.engine.layout import Layout
from llmasos.syscalls.errno import Errno, SyscallError

_LAYOUTS = 16  # remembered, so that a model that comes back into memory is not examined again


@dataclass(frozen=True, slots=True)
class Way:
    """A model and the way it is run. `as_it_is`: with a quantised checkpoint's own integers."""

    kind: ImageKind
    raw: dict[str, Any]  # its config.json
    model: Examined
    as_it_is: bool

    def trusting(self) -> Way:
        """The same for models that have to be trusted."""
        return replace(self, model=replace(self.model, strict=True))

    @property
    def layout(self) -> Layout:
        return self.model.layout

    @property
    def dtype(self) -> str:
        return self.model.dtype

    @property
    def kv_shape(self) -> KVShape:
        return self.kind.kv_shape(self.layout, self.dtype)

    @property
    def weight_bytes(self) -> int:
        return self.kind.weight_bytes(self.model.config, self.layout, self.dtype, self.as_it_is)

    @property
    def stream_bytes(self) -> int:
        """The least memory for weights with which it can be streamed; 0: it cannot."""
        return self.kind.stream_bytes(self.model.config, self.layout, self.dtype)

    @property
    def stored(self) -> str:
        """How its files hold quantised weights, and how they are run; "": they are not quantised."""
        return files.stored(self.model.place, self.raw, self.dtype, self.kind.keeps_integers)

    @property
    def fingerprint(self) -> dict[str, str]:
        """All that decides about the bits of its KV besides its files, by name."""
        return self.kind.way(self.layout, self.dtype)


class Models:
    """Finds the way for a model. `tick` is a sign of life while one is examined."""

    def __init__(self, kinds: Sequence[ImageKind], dtypes: Dtypes, tick: Callable[[], None]) -> None:
        self._kinds = kinds
        self._dtypes = dtypes
        self._tick = tick
        self._examined: dict[str, tuple[Any, Layout]] = {}  # by kind, place and config.json

    def find(self, place: Path, dtype: str) -> Way:
        """The way of the model in `place`; `dtype` may be "". Raises ENOTSUP, ENOEXEC (naming the architecture), EIO."""
        raw = files.read_config(place)
        form = files.native_form(place, raw)
        dtype = self._dtypes.find(dtype or self._own_form(raw, form))
        kind = self._kind(raw, dtype)
        config, layout = self._examine(kind, place, raw)
        model = Examined(place, config, layout, dtype, lambda: files.open_weights(place, raw, dtype))
        return Way(kind, raw, model, kind.keeps_integers and dtype == form)

    def _own_form(self, raw: dict[str, Any], form: str) -> str:
        """The dtype of a quantised checkpoint's integers, where a kind takes them and nobody chose another; or ""."""
        if self._dtypes.chosen or form not in self._dtypes.offered:
            return ""
        return form if any(kind.keeps_integers and not kind.why_not(raw, form) for kind in self._kinds) else ""

    def _kind(self, raw: dict[str, Any], dtype: str) -> ImageKind:
        reasons = []
        for kind in self._kinds:
            if not (reason := kind.why_not(raw, dtype)):
                return kind
            reasons.append(reason)
        raise SyscallError(Errno.ENOTSUP, f"{raw['model_type']} in {dtype}: {'; '.join(reasons)}")

    def _examine(self, kind: ImageKind, place: Path, raw: dict[str, Any]) -> tuple[Any, Layout]:
        key = f"{kind.name}:{place}:{raw}"
        if key not in self._examined:
            self._tick()
            found = kind.examine(place, raw, self._tick)
            while len(self._examined) >= _LAYOUTS:
                del self._examined[next(iter(self._examined))]
            self._examined[key] = found
        return self._examined[key]

"""A quantised weight as a checkpoint stores it, in one of two shapes: integers with scales and zeros, or small floats
with scales. Every format in this package is a reader of names that ends in one of them.

Shapes and item types are checked when a checkpoint is opened, from the headers alone; numbers are read when a weight is
asked for. The result is that of the format's own library, to the bit: the same steps rounded in the same
type.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llmasos.drivers.engine.quantised import floats
from llmasos.drivers.engine.quantised.forms import GROUP
from llmasos.modelfiles import files
from llmasos.modelfiles.files import quoted
from llmasos.modelfiles.tensors import ITEMS, ByRows, Packed, SafetensorsWeights, Tensor
from llmasos.syscalls.errno import SyscallError

_PIECE = 1 << 22  # items dequantised at a time
_LARGEST = 1 << 40  # items of one weight


class Stored(Protocol):
    """One weight that is stored quantised."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight itself."""

    def read(self) -> Tensor:
        """Its values, dequantised."""

    def packed(self) -> Packed | None:
        """Its integers, where native forms hold them without loss."""


class Parts:
    """The tensors of a checkpoint, checked as they are taken; a tensor that was taken is part of a weight and has no name
    of its own outside."""

    def __init__(self, weights: SafetensorsWeights) -> None:
        self.weights = weights
        self.names = frozenset(weights.names())
        self.taken: set[str] = set()

    def ending(self, suffix: str) -> Iterator[str]:
        """The names that end with `suffix`, without it, in order."""
        for name in sorted(self.names):
            if name.endswith(suffix):
                yield name[: -len(suffix)]

    def hide(self, name: str) -> None:
        """A tensor that says nothing about weights (scales of activations, of keys and values), if it is there."""
        if name in self.names:
            self.taken.add(name)

    def kind(self, name: str) -> str:
        return self.weights.kind(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.weights.shape(name)

    def take(self, name: str, kinds: Collection[str], *shapes: tuple[int, ...]) -> Callable[[], Tensor]:
        """The tensor, to be read later; it has one of these kinds and one of these shapes (none given: any)."""
        if name not in self.names:
            raise broken(name, "it is missing, and other tensors of its layer want it")
        kind, found = self.weights.kind(name), self.weights.shape(name)
        if kind not in kinds:
            raise broken(name, f"its items are {quoted(kind)}, {' or '.join(kinds)} was wanted")
        if shapes and found not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise broken(name, f"its shape is {quoted(list(found))}, {wanted} was wanted")
        self.taken.add(name)
        return lambda: self.weights.get(name)

    def matrix(self, name: str, kinds: Collection[str]) -> tuple[Callable[[], Tensor], int, int]:
        """The tensor, of any two sizes that are not 0, and these."""
        read = self.take(name, kinds)
        shape = self.shape(name)
        if len(shape) != 2 or not all(size > 0 for size in shape) or shape[0] * shape[1] > _LARGEST:
            raise broken(name, f"its shape is {quoted(list(shape))}, a matrix was wanted")
        return read, shape[0], shape[1]


def broken(name: str, what: str) -> SyscallError:
    return files.broken(f"broken weights: tensor {quoted(name)}: {what}; copy or download the model again, whole")


@dataclass(frozen=True, slots=True)
class Affine:
    """(value - zero) * scale, each `group` inputs of a column sharing scale and zero; [columns, inputs].

    The callables give: `values` any integers [columns, inputs]; `scale` a tensor of F32, F16 or BF16 that broadcasts to
    [columns, ceil(inputs / group)]; `zero` integers that do (None: 0); `order` which group each input has (int
    [inputs], None: they lie side by side). `offset` added to `values` makes them 0 .. 2**bits - 1. `kind` is that of
    the result, and of every step to it.
    """

    name: str
    bits: int
    columns: int
    inputs: int
    group: int
    kind: str
    offset: int
    values: Callable[[], np.ndarray]
    scale: Callable[[], np.ndarray]
    zero: Callable[[], np.ndarray] | None = None
    order: Callable[[], np.ndarray] | None = None
    transposed: bool = False  # the weight is [inputs, columns]: GPT-2's Conv1D

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.inputs, self.columns) if self.transposed else (self.columns, self.inputs)

    def read(self) -> Tensor:
        values, scale, zero = self.values(), self._spread(self.scale()), None
        if self.zero is not None:
            zero = self._spread(self.zero())
        order = self._order()
        if order is None:
            order = np.arange(self.inputs) // self.group
        result = np.empty((self.columns, self.inputs), ITEMS[self.kind])
        step = max(1, _PIECE // self.inputs)
        for first in range(0, self.columns, step):
            rows = slice(first, first + step)
            numbers = values[rows].astype(np.float32)
            if zero is not None:
                numbers = floats.rounded(numbers - zero[rows].astype(np.float32)[:, order], self.kind)
            with np.errstate(over="ignore", invalid="ignore"):
                numbers = numbers * scale[rows][:, order]
            result[rows] = floats.stored_items(numbers, self.kind)
        return Tensor(self.kind, np.ascontiguousarray(result.T) if self.transposed else result)

    def packed(self) -> Packed | None:
        if self.transposed or self.bits not in (4, 8):
            return None
        if self.group != self.inputs and (self.group % GROUP or self.inputs % self.group):
            return None
        if self._order() is not None:
            return None
        scale = self._spread(self.scale())
        whole = self.group == self.inputs and self.bits == 8
        if not (np.isfinite(scale).all() if whole else floats.fits_half(scale)):
            return None
        lift = self.offset - (128 if self.bits == 8 else 0)  # from stored values to those of Packed
        values = (self.values().astype(np.int16) + lift).astype(np.int8 if self.bits == 8 else np.uint8)
        zero = np.zeros((1, 1), np.int32) if self.zero is None else self.zero().astype(np.int32)
        zero = self._spread(zero + lift)
        if (zero == (0 if self.bits == 8 else 8)).all():
            return Packed(self.bits, self.group, values, np.ascontiguousarray(scale))
        if zero.min() < -128 or zero.max() > 127:
            return None
        return Packed(self.bits, self.group, values, np.ascontiguousarray(scale), zero.astype(np.int8))

    def _spread(self, numbers: np.ndarray) -> np.ndarray:
        return np.broadcast_to(numbers, (self.columns, -(-self.inputs // self.group)))

    def _order(self) -> np.ndarray | None:
        """Which group each input belongs to, None where they lie side by side. Raises EIO for groups that are not
        there."""
        if self.order is None:
            return None
        order = self.order()
        groups = -(-self.inputs // self.group)
        if order.min() < 0 or order.max() >= groups:
            raise broken(self.name, f"an input is in group {order.max()} of {groups}")
        return None if (order == np.arange(self.inputs) // self.group).all() else order


@dataclass(frozen=True, slots=True)
class Scaled:
    """Small floats times scales; [rows, columns] after any number of leading sizes, blocks of `block` sharing a scale.

    `numbers` gives fp32 in `shape`; `scale` fp32 [..., ceil(rows / block), ceil(columns / block)], or one number. The
    product is taken in fp32 and rounded once, to `kind`.
    """

    shape: tuple[int, ...]
    block: tuple[int, int]
    kind: str
    numbers: Callable[[], np.ndarray]
    scale: Callable[[], np.ndarray]
    swapped: bool = False  # the weight's last two sizes are the other way round

    def read(self) -> Tensor:
        scale = self.scale()
        rows, columns = self.shape[-2:] if not self.swapped else self.shape[:-3:-1]
        if scale.size > 1:
            scale = np.repeat(np.repeat(scale, self.block[0], axis=-2), self.block[1], axis=-1)
            scale = scale[..., :rows, :columns]
        with np.errstate(over="ignore", invalid="ignore"):
            result = floats.stored_items(self.numbers() * scale, self.kind)
        return Tensor(self.kind, np.ascontiguousarray(np.swapaxes(result, -1, -2)) if self.swapped else result)

    def packed(self) -> Packed | None:
        return None


class QuantisedWeights:
    """A checkpoint's weights under the names they have unquantised. `form` says in a few words how they are stored."""

    def __init__(self, parts: Parts, stored: Mapping[str, Stored], form: str) -> None:
        """Raises EIO where a weight is there twice, quantised and plain."""
        self._plain = parts.weights
        self._stored = stored
        self._names = (parts.names - parts.taken) | stored.keys()
        self.form = form
        twice = next((name for name in stored if name in parts.names and name not in parts.taken), None)
        if twice is not None:
            raise broken(twice, "the weight is there twice, quantised and plain")

    def names(self) -> Collection[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored[name].shape if name in self._stored else self._plain.shape(self._known(name))

    def get(self, name: str) -> Tensor:
        return self._stored[name].read() if name in self._stored else self._plain.get(self._known(name))

    def by_rows(self, name: str) -> ByRows:
        return self._stored[name].read() if name in self._stored else self._plain.by_rows(self._known(name))

    def packed(self, name: str) -> Packed | None:
        return self._stored[name].packed() if name in self._stored else None

    def _known(self, name: str) -> str:
        if name not in self._names:
            raise files.broken(f"the weights have no tensor {quoted(name)}; download the model again, whole")
        return name

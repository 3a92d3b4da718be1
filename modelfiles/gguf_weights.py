"""The weights of a GGUF file under the names of transformers' checkpoints, as they were before their conversion.

Quantised rows are permuted as they lie, so the integers stay the file's own: Q8_0 and Q4_0 are passed on as such,
everything else is dequantised when it is read.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from llmasos.modelfiles import gguf_items
from llmasos.modelfiles.files import broken
from llmasos.modelfiles.gguf import Entry, Header
from llmasos.modelfiles.gguf_families import (
    JOINED,
    PAIRED,
    REGROUPED,
    ROPE_FREQS,
    ROPE_LONG,
    ROPE_SHORT,
    ROW,
    SHIFTED,
    STACKED,
    TURNED,
    Family,
)
from llmasos.modelfiles.gguf_fields import Fields
from llmasos.modelfiles.spans import Spans
from llmasos.modelfiles.tensors import ByRows, Packed, Pieces, Tensor

MOST_WEIGHTS = 200_000  # an expert's matrix is one; the largest published mixtures have some 140,000
_LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.(\w+)\.(weight|bias)", re.ASCII)  # one spelling for each layer
_TOP = re.compile(r"(\w+)\.(weight|bias)", re.ASCII)
_ALONE = ("act_fn.beta", "act_fn.eps")  # metadata that are weights without a dimension; others have one item
_SPLIT = ("attn_q", "attn_k", "attn_v")  # the parts of a fused attn_qkv, for a family without one


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How to make a weight from a stored tensor: which tensor, which of its rows, and the change to its values."""

    entry: Entry
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None  # first, behind the last
    expert: int | None = None
    change: str = ""
    scale: Entry | None = None
    behind: Entry | None = None  # of joined tensors, the second


class GGUFWeights:
    """A `llmasos.modelfiles.tensors.Weights` over the files of a GGUF model; reads only what is asked for."""

    def __init__(self, header: Header) -> None:
        """Raises ENOEXEC: an unknown architecture, or a tensor that its family does not have. EIO, ENOTSUP."""
        self.header = header
        self._fields = Fields(header)
        self._spans = Spans()
        self._recipes: dict[str, _Recipe] = {}
        for name, entry in header.tensors.items():
            if name not in (ROPE_FREQS, ROPE_SHORT, ROPE_LONG) and not name.endswith((".scale", ".input_scale")):
                self._add(name, entry)
        self._scalars = self._found_scalars()

    def names(self) -> Collection[str]:
        return [*self._recipes, *self._scalars]

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self._scalars:
            return self._scalars[name].shape
        return self._recipe(name).shape

    def get(self, name: str) -> Tensor:
        if name in self._scalars:
            return self._scalars[name]
        recipe = self._recipe(name)
        if recipe.behind is not None:
            return self._joined(recipe, recipe.behind)
        return self._values(recipe, self._rows(recipe))

    def by_rows(self, name: str) -> ByRows:
        if name in self._scalars:
            return self._scalars[name]
        recipe = self._recipe(name)
        if len(recipe.shape) != 2 or recipe.change in (PAIRED, REGROUPED, TURNED):
            return self.get(name)

        def read(first: int, end: int) -> Tensor:
            part = replace(recipe, shape=(end - first, recipe.shape[1]))
            return self._values(part, self._stored(recipe, first, end))

        return Pieces(recipe.shape, read)

    def _values(self, recipe: _Recipe, rows: np.ndarray) -> Tensor:
        kind, data = recipe.entry.kind, rows
        if kind in gguf_items.PLAIN:
            data = rows.view(gguf_items.PLAIN[kind])
        else:
            kind, data = "F32", gguf_items.float32(kind, rows)
        shape = recipe.shape[::-1] if recipe.change == TURNED else recipe.shape
        tensor = Tensor(kind, data.reshape(shape))
        if recipe.change == TURNED:
            return Tensor(kind, tensor.data.T)
        if recipe.change == SHIFTED:
            with np.errstate(all="ignore"):
                return Tensor("F32", tensor.float32() - np.float32(1))
        if recipe.scale is not None:
            [factor] = self._bytes(recipe.scale).view("<f4")
            with np.errstate(all="ignore"):
                return Tensor("F32", tensor.float32() * factor)
        return tensor

    def packed(self, name: str) -> Packed | None:
        if name in self._scalars:
            return None
        recipe = self._recipe(name)
        if recipe.change in (TURNED, SHIFTED) or recipe.scale is not None or len(recipe.shape) != 2:
            return None
        if recipe.entry.kind not in gguf_items.PACKED:
            return None
        if recipe.change in (PAIRED, REGROUPED):
            return gguf_items.packed(recipe.entry.kind, self._rows(recipe))
        return gguf_items.packed_in_pieces(
            recipe.entry.kind, recipe.shape, lambda first, end: self._stored(recipe, first, end)
        )

    def _joined(self, recipe: _Recipe, behind: Entry) -> Tensor:
        """[experts, gates and gated parts, inputs]."""
        experts, both, inputs = recipe.shape
        half = replace(recipe, shape=(experts, both // 2, inputs), behind=None)
        parts = [self._values(one, self._rows(one)) for one in (half, replace(half, entry=behind))]
        if parts[0].kind != parts[1].kind:
            parts = [Tensor("F32", part.float32()) for part in parts]
        return Tensor(parts[0].kind, np.concatenate([part.data for part in parts], axis=1))

    # Names

    def _found_scalars(self) -> dict[str, Tensor]:
        """Weights that are metadata: one number of each layer."""
        family, layers, found = self._fields.family, self._fields.layers(), {}
        for key, name in family.scalars.items():
            values = self.header.metadata.get(key)
            if not isinstance(values, np.ndarray) or values.shape != (layers,) or values.dtype.kind != "f":
                raise self._fields.wrong(f"{key} is {str(values)[:60]!r}, {layers} numbers were wanted")
            shape = () if name.endswith(_ALONE) else (1,)
            for layer in range(layers):
                array = values[layer].astype(np.float32).reshape(shape)
                found[f"{family.blocks}.{layer}.{name}"] = Tensor("F32", array)
        return found

    def _add(self, name: str, entry: Entry) -> None:
        if not gguf_items.known(entry.kind):
            gguf_items.float32(entry.kind, np.empty((0, 1), np.uint8))  # raises the reason
        family = self._fields.family
        if found := _LAYER.fullmatch(name):
            number, part, kind = found.groups()
            if family.predicts and int(number) >= self._fields.layers():
                return
            before, table = f"{family.blocks}.{int(number)}.", family.layer
            if part == "attn_qkv" and part not in table and set(_SPLIT) <= set(table):
                self._add_fused(before, kind, entry, family)
                return
        else:
            found = _TOP.fullmatch(name)
            part, kind = found.groups() if found else ("", "")
            before, table = "", family.top
        if part in family.joined.values() and kind == "weight":
            return  # joined to the one before it
        if part not in table or (part == "output" and family.tied):
            raise self._fields.refused(f"it has a tensor {name!r}, which this architecture has not")
        change = family.changes.get(part, "")
        if family.shifted and part.endswith("norm"):
            change = SHIFTED
        scale = self.header.tensors.get(name.removesuffix(".weight") + ".scale")
        if scale is not None and (scale.kind != "F32" or scale.size != 4):
            raise self._fields.refused(f"its tensor {name!r} has several scales")
        recipe = _Recipe(entry, entry.shape, change=change, scale=scale)
        target = table[part][1:] if table[part].startswith("=") else f"{table[part]}.{kind}"
        if change == JOINED:
            recipe = self._with_behind(recipe, name, name.replace(part, family.joined[part]))
        if change == ROW:
            recipe = replace(recipe, shape=(1, prod(entry.shape)))
        if change == STACKED:
            self._add_experts(f"{before}{target}", recipe)
            return
        if change == TURNED:
            recipe = replace(recipe, shape=entry.shape[::-1], change=change if len(entry.shape) == 2 else "")
        if f"{before}{target}" in self._recipes:
            raise self._fields.refused(f"its tensor {name!r} is there by two names")
        self._recipes[f"{before}{target}"] = recipe

    def _with_behind(self, recipe: _Recipe, name: str, other: str) -> _Recipe:
        behind = self.header.tensors.get(other)
        if behind is None or behind.shape != recipe.shape or len(recipe.shape) != 3 or recipe.scale:
            raise self._fields.refused(f"its tensor {name!r} has no {other!r} like it")
        experts, rows, inputs = recipe.shape
        return replace(recipe, shape=(experts, 2 * rows, inputs), behind=behind)

    def _add_experts(self, name: str, recipe: _Recipe) -> None:
        if len(recipe.shape) not in (2, 3):
            raise self._fields.wrong(f"experts have the shape {recipe.shape}")
        if recipe.shape[0] + len(self._recipes) > MOST_WEIGHTS:
            raise self._fields.wrong(f"its experts make more than {MOST_WEIGHTS} weights")
        for expert in range(recipe.shape[0]):
            self._recipes[name.format(expert)] = replace(recipe, shape=recipe.shape[1:], expert=expert)

    def _add_fused(self, before: str, kind: str, entry: Entry, family: Family) -> None:
        """q, k and v of a layer in one tensor, for a family whose checkpoints have three."""
        heads, kv_heads = self._heads()
        unit, rest = divmod(entry.shape[0], heads + 2 * kv_heads)
        if rest:
            raise self._fields.wrong(f"{entry.shape[0]} rows of q, k and v are not of {heads} heads")
        at = 0
        for part, count in zip(_SPLIT, (heads, kv_heads, kv_heads), strict=True):
            rows = at, at + count * unit
            at = rows[1]
            self._recipes[f"{before}{family.layer[part]}.{kind}"] = _Recipe(
                entry, (count * unit, *entry.shape[1:]), rows, change=family.changes.get(part, "")
            )

    def _heads(self) -> tuple[int, int]:
        heads = self._fields.whole("attention.head_count")
        return heads, self._fields.whole("attention.head_count_kv", heads)

    def _recipe(self, name: str) -> _Recipe:
        try:
            return self._recipes[name]
        except KeyError:
            raise broken(f"{self.header.path} has no tensor for {name}; download the model again, whole") from None

    # Bytes

    def _bytes(self, entry: Entry) -> np.ndarray:
        return self._spans.read(entry.file, entry.offset, entry.size)

    def _rows(self, recipe: _Recipe) -> np.ndarray:
        """The weight's bytes, [rows, bytes of a row], in the order of the checkpoint."""
        count = 1
        for dim in recipe.shape[:-1] if recipe.change != TURNED else recipe.shape[1:]:
            count *= dim
        if len(recipe.entry.shape) == 1 and recipe.entry.kind in gguf_items.PLAIN:  # a bias: each item is a row
            count = prod(recipe.shape)
        rows = self._stored(recipe, 0, count)
        if recipe.change == PAIRED:
            return self._unpaired(rows)
        if recipe.change == REGROUPED:
            return self._ungrouped(rows)
        return rows

    def _stored(self, recipe: _Recipe, first: int, end: int) -> np.ndarray:
        """Bytes of some of the weight's rows, as they lie."""
        entry = recipe.entry
        single = len(entry.shape) < 2 and entry.kind in gguf_items.PLAIN
        a_row = entry.size // prod(entry.shape if single else entry.shape[:-1])
        skipped = (recipe.expert or 0) * prod(recipe.shape[:-1]) + (recipe.rows[0] if recipe.rows else 0)
        if (skipped + end) * a_row > entry.size:
            raise self._fields.wrong(f"a tensor of {entry.kind} {entry.shape} has no rows up to {skipped + end}")
        found = self._spans.read(entry.file, entry.offset + (skipped + first) * a_row, (end - first) * a_row)
        return found.reshape(end - first, a_row)

    def _unpaired(self, rows: np.ndarray) -> np.ndarray:
        dim = self._head_dim()
        if len(rows) % dim or dim % 2:
            raise self._fields.wrong(f"{len(rows)} rows are not of heads of {dim}")
        return rows.reshape(-1, dim // 2, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)

    def _ungrouped(self, rows: np.ndarray) -> np.ndarray:
        dim = self._head_dim()
        if len(rows) % (3 * dim):
            raise self._fields.wrong(f"{len(rows)} rows are not of q, k and v of heads of {dim}")
        return rows.reshape(3, -1, dim, rows.shape[1]).swapaxes(0, 1).reshape(rows.shape)

    def _head_dim(self) -> int:
        heads, _ = self._heads()
        return self._fields.whole("attention.key_length", self._fields.whole("embedding_length") // heads)

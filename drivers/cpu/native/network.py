"""Describing a model to the native decoder: its weights by name, packed layer by layer, and the numbers beside them.

The parts of a model come from its configuration (config.py) and from `llmasos.modelfiles.tensors.Weights`, whatever files
those read; llama.cpp's loader is the counterpart. Every tensor's name and shape is checked before anything is allocated.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from llmasos.drivers.cpu.native.config import Config
from llmasos.drivers.cpu.native.guard import Guard
from llmasos.drivers.cpu.native.library import GROUP, LANES, Layer, Matrix, Model
from llmasos.drivers.cpu.native.packing import (
    BITS,
    MOST_OF_GROUP,
    PAGE,
    Arena,
    interleave,
    pack,
    pack_as_is,
    packed_bytes,
    stack,
)
from llmasos.drivers.cpu.native.stream import Stretch
from llmasos.modelfiles.files import broken
from llmasos.modelfiles.tensors import ByRows, Packed, Tensor, Weights, float32_to_bfloat16
from llmasos.syscalls.errno import SyscallError

_HEAD_FORM = {"fp32": "fp32", "bf16": "bf16", "int8": "int8", "int4": "int8"}  # it decides between near ties
_SAID = 3  # names in a message


def padded_head_dim(head_dim: int) -> int:
    return -(-head_dim // LANES) * LANES


def embedding_bits(form: str) -> int:
    return 32 if form == "fp32" else 16


def arena_bytes(config: Config, form: str, of_group: int = 0) -> int:
    """Bytes that the packed weights take, at most; `of_group` as in `packed_bytes`."""
    layer, head = page_bytes(config, form, of_group)
    return layer * config.layers + head


def page_bytes(config: Config, form: str, of_group: int = 0) -> tuple[int, int]:
    """Bytes that a layer takes, and the head, at most."""
    hidden, middle, dim = config.hidden, config.middle, config.head_dim
    wide = config.heads * dim
    layer = (
        packed_bytes(wide + 2 * config.kv_heads * dim, hidden, form, of_group)
        + packed_bytes(hidden, wide, form, of_group)
        + packed_bytes(2 * (middle + LANES), hidden, form, of_group)
        + packed_bytes(hidden, middle, form, of_group)
        + 4 * (6 * hidden + 2 * dim)
        + 1024
        + PAGE
    )
    head = packed_bytes(config.vocab, hidden, _HEAD_FORM[form], of_group) + 4 * hidden + 1024 + PAGE
    return layer, head


def tables_bytes(config: Config, form: str, positions: int) -> int:
    """Bytes that the embedding, cosines and sines take."""
    return embedding_bits(form) // 8 * config.vocab * config.hidden + 8 * positions * len(config.rope.frequencies)


class Memory(Protocol):
    """Where bytes are: an arena, or a mapped part of a file."""

    base: int


@dataclass(slots=True)
class Page:
    """A unit that is moved whole: a layer's weights, or the head's. An offset and a size in bytes."""

    name: str
    offset: int
    size: int


@dataclass(slots=True)
class Parts:
    """Where weights are that are not all in one place: page `i` where its offsets, counted from `bases[i]`, say."""

    bases: list[int]
    streamed: list[Stretch]  # layers in the file
    file: Memory
    size: int  # bytes, of all weights
    resident: int  # of those, in memory, the window of layers that are read ahead included


@dataclass(slots=True)
class Blueprint:
    """A model in the structures of the native decoder, with offsets for pointers: those of `embedding`, `cosine` and
    `sine` into `tables`, where a step reads a few rows, the others into `weights`, which a step reads whole."""

    model: Model
    layers: Any  # an array of Layer
    weights: Arena
    pages: list[Page]  # of the weights
    tables: Memory
    tables_size: int
    parts: Parts | None = None  # then `weights` holds only the pages that stay in memory
    guard: Guard | None = None  # of the file that is mapped, if one is


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The tensors of a model by name, but for the head's and the first `model.` of the others' names."""
    hidden, middle, dim = config.hidden, config.middle, config.head_dim
    wide, narrow = config.heads * dim, config.kv_heads * dim
    found: dict[str, tuple[int, ...]] = {}

    def linear(name: str, columns: int, inputs: int, bias: bool) -> None:
        found[f"{name}.weight"] = (columns, inputs)
        if bias:
            found[f"{name}.bias"] = (columns,)

    for i in range(config.layers):
        layer = f"layers.{i}."
        if config.fused:
            linear(f"{layer}self_attn.qkv_proj", wide + 2 * narrow, hidden, config.qkv_bias)
            linear(f"{layer}mlp.gate_up_proj", 2 * middle, hidden, config.mlp_bias)
        else:
            linear(f"{layer}self_attn.q_proj", wide, hidden, config.qkv_bias)
            linear(f"{layer}self_attn.k_proj", narrow, hidden, config.qkv_bias)
            linear(f"{layer}self_attn.v_proj", narrow, hidden, config.qkv_bias)
            linear(f"{layer}mlp.gate_proj", middle, hidden, config.mlp_bias)
            linear(f"{layer}mlp.up_proj", middle, hidden, config.mlp_bias)
        linear(f"{layer}self_attn.o_proj", hidden, wide, config.out_bias)
        linear(f"{layer}mlp.down_proj", hidden, middle, config.mlp_bias)
        norms = ["input_layernorm", "post_attention_layernorm"]
        if config.four_norms:
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        found |= {f"{layer}{norm}.weight": (hidden,) for norm in norms}
        if config.head_norms:
            found |= {f"{layer}self_attn.{norm}.weight": (dim,) for norm in ("q_norm", "k_norm")}
    found["norm.weight"] = (hidden,)
    return found


class _Names:
    """The tensors of a model in its files. Raises EIO naming those that are missing or have another shape."""

    def __init__(self, weights: Weights, config: Config, where: str) -> None:
        names = set(weights.names())
        # A base model's checkpoint has no first part in its names.
        self._first = "model." if any(name.startswith("model.") for name in names) else ""
        embedding, head = f"{self._first}embed_tokens.weight", "lm_head.weight"
        if config.tied:  # either may be the one that was written; with both each counts
            embedding, head = (
                embedding if embedding in names else head,
                head if head in names else embedding,
            )
        self.embedding, self.head = embedding, head
        wanted = {self._first + name: shape for name, shape in shapes(config).items()}
        wanted |= dict.fromkeys((embedding, head), (config.vocab, config.hidden))
        lacking = [name for name in wanted if name not in names]
        odd = [name for name in wanted if name in names and weights.shape(name) != wanted[name]]
        if lacking:
            raise _unfit(where, "missing keys", lacking)
        if odd:
            said = [f"{name} {weights.shape(name)} for {wanted[name]}" for name in odd[:_SAID]]
            raise _unfit(where, "other shapes than it says:", [*said, *odd[_SAID:]])

    def __call__(self, name: str) -> str:
        return self._first + name


def _unfit(where: str, what: str, names: list[str]) -> SyscallError:
    return broken(
        f"the weights in {where} do not fit its config.json: {what} "
        f"{', '.join(names[:_SAID])}{' ...' if len(names) > _SAID else ''}; download the model again, whole",
    )


def describe(
    weights: Weights, config: Config, form: str, positions: int, progress: Callable[[float], None], where: str
) -> Blueprint:
    """The blueprint of a model for `positions` positions, in one of packing.FORMS. `progress` is told fractions; `where`
    names the model. Raises EIO for weights that do not fit the configuration."""
    names = _Names(weights, config, where)
    writer = _Writer(weights, names, config, form)
    layers = (Layer * config.layers)()
    for i in range(config.layers):
        with writer.page(f"layer {i}"):
            writer.layer(layers[i], i)
        progress((i + 1) / (config.layers + 2))
    tables = Arena(tables_bytes(config, form, positions) + 4 * PAGE)
    cosine, sine = config.rope.tables(positions)
    with writer.page("head"):
        model = Model(
            hidden=config.hidden,
            layers=config.layers,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            padded_head_dim=padded_head_dim(config.head_dim),
            intermediate=config.middle,
            vocabulary=config.vocab,
            context=positions,
            activation=config.activation,
            embedding_bits=embedding_bits(form),
            embedding=_put_embedding(tables, weights.by_rows(names.embedding), form),
            cosine=tables.put(cosine),
            sine=tables.put(sine),
            rotated=2 * cosine.shape[1],
            last_norm=writer.norm("norm"),
            norm_epsilon=config.epsilon,
            embedding_scale=config.embedding_scale,
            attention_scale=config.attention_scale,
            attention_softcap=config.attention_softcap,
            logit_softcap=config.logit_softcap,
        )
        progress((config.layers + 1) / (config.layers + 2))
        model.head = writer.matrix([names.head], [], _HEAD_FORM[form])
    progress(1.0)
    return Blueprint(model, layers, writer.arena, writer.pages, tables, tables.used)


_PIECE = 1 << 20  # items of an embedding read at a time


def _put_embedding(tables: Arena, matrix: ByRows, form: str) -> int:
    count, width = matrix.shape
    offset, room = tables.take((count, width), np.float32 if form == "fp32" else np.uint16)
    step = max(1, _PIECE // width)
    for first in range(0, count, step):
        room[first : first + step] = _rows(matrix.rows(first, min(first + step, count)), form)
    return offset


def _rows(tensor: Tensor, form: str) -> np.ndarray:
    """An embedding as steps read it."""
    if form == "fp32":
        return tensor.float32()
    return tensor.data if tensor.kind == "BF16" else float32_to_bfloat16(tensor.float32())


class Network:
    """A blueprint where its memory is now: `model` is what the decoder takes."""

    def __init__(self, blueprint: Blueprint, context: int) -> None:
        """`context` is the most positions that a row will have."""
        parts = blueprint.parts
        self._weights, self._tables = blueprint.weights, blueprint.tables  # kept: the model points into them
        self._file = parts.file if parts else None  # likewise
        size = parts.size if parts else blueprint.weights.used
        self.weight_bytes = size + blueprint.tables_size
        self.resident_bytes = parts.resident if parts else self.weight_bytes
        self.streamed = parts.streamed if parts else []
        self.model = _copy(blueprint.model)
        self._layers = _copy(blueprint.layers)
        bases = parts.bases if parts else [blueprint.weights.base] * (len(self._layers) + 1)
        relocate(self.model, bases[-1], TABLES)
        for name in TABLES:
            setattr(self.model, name, getattr(blueprint.model, name) + blueprint.tables.base)
        for layer, base in zip(self._layers, bases, strict=False):
            relocate(layer, base)
        self.model.layer = self._layers
        self.model.context = min(context, self.model.context)


TABLES = ("embedding", "cosine", "sine")


def _copy(structure: Any) -> Any:
    return type(structure).from_buffer_copy(structure)


def relocate(structure: ctypes.Structure, base: int, but: tuple[str, ...] = ()) -> None:
    """Make pointers of the offsets in a structure and those within it. NULL stays NULL."""
    for name, kind in structure._fields_:  # type: ignore[misc]  # none has bit fields
        value = getattr(structure, name)
        if isinstance(value, ctypes.Structure):
            relocate(value, base)
        elif kind is ctypes.c_void_p and value and name not in but:
            setattr(structure, name, value + base)


class _Writer:
    """Puts a model's weights into an arena, page by page."""

    def __init__(self, weights: Weights, names: _Names, config: Config, form: str) -> None:
        # Room for scales of groups, whether the files have any or not: pages that are not written take no memory.
        self.arena = Arena(arena_bytes(config, form, MOST_OF_GROUP))
        self.pages: list[Page] = []
        self._source, self._names, self._config, self._form = weights, names, config, form

    @contextmanager
    def page(self, name: str) -> Iterator[None]:
        first = self.arena.page()
        yield
        self.pages.append(Page(name, first, self.arena.used - first))

    def layer(self, layer: Layer, number: int) -> None:
        config, at = self._config, f"layers.{number}."
        attention, mlp = f"{at}self_attn.", f"{at}mlp."
        if config.fused:
            qkv, gate_up = [f"{attention}qkv_proj"], [f"{mlp}gate_up_proj"]
        else:
            qkv = [f"{attention}{part}_proj" for part in "qkv"]
            gate_up = [f"{mlp}gate_proj", f"{mlp}up_proj"]
        layer.qkv = self._linear(qkv, config.qkv_bias)
        layer.out = self._linear([f"{attention}o_proj"], config.out_bias)
        layer.gate_up = self._linear(gate_up, config.mlp_bias, turns=True)
        layer.down = self._linear([f"{mlp}down_proj"], config.mlp_bias)
        layer.before_attention = self.norm(f"{at}input_layernorm")
        if config.four_norms:
            layer.after_attention = self.norm(f"{at}post_attention_layernorm")
            layer.before_mlp = self.norm(f"{at}pre_feedforward_layernorm")
            layer.after_mlp = self.norm(f"{at}post_feedforward_layernorm")
        else:
            layer.before_mlp = self.norm(f"{at}post_attention_layernorm")
        if config.head_norms:
            layer.query_norm = self.norm(f"{attention}q_norm")
            layer.key_norm = self.norm(f"{attention}k_norm")
        layer.window = config.windows[number]

    def _linear(self, parts: list[str], bias: bool, turns: bool = False) -> Matrix:
        weights = [self._names(f"{part}.weight") for part in parts]
        biases = [self._names(f"{part}.bias") for part in parts] if bias else []
        return self.matrix(weights, biases, self._form, turns)

    def matrix(self, weights: list[str], biases: list[str], form: str, turns: bool = False) -> Matrix:
        """Several matrices as one, with `turns` gate and up taking turns (packing.interleave)."""
        joined = [self._source.get(name).float32() for name in biases]
        bias = _joined(joined, turns) if joined else None
        whole = self._packed(weights, form, turns)
        if whole is not None:
            return pack_as_is(self.arena, whole, bias)
        if len(weights) == 1 and not turns:
            return pack(self.arena, self._source.by_rows(weights[0]), bias, form)
        return pack(self.arena, _joined([self._source.get(name) for name in weights], turns), bias, form)

    def _packed(self, names: list[str], form: str, turns: bool) -> Packed | None:
        """The integers of a quantised checkpoint, where they are what the form wants and all parts are alike."""
        if form not in ("int8", "int4"):
            return None
        parts: list[Packed] = []
        for name in names:
            part = self._source.packed(name)
            if part is None or part.bits != BITS[form] or not _fits(part):
                return None
            if parts and not _alike(part, parts[0]):
                return None
            parts.append(part)
        made: Packed = _joined(parts, turns)
        return made

    def norm(self, name: str) -> int:
        weight = self._source.get(self._names(f"{name}.weight")).float32()
        return self.arena.put(weight + np.float32(self._config.norm_offset))


def _fits(part: Packed) -> bool:
    """Does the native form hold its groups?"""
    return part.group % GROUP == 0 or (part.scale.shape[1] == 1 and part.group >= part.values.shape[1])


def _alike(one: Packed, other: Packed) -> bool:
    return (one.bits, one.group, one.scale.shape[1]) == (other.bits, other.group, other.scale.shape[1])


def _joined(parts: list[Any], turns: bool) -> Any:
    if turns:
        return interleave(*(parts if len(parts) == 2 else _halves(parts[0])))
    return parts[0] if len(parts) == 1 else stack(*parts)


def _halves(whole: Any) -> tuple[Any, Any]:
    """Gate and up of a matrix or bias that has both, one behind the other."""
    if isinstance(whole, np.ndarray):
        middle = len(whole) // 2
        return whole[:middle], whole[middle:]
    if isinstance(whole, Tensor):
        gate, up = _halves(whole.data)
        return Tensor(whole.kind, gate), Tensor(whole.kind, up)
    values, scale = _halves(np.asarray(whole.values)), _halves(whole.scale)
    zero = (None, None) if whole.zero is None else _halves(whole.zero)
    first, second = (Packed(whole.bits, whole.group, values[i], scale[i], zero[i]) for i in range(2))
    return first, second

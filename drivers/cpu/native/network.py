"""Describing a transformers model to the native decoder.

Served are the families that the tests compare token by token with transformers: RMSNorm, rotary positions, grouped
queries, gated MLP, with the norms, caps and windows that gemma2 and qwen3 add. `why_not` names what stands in the way of
any other model; the torch engine runs those.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from drivers.cpu.native.library import GELU_TANH, LANES, SILU, Layer, Matrix, Model
from drivers.cpu.native.packing import BITS, PAGE, Arena, interleave, pack, packed_bytes
from drivers.cpu.native.stream import Stretch
from drivers.engine.architecture import Layout
from modelfiles.tensors import Tensor

FAMILIES = ("gemma2", "llama", "mistral", "phi3", "qwen2", "qwen3")
_ACTIVATIONS = {"silu": SILU, "gelu_pytorch_tanh": GELU_TANH}
_FORMS = {bits: form for form, bits in BITS.items()}


def head_bits(bits: int) -> int:
    """Of the output head, where the layers have `bits`: at least 8, since it decides between near ties."""
    return max(8, bits)


def embedding_bits(bits: int) -> int:
    return 32 if bits == 32 else 16


def why_not(config: Any) -> str:
    """What keeps a model from being run here, or ""."""
    if config.model_type not in FAMILIES:
        return f"the native decoder knows {', '.join(FAMILIES)}, not {config.model_type}"
    if _activation_name(config) not in _ACTIVATIONS:
        return f"the native decoder knows the activations {', '.join(_ACTIVATIONS)}, not {_activation_name(config)}"
    return ""


def _activation_name(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


def padded_head_dim(layout: Layout) -> int:
    return -(-layout.head_dim // LANES) * LANES


def arena_bytes(config: Any, layout: Layout, bits: int) -> int:
    """What the packed weights take, at most."""
    layer, head = page_bytes(config, layout, bits)
    return layer * layout.layers + head


def page_bytes(config: Any, layout: Layout, bits: int) -> tuple[int, int]:
    """What a layer takes, and the head, at most."""
    hidden, middle, dim = config.hidden_size, config.intermediate_size, layout.head_dim
    wide, form = config.num_attention_heads * dim, _FORMS[bits]
    layer = (
        packed_bytes(wide + 2 * layout.kv_heads * dim, hidden, form)
        + packed_bytes(hidden, wide, form)
        + packed_bytes(2 * (middle + LANES), hidden, form)
        + packed_bytes(hidden, middle, form)
        + 4 * (6 * hidden + 2 * dim)
        + 1024
        + PAGE
    )
    head = packed_bytes(layout.vocab, hidden, _FORMS[head_bits(bits)]) + 4 * hidden + 1024 + PAGE
    return int(layer), int(head)


class Memory(Protocol):
    """Where bytes are: an arena, or a mapped part of a file."""

    base: int


@dataclass(slots=True)
class Page:
    """What is moved as one: a layer's weights, or the head's. An offset and a size in bytes."""

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
    """A model as the native decoder wants it, but for its pointers, which are offsets: those of `embedding`, `cosine` and
    `sine` into `tables`, of which a step reads a few rows, the others into `weights`, which it reads whole."""

    model: Model
    layers: Any  # an array of Layer
    weights: Arena
    pages: list[Page]  # of the weights
    tables: Memory
    tables_size: int
    parts: Parts | None = None  # then `weights` holds only what stays in memory


def describe(
    source: Any, config: Any, layout: Layout, bits: int, progress: Callable[[float], None]
) -> Blueprint:
    """The blueprint of transformers' model `source`. `progress` is told fractions."""
    writer = _Writer(config, layout, bits)
    layers = (Layer * layout.layers)()
    windows = _windows(config, layout)
    body = source.model
    for i, block in enumerate(body.layers):
        with writer.page(f"layer {i}"):
            writer.layer(layers[i], block, windows[i])
        progress((i + 1) / (layout.layers + 1))
    gemma = config.model_type == "gemma2"
    head_dim = layout.head_dim
    scaling = float(config.query_pre_attn_scalar if gemma else head_dim)
    cosine, sine = _rotation(body.rotary_emb, layout.context)
    wide = embedding_bits(bits)
    embedding = body.embed_tokens.weight.detach().to(torch.float32 if wide == 32 else torch.bfloat16)
    tables = Arena(wide // 8 * layout.vocab * config.hidden_size + 8 * cosine.numel() + 4 * PAGE)
    with writer.page("head"):
        model = Model(
            hidden=config.hidden_size,
            layers=layout.layers,
            heads=config.num_attention_heads,
            kv_heads=layout.kv_heads,
            head_dim=head_dim,
            padded_head_dim=padded_head_dim(layout),
            intermediate=config.intermediate_size,
            vocabulary=layout.vocab,
            context=layout.context,
            activation=_ACTIVATIONS[_activation_name(config)],
            embedding_bits=wide,
            embedding=tables.put(_tensor(embedding).data),
            cosine=tables.put(cosine.numpy()),
            sine=tables.put(sine.numpy()),
            rotated=2 * cosine.shape[1],
            last_norm=writer.norm(body.norm),
            head=writer.matrix(source.lm_head.weight, source.lm_head.bias, head_bits(bits)),
            norm_epsilon=config.rms_norm_eps,
            embedding_scale=math.sqrt(config.hidden_size) if gemma else 1.0,
            attention_scale=scaling**-0.5,
            attention_softcap=(getattr(config, "attn_logit_softcapping", None) or 0.0) if gemma else 0.0,
            logit_softcap=(getattr(config, "final_logit_softcapping", None) or 0.0) if gemma else 0.0,
        )
    progress(1.0)
    return Blueprint(model, layers, writer.arena, writer.pages, tables, tables.used)


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
    for name, kind in structure._fields_:  # type: ignore[misc]
        value = getattr(structure, name)
        if isinstance(value, ctypes.Structure):
            relocate(value, base)
        elif kind is ctypes.c_void_p and value and name not in but:
            setattr(structure, name, value + base)


class _Writer:
    """Puts a model's weights into an arena, page by page."""

    def __init__(self, config: Any, layout: Layout, bits: int) -> None:
        self.arena = Arena(arena_bytes(config, layout, bits))
        self.pages: list[Page] = []
        self._bits = bits
        self._norm_offset = (
            1.0 if config.model_type == "gemma2" else 0.0
        )  # it keeps its norms' weights less one

    @contextmanager
    def page(self, name: str) -> Iterator[None]:
        first = self.arena.page()
        yield
        self.pages.append(Page(name, first, self.arena.used - first))

    def layer(self, layer: Layer, block: Any, window: int) -> None:
        attention, mlp = block.self_attn, block.mlp
        if hasattr(attention, "qkv_proj"):
            qkv, qkv_bias = attention.qkv_proj.weight, attention.qkv_proj.bias
        else:
            parts = (attention.q_proj, attention.k_proj, attention.v_proj)
            qkv, qkv_bias = torch.cat([part.weight for part in parts]), _joined(parts, torch.cat)
        if hasattr(mlp, "gate_up_proj"):
            gate, up = mlp.gate_up_proj.weight.chunk(2)
            gate_up_bias = None
        else:
            gate, up = mlp.gate_proj.weight, mlp.up_proj.weight
            gate_up_bias = _joined(
                (mlp.gate_proj, mlp.up_proj),
                lambda both: torch.from_numpy(interleave(*(each.detach().float().numpy() for each in both))),
            )
        layer.qkv = self.matrix(qkv, qkv_bias, self._bits)
        layer.out = self.matrix(attention.o_proj.weight, attention.o_proj.bias, self._bits)
        layer.gate_up = self.matrix(interleave(_tensor(gate), _tensor(up)), gate_up_bias, self._bits)
        layer.down = self.matrix(mlp.down_proj.weight, mlp.down_proj.bias, self._bits)
        layer.before_attention = self.norm(block.input_layernorm)
        if hasattr(block, "pre_feedforward_layernorm"):
            layer.after_attention = self.norm(block.post_attention_layernorm)
            layer.before_mlp = self.norm(block.pre_feedforward_layernorm)
            layer.after_mlp = self.norm(block.post_feedforward_layernorm)
        else:
            layer.before_mlp = self.norm(block.post_attention_layernorm)
        if hasattr(attention, "q_norm"):
            layer.query_norm = self.norm(attention.q_norm)
            layer.key_norm = self.norm(attention.k_norm)
        layer.window = window

    def matrix(self, weight: torch.Tensor | Tensor, bias: torch.Tensor | None, bits: int) -> Matrix:
        tensor = weight if isinstance(weight, Tensor) else _tensor(weight)
        return pack(self.arena, tensor, None if bias is None else bias.detach().float().numpy(), _FORMS[bits])

    def norm(self, norm: nn.Module) -> int:
        weight = norm.weight
        assert isinstance(weight, torch.Tensor)
        return self.arena.put(weight.detach().float().numpy() + np.float32(self._norm_offset))


def _tensor(tensor: torch.Tensor) -> Tensor:
    """The same memory, where it is bf16 or fp32."""
    plain = tensor.detach().contiguous()
    if plain.dtype == torch.bfloat16:
        return Tensor("BF16", plain.view(torch.uint16).numpy())
    return Tensor("F32", plain.float().numpy())


def _joined(
    parts: tuple[Any, ...], join: Callable[[list[torch.Tensor]], torch.Tensor]
) -> torch.Tensor | None:
    biases = [part.bias for part in parts]
    return None if any(bias is None for bias in biases) else join(biases)


def _windows(config: Any, layout: Layout) -> list[int]:
    """Keys that a query of each layer sees, 0 for all: as the attention's own arguments said (architecture.examine)."""
    if set(layout.windows) <= {None}:
        return [0] * layout.layers
    window = int(config.sliding_window)
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * layout.layers
    return [window if kind == "sliding_attention" else 0 for kind in types]


def _rotation(rotary: Any, context: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [context, rotated / 2] as transformers' own module gives them, scaling included."""
    with torch.inference_mode():
        cosine, sine = rotary(torch.zeros(1, dtype=torch.float32), torch.arange(context)[None])
    half = cosine.shape[-1] // 2
    return cosine[0, :, :half].contiguous(), sine[0, :, :half].contiguous()

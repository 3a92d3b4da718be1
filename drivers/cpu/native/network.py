"""Describing a transformers model to the native decoder.

Served are the families that the tests compare token by token with transformers: RMSNorm, rotary positions, grouped
queries, gated MLP, with the norms, caps and windows that gemma2 and qwen3 add. `why_not` names what stands in the way of
any other model; the torch engine runs those.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from drivers.cpu.native.library import GELU_TANH, LANES, SILU, Layer, Model
from drivers.cpu.native.packing import Arena, Packed, interleave, pack, packed_bytes
from drivers.engine.architecture import Layout

FAMILIES = ("gemma2", "llama", "mistral", "phi3", "qwen2", "qwen3")
_ACTIVATIONS = {"silu": SILU, "gelu_pytorch_tanh": GELU_TANH}
HEAD_BITS = 8  # of the output head, whatever the layers have: it decides between near ties


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
    """What the packed weights take, embedding included, at most."""
    hidden, middle, dim = config.hidden_size, config.intermediate_size, layout.head_dim
    wide = config.num_attention_heads * dim
    layer = (
        packed_bytes(wide + 2 * layout.kv_heads * dim, hidden, bits)
        + packed_bytes(hidden, wide, bits)
        + packed_bytes(2 * (middle + LANES), hidden, bits)
        + packed_bytes(hidden, middle, bits)
        + 4 * (6 * hidden + 2 * dim)
        + (1 << 10)
    )
    ends = packed_bytes(layout.vocab, hidden, HEAD_BITS) + 2 * layout.vocab * hidden + 8 * hidden
    return int(layer * layout.layers + ends + (1 << 12))


class Network:
    """A model's weights in an arena, and `model`, the description that points to them."""

    def __init__(
        self, source: Any, config: Any, layout: Layout, bits: int, context: int, progress: Callable[[], None]
    ) -> None:
        """`source` is transformers' model; `context` the most positions a row can have."""
        self._arena = Arena(arena_bytes(config, layout, bits))
        self._kept: list[Any] = []
        self._bits = bits
        gemma = config.model_type == "gemma2"
        self._norm_offset = 1.0 if gemma else 0.0  # gemma2 keeps its norms' weights less one
        body = source.model
        layers = (Layer * layout.layers)()
        self._kept.append(layers)
        windows = _windows(config, layout)
        for i, block in enumerate(body.layers):
            self._layer(layers[i], block, windows[i])
            progress()
        cosine, sine = _rotation(body.rotary_emb, context)
        head_dim = layout.head_dim
        scaling = float(config.query_pre_attn_scalar if gemma else head_dim)
        self.model = Model(
            hidden=config.hidden_size,
            layers=layout.layers,
            heads=config.num_attention_heads,
            kv_heads=layout.kv_heads,
            head_dim=head_dim,
            padded_head_dim=padded_head_dim(layout),
            intermediate=config.intermediate_size,
            vocabulary=layout.vocab,
            context=context,
            activation=_ACTIVATIONS[_activation_name(config)],
            embedding=self._keep(body.embed_tokens.weight.to(torch.bfloat16)),
            cosine=self._keep(cosine),
            sine=self._keep(sine),
            rotated=2 * cosine.shape[1],
            layer=layers,
            last_norm=self._norm(body.norm),
            head=self._matrix(source.lm_head.weight, source.lm_head.bias, HEAD_BITS),
            norm_epsilon=config.rms_norm_eps,
            embedding_scale=math.sqrt(config.hidden_size) if gemma else 1.0,
            attention_scale=scaling**-0.5,
            attention_softcap=(getattr(config, "attn_logit_softcapping", None) or 0.0) if gemma else 0.0,
            logit_softcap=(getattr(config, "final_logit_softcapping", None) or 0.0) if gemma else 0.0,
        )
        progress()

    @property
    def weight_bytes(self) -> int:
        return self._arena.used

    def _layer(self, layer: Layer, block: Any, window: int) -> None:
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
            gate_up_bias = _joined((mlp.gate_proj, mlp.up_proj), lambda both: interleave(*both))
        layer.qkv = self._matrix(qkv, qkv_bias, self._bits)
        layer.out = self._matrix(attention.o_proj.weight, attention.o_proj.bias, self._bits)
        layer.gate_up = self._matrix(interleave(gate, up), gate_up_bias, self._bits)
        layer.down = self._matrix(mlp.down_proj.weight, mlp.down_proj.bias, self._bits)
        layer.before_attention = self._norm(block.input_layernorm)
        if hasattr(block, "pre_feedforward_layernorm"):
            layer.after_attention = self._norm(block.post_attention_layernorm)
            layer.before_mlp = self._norm(block.pre_feedforward_layernorm)
            layer.after_mlp = self._norm(block.post_feedforward_layernorm)
        else:
            layer.before_mlp = self._norm(block.post_attention_layernorm)
        if hasattr(attention, "q_norm"):
            layer.query_norm = self._norm(attention.q_norm)
            layer.key_norm = self._norm(attention.k_norm)
        layer.window = window

    def _matrix(self, weight: torch.Tensor, bias: torch.Tensor | None, bits: int) -> Any:
        packed: Packed = pack(self._arena, weight.detach(), None if bias is None else bias.detach(), bits)
        self._kept.append(packed)
        return packed.matrix

    def _norm(self, norm: nn.Module) -> int:
        weight = norm.weight
        assert isinstance(weight, torch.Tensor)
        return self._keep(weight.detach().float() + self._norm_offset)

    def _keep(self, tensor: torch.Tensor) -> int:
        placed = self._arena.put(tensor.detach()) if tensor.dim() == 1 else tensor.detach().contiguous()
        self._kept.append(placed)
        return placed.data_ptr()


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

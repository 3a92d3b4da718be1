"""A model's configuration for the native decoder, read from its config.json without transformers or torch.

The decoder serves families that compute alike: RMSNorm, rotary positions, grouped queries, a gated MLP, with the norms,
caps and windows that gemma2 and qwen3 add. Fields that a file leaves out have the defaults of transformers' configuration
classes, and the tests compare every one. Nothing is guessed: `why_not` names the field that is not understood, and the
torch engine runs that model. llama.cpp reads its GGUF metadata in the same way; there each file states every number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmasos.drivers.cpu.native import rope
from llmasos.drivers.cpu.native.library import GELU_TANH, SILU
from llmasos.drivers.engine.layout import Layout, eos_ids, refuse
from llmasos.modelfiles.files import broken
from llmasos.syscalls.errno import SyscallError

ACTIVATIONS = {"silu": SILU, "swish": SILU, "gelu_pytorch_tanh": GELU_TANH}


@dataclass(frozen=True, slots=True)
class _Family:
    """Defaults of fields, and what the family's code does that no field says."""

    vocab: int
    hidden: int
    middle: int
    layers: int
    heads: int
    kv_heads: int | None  # None: as many as heads
    head_dim: int | None  # None: hidden / heads
    context: int
    epsilon: float
    eos: int | None
    tied: bool = False
    activation: str = "silu"
    activation_field: str = "hidden_act"
    window: int | None = None
    windowed: str = "never"  # always: every layer; or, where layer_types do not say: turns, last (if at all) or all
    fused: bool = False  # are qkv and gate_up one matrix each in the files?
    qkv_bias: bool | None = False  # None: as attention_bias says
    out_bias: str = ""  # the field that says whether the output has one
    attention_bias: bool = False  # its default
    mlp_bias: bool = False  # may there be one, as mlp_bias says?
    head_norms: bool = False
    four_norms: bool = False  # around attention and MLP, and their weights less one
    softcaps: tuple[float, float] | None = None  # of attention scores and logits


FAMILIES: dict[str, _Family] = {
    "gemma2": _Family(
        256000, 2304, 9216, 26, 8, 4, 256, 8192, 1e-6, 1, True, "gelu_pytorch_tanh", "hidden_activation", 4096,
        "turns", qkv_bias=None, out_bias="attention_bias", four_norms=True, softcaps=(50.0, 30.0),
    ),
    "llama": _Family(
        32000, 4096, 11008, 32, 32, None, None, 2048, 1e-6, 2, qkv_bias=None, out_bias="attention_bias",
        mlp_bias=True,
    ),
    "mistral": _Family(32000, 4096, 14336, 32, 32, 8, None, 131072, 1e-6, 2, window=4096, windowed="always"),
    "ministral": _Family(32000, 4096, 14336, 32, 32, 8, None, 131072, 1e-6, 2, window=4096, windowed="all"),
    "phi3": _Family(
        32064, 3072, 8192, 32, 32, None, None, 4096, 1e-5, 32000, windowed="always", fused=True
    ),
    "qwen2": _Family(
        151936, 4096, 22016, 32, 32, 32, None, 32768, 1e-6, None, window=4096, windowed="last", qkv_bias=True
    ),
    "qwen3": _Family(
        151936, 4096, 22016, 32, 32, 32, 128, 32768, 1e-6, None, window=4096, windowed="last", qkv_bias=None,
        out_bias="attention_bias", head_norms=True,
    ),
    "seed_oss": _Family(
        155136, 4096, 27648, 64, 80, 8, 128, 524288, 1e-6, 2, qkv_bias=None, out_bias="attention_out_bias",
        attention_bias=True, mlp_bias=True,
    ),
}  # fmt: skip
_QUERY_SCALE = 256  # gemma2's query_pre_attn_scalar, where a file names none
_MAX_WINDOW_LAYERS = 28
_PHI3_ORIGINAL = 4096


@dataclass(frozen=True, slots=True)
class Config:
    """A model of one of the families. `windows[i]`: keys that a query of layer i sees, 0 for all."""

    family: str
    vocab: int
    hidden: int
    middle: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int  # positions that are served
    epsilon: float
    activation: int
    rope: rope.Rope
    windows: tuple[int, ...]
    eos: tuple[int, ...]
    tied: bool
    fused: bool
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    head_norms: bool
    four_norms: bool
    norm_offset: float
    embedding_scale: float
    attention_scale: float
    attention_softcap: float  # 0: none
    logit_softcap: float

    @property
    def layout(self) -> Layout:
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        matrices = self.layers * self.hidden * (2 * wide + 2 * narrow + 3 * self.middle)
        biases = (wide + 2 * narrow) * self.qkv_bias + self.hidden * self.out_bias
        biases += (2 * self.middle + self.hidden) * self.mlp_bias
        norms = self.hidden * (4 if self.four_norms else 2) + 2 * self.head_dim * self.head_norms
        head = self.vocab * self.hidden
        return Layout(
            layers=self.layers,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            windows=sorted({window or None for window in self.windows}, key=lambda window: window or 0),
            context=self.context,
            vocab=self.vocab,
            parameters=matrices + self.layers * (biases + norms) + self.hidden + head * (1 if self.tied else 2),
            linear_parameters=matrices + head,
            embedding_parameters=head,
            tied_parameters=head if self.tied else 0,
            eos=list(self.eos),
        )


def why_not(raw: Mapping[str, Any]) -> str:
    """Why the native decoder cannot run a model of this config.json, or ""."""
    kind = raw.get("model_type")
    if kind not in FAMILIES:
        return f"the native decoder knows {', '.join(FAMILIES)}, not {kind}"
    family = FAMILIES[kind]
    activation = raw.get(family.activation_field, family.activation)
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        return f"the native decoder knows the activations {', '.join(ACTIVATIONS)}, not {activation}"
    parameters = _rope_parameters(raw)
    if not isinstance(parameters, dict) or any(isinstance(value, dict) for value in parameters.values()):
        return "its rotary positions differ from layer to layer"
    if (rotation := parameters["rope_type"]) not in rope.KINDS:
        return f"the native decoder knows rotary positions of the types {', '.join(rope.KINDS)}, not {rotation}"
    if kind != "phi3" and parameters.get("partial_rotary_factor") not in (None, 1, 1.0):
        return f"{kind} with a partial_rotary_factor"
    if kind == "phi3" and rotation not in ("default", "longrope"):
        return f"phi3 with rotary positions of the type {rotation}"
    types = raw.get("layer_types")
    if types is not None and family.windowed in ("never", "always"):
        return f"{kind} with layer_types"
    listed = types if isinstance(types, list) else ()  # what else it is, `read` says
    odd = {str(name) for name in listed} - {"full_attention", "sliding_attention", "attention"}
    if odd:
        return f"layers of the type {min(odd)}"
    for name in ("use_bidirectional_attention", "is_encoder_decoder", "per_layer_config"):
        if raw.get(name):
            return f"{kind} with {name}"
    return ""


@dataclass(frozen=True, slots=True)
class _Heads:
    """The heads of a model's attention."""

    heads: int
    kv_heads: int
    head_dim: int


def _heads(reader: _Reader, family: _Family, kind: str, hidden: int) -> _Heads:
    heads = reader.whole("num_attention_heads", family.heads)
    kv_heads = reader.whole("num_key_value_heads", family.kv_heads, null=heads)
    if family.head_dim is None:
        head_dim = reader.whole("head_dim", None, null=hidden // heads)
    else:
        head_dim = reader.whole("head_dim", family.head_dim)
    if kind in ("gemma2", "llama") and hidden % heads:
        raise reader.wrong(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    if not head_dim or not kv_heads:
        raise reader.wrong(f"hidden_size {hidden} for {heads} heads leaves none anything")
    if heads < kv_heads or heads % kv_heads:
        raise refuse(kind, f"its {heads} query heads cannot share {kv_heads} key-value heads evenly")
    return _Heads(heads, kv_heads, head_dim)


def _rope(reader: _Reader, raw: Mapping[str, Any], kind: str, head_dim: int, declared: int) -> rope.Rope:
    parameters = _rope_parameters(raw)
    partial = parameters.get("partial_rotary_factor", 1.0) if kind == "phi3" else 1.0
    if isinstance(partial, bool) or not isinstance(partial, int | float):
        raise reader.wrong(f"partial_rotary_factor is {partial!r:.40}, a number was wanted")
    rotated = int(head_dim * partial)
    if rotated < 2 or rotated % 2 or rotated > head_dim:
        raise reader.wrong(f"rotary positions of {rotated} items of a head of {head_dim}")
    try:
        return rope.rope(parameters, rotated, declared)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise reader.wrong(f"rope_parameters: {what}") from None


def read(raw: Mapping[str, Any], where: str) -> Config:
    """The configuration that `why_not` has nothing against. `where` names it. Raises EIO naming what makes no sense."""
    reader = _Reader(raw, where)
    kind = raw["model_type"]
    family = FAMILIES[kind]
    hidden = reader.whole("hidden_size", family.hidden)
    layers = reader.whole("num_hidden_layers", family.layers)
    declared = reader.whole("max_position_embeddings", family.context)
    heads = _heads(reader, family, kind, hidden)
    turned = _rope(reader, raw, kind, heads.head_dim, declared)
    qkv_bias = family.qkv_bias
    if qkv_bias is None:
        qkv_bias = reader.yes("attention_bias", family.attention_bias)
    out_default = family.out_bias == "attention_bias" and family.attention_bias
    gemma = family.four_norms
    scale = reader.real("query_pre_attn_scalar", _QUERY_SCALE) if gemma else float(heads.head_dim)
    if not scale:
        raise reader.wrong("query_pre_attn_scalar is 0")
    caps = family.softcaps or (None, None)
    return Config(
        family=kind,
        vocab=reader.whole("vocab_size", family.vocab),
        hidden=hidden,
        middle=reader.whole("intermediate_size", family.middle),
        layers=layers,
        heads=heads.heads,
        kv_heads=heads.kv_heads,
        head_dim=heads.head_dim,
        context=min(declared, turned.limit or declared),
        epsilon=reader.real("rms_norm_eps", family.epsilon),
        activation=ACTIVATIONS[raw.get(family.activation_field, family.activation)],
        rope=turned,
        windows=_windows(reader, family, layers),
        eos=_eos(reader, family),
        tied=reader.yes("tie_word_embeddings", family.tied),
        fused=family.fused,
        qkv_bias=qkv_bias,
        out_bias=reader.yes(family.out_bias, out_default) if family.out_bias else False,
        mlp_bias=reader.yes("mlp_bias", False) if family.mlp_bias else False,
        head_norms=family.head_norms,
        four_norms=gemma,
        norm_offset=1.0 if gemma else 0.0,
        embedding_scale=math.sqrt(hidden) if gemma else 1.0,
        attention_scale=scale**-0.5,
        attention_softcap=(reader.real("attn_logit_softcapping", caps[0], null=0.0) if gemma else 0.0),
        logit_softcap=(reader.real("final_logit_softcapping", caps[1], null=0.0) if gemma else 0.0),
    )


def _rope_parameters(raw: Mapping[str, Any]) -> Any:
    """`rope_parameters` as transformers standardises it from all the forms that published files have."""
    found = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(found, dict):
        return found
    found = dict(found)
    phi3 = raw.get("model_type") == "phi3"
    if found.get("rope_theta") is None:
        theta = raw.get("rope_theta")
        found["rope_theta"] = 10_000.0 if theta is None else theta
    partial = raw.get("partial_rotary_factor", 1.0 if phi3 else None)
    if partial is not None:
        found.setdefault("partial_rotary_factor", partial)
    found.setdefault("rope_type", found.get("type", "default"))
    if phi3 and found["rope_type"] in ("su", "yarn"):
        found["rope_type"] = "longrope"
    if found["rope_type"] in ("llama3", "yarn", "longrope"):
        original = raw.get("original_max_position_embeddings", _PHI3_ORIGINAL if phi3 else None)
        if original is not None:
            found["original_max_position_embeddings"] = original
        else:
            context = raw.get("max_position_embeddings", FAMILIES[raw["model_type"]].context)
            found.setdefault("original_max_position_embeddings", context)
    return found


def _windows(reader: _Reader, family: _Family, layers: int) -> tuple[int, ...]:
    raw = reader.raw
    window = reader.whole("sliding_window", family.window, null=0, least=0) if family.windowed != "never" else 0
    if family.windowed in ("never", "always"):
        return (window,) * layers
    if family.windowed == "last" and not reader.yes("use_sliding_window", False):
        window = 0
    types = raw.get("layer_types")
    if types is None:
        first = reader.whole("max_window_layers", _MAX_WINDOW_LAYERS, least=0) if family.windowed == "last" else 0
        sliding = [i % 2 == 0 if family.windowed == "turns" else i >= first for i in range(layers)]
    else:
        if not isinstance(types, list) or len(types) != layers:
            raise reader.wrong(f"layer_types has not one entry for each of its {layers} layers")
        sliding = [name == "sliding_attention" for name in types]
    return tuple(window if slides else 0 for slides in sliding)


def _eos(reader: _Reader, family: _Family) -> tuple[int, ...]:
    try:
        return tuple(eos_ids(reader.raw.get("eos_token_id", family.eos)))
    except (TypeError, ValueError):
        raise reader.wrong("eos_token_id is neither a number nor a list of them") from None


class _Reader:
    """Fields of one config.json, each checked for its type."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.raw = raw
        self._where = where

    def wrong(self, what: str) -> SyscallError:
        kind = self.raw["model_type"]
        return broken(f"{self._where} is not a valid {kind} configuration: {what}")

    def whole(self, name: str, default: int | None, *, null: int | None = None, least: int = 1) -> int:
        """`null`: what null, and no default, mean; None: nothing."""
        value = self.raw.get(name, default)
        if value is None and null is not None:
            return null
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.wrong(f"{name} is {value!r:.40}, a whole number from {least} on was wanted")
        return value

    def real(self, name: str, default: float | None, *, null: float | None = None) -> float:
        value = self.raw.get(name, default)
        if value is None and null is not None:
            return null
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise self.wrong(f"{name} is {value!r:.40}, a number was wanted")
        return float(value)

    def yes(self, name: str, default: bool) -> bool:
        value = self.raw.get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(f"{name} is {value!r:.40}, true or false was wanted")
        return value

"""Which models this engine runs, found out from the model itself rather than from a list of names.

The model is built without memory (on torch's meta device) and run once over a few tokens, with an attention function
that records its arguments: every layer must call it for full, sliding-window or soft-capped causal
attention of one KV shape, and for nothing else. So any transformers architecture that goes through AttentionInterface is
served by its own modelling code, and anything this engine would have to ignore (attention sinks, position biases,
recurrent state, latent attention) is refused with ENOEXEC by name. vLLM keeps a registry of re-written models instead.
"""

from __future__ import annotations

import inspect
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmasos.drivers.engine.defaults import guard_transformers
from llmasos.drivers.engine.layout import LAYER_TYPES, Layout, eos_ids, refuse
from llmasos.modelfiles.files import broken, quoted

# Arguments of attention that say nothing about what is computed (or say what we do anyway).
_HARMLESS = {
    "cache_position", "cu_seq_lens_k", "cu_seq_lens_q", "dropout", "is_causal", "max_length_k", "max_length_q",
    "output_attentions", "output_hidden_states", "output_router_logits", "position_embeddings", "position_ids",
    "return_dict", "use_cache",
}  # fmt: skip
_ROPE_ALSO = ("default", "su", "mrope")  # what classes of configurations make others of
_DRY_TOKENS = 8


def open_config(config: dict[str, Any], place: Path) -> Any:
    """transformers' configuration object for a config.json. Raises ENOEXEC for a model that cannot be served, EIO for
    values that make no sense."""
    from transformers import CONFIG_MAPPING, AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config["model_type"]
    if config.get("auto_map") and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise refuse(kind, "its code is in the model's own repository, and remote code is not run")
    if config.get("is_encoder_decoder"):
        raise refuse(kind, "it is an encoder-decoder")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise refuse(kind, "the installed transformers knows no causal language model of that name")
    _check_rope(config, kind, place)
    try:
        if place.is_dir():
            opened = AutoConfig.from_pretrained(place, local_files_only=True)
        else:  # a file whose metadata say what a config.json would
            opened = CONFIG_MAPPING[kind].from_dict(config)
    except Exception as error:  # transformers validates with errors of many kinds
        raise broken(f"{place}/config.json is not a valid {kind} configuration: {error}") from None
    _check_factors(opened, place)
    if getattr(opened, "quantization_config", None) is not None:
        del opened.quantization_config  # its weights come dequantised
    for layer_type in getattr(opened, "layer_types", None) or ():
        if layer_type not in LAYER_TYPES:
            raise refuse(kind, f"it has {layer_type} layers")
    return opened


def _check_rope(config: dict[str, Any], kind: str, place: Path) -> None:
    """Raises ENOEXEC for a type of rotary positions that the library does not know, EIO for one that is no word."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for field in ("rope_scaling", "rope_parameters"):
        outer = config.get(field) or {}
        if not isinstance(outer, dict):
            raise broken(f"{place}/config.json: {field} is {quoted(outer)}, an object was wanted")
        for found in (outer, *(inner for inner in outer.values() if isinstance(inner, dict))):
            name = found.get("rope_type") or found.get("type") or "default"
            if not isinstance(name, str):
                raise broken(f"{place}/config.json: {field}.rope_type is {quoted(name)}, a word was wanted")
            if name not in (*ROPE_INIT_FUNCTIONS, *_ROPE_ALSO):
                known = ", ".join(sorted({"default", *ROPE_INIT_FUNCTIONS}))
                raise refuse(kind, f"{field}.rope_type is {quoted(name)}; those that are known are {known}")


def _check_factors(config: Any, place: Path) -> None:
    """Raises EIO for lists of factors that do not fit the rotated dimensions: a list of one number would be spread."""
    parameters = getattr(config, "rope_parameters", None) or {}
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(parameters, dict) or not heads:
        return
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    for found in (parameters, *(inner for inner in parameters.values() if isinstance(inner, dict))):
        partial = found.get("partial_rotary_factor") or 1.0
        if not isinstance(partial, int | float) or not isinstance(dim, int):
            raise broken(
                f"{place}/config.json: partial_rotary_factor {quoted(partial)} of {quoted(dim)}, numbers were wanted"
            )
        wanted = int(dim * partial) // 2
        for name in ("short_factor", "long_factor"):
            factors = found.get(name)
            if factors is not None and (not isinstance(factors, list) or len(factors) != wanted):
                raise broken(f"{place}/config.json: {name} has not the {wanted} numbers that were wanted")


def pin_rope(model: nn.Module, config: Any) -> int | None:
    """Have rotary embeddings whose frequencies depend on the longest position of the *batch* keep their original ones.

    Dynamic NTK and LongRoPE change the frequencies once a sequence is longer than the original context; in a shared batch
    one process would change its neighbours' positions, and keys already cached would be off. Up to that
    length they are plain RoPE, so the context is limited to it. Returns that limit, or None where nothing was pinned.
    """
    limit: int | None = None
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        kinds = set(kind.values()) if isinstance(kind, dict) else {kind}
        if not kinds & {"dynamic", "longrope"}:
            continue
        parameters = config.rope_parameters
        original = (
            parameters.get("original_max_position_embeddings") if "longrope" in kinds else None
        ) or config.max_position_embeddings
        limit = min(limit or original, original)
        plain = inspect.unwrap(type(module).forward)
        module.forward = types.MethodType(plain, module)
    return limit


def route_attention(model: nn.Module, attend: Any, name: str) -> None:
    """Have every attention layer of `model` call `attend` (signature: attention.PagedAttention.__call__)."""
    from transformers import AttentionInterface

    AttentionInterface.register(name, attend)
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation = name
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):  # reads the tokens; here there is neither
            module.warn_if_padding_and_no_attention_mask = _no_warning  # type: ignore[assignment]  # a method of its
        if type(module).__name__ == "GPTNeoSelfAttention":
            _route_gpt_neo(module, attend)


def _no_warning(*_: Any) -> None:
    return None


def unroute_attention(name: str) -> None:
    from transformers import AttentionInterface

    AttentionInterface._global_mapping.pop(name, None)


def _route_gpt_neo(module: nn.Module, attend: Any) -> None:
    """GPT-Neo predates AttentionInterface: its scores are not scaled, and odd layers see a window of the past."""
    # nn.Module does not declare the attributes of transformers' modules.
    window = int(module.config.window_size) if module.attention_type == "local" else None  # type: ignore[union-attr, arg-type]

    def _attn(
        self: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Any = None,
    ) -> tuple[torch.Tensor, None]:
        out, _ = attend(self, query, key, value, attention_mask, scaling=1.0, sliding_window=window)
        return out.transpose(1, 2), None

    module._attn = types.MethodType(_attn, module)  # type: ignore[assignment]  # a method of its


@dataclass(slots=True)
class _Call:
    module: nn.Module
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None
    odd: list[str]


def build_meta(config: Any) -> nn.Module:
    """The model without memory for its weights. Raises EIO for values that its classes do not take."""
    from transformers import AutoModelForCausalLM

    guard_transformers()
    try:
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.bfloat16)
    except Exception as error:  # of any kind: a KeyError for an activation that there is not
        raise broken(
            f"no {config.model_type} can be built of this configuration ({type(error).__name__}: {str(error)[:200]})",
        ) from None
    return model.eval()


def examine(model: nn.Module, config: Any) -> Layout:
    """Run a meta model dry. Raises ENOEXEC."""
    kind = config.model_type
    limit = pin_rope(model, config)
    calls: list[_Call] = []

    def attend(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **others: Any,
    ) -> tuple[torch.Tensor, None]:
        odd = sorted(name for name, value in others.items() if value is not None and name not in _HARMLESS)
        if attention_mask is not None:
            odd.append("attention_mask")
        causal = others.get("is_causal")
        if not (getattr(module, "is_causal", True) if causal is None else causal):
            odd.append("tokens after its own (it is not causal)")
        calls.append(_Call(module, query.shape[1], key.shape[1], key.shape[3], value.shape[3], sliding_window, odd))
        return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3]), None

    name = "llmasos-examine"
    route_attention(model, attend, name)
    try:
        with torch.inference_mode():
            model(
                input_ids=torch.zeros(1, _DRY_TOKENS, dtype=torch.long, device="meta"),
                position_ids=torch.arange(_DRY_TOKENS, device="meta")[None],
                use_cache=False,
                logits_to_keep=torch.arange(1, device="meta"),
            )
    except Exception as error:  # of the model's code, of any kind
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise refuse(kind, f"its code does not run over packed rows ({type(error).__name__}: {reason})") from None
    finally:
        unroute_attention(name)
    return _judge(model, config, calls, limit)


def _judge(model: nn.Module, config: Any, calls: list[_Call], limit: int | None) -> Layout:
    kind = config.model_type
    layers = config.num_hidden_layers
    modules = {id(call.module) for call in calls}
    if len(calls) != layers or len(modules) != layers:
        raise refuse(kind, f"{len(calls)} of its {layers} layers have attention of the known kind")
    odd = sorted({name for call in calls for name in call.odd})
    if odd:
        raise refuse(kind, f"its attention takes into account: {', '.join(odd)}")
    shapes = {(call.kv_heads, call.head_dim, call.value_dim) for call in calls}
    if len(shapes) != 1:
        raise refuse(kind, f"its layers have different KV shapes {sorted(shapes)}")
    (kv_heads, head_dim, value_dim) = shapes.pop()
    uneven = next((call.heads for call in calls if call.heads < kv_heads or call.heads % kv_heads), None)
    if uneven is not None:
        raise refuse(kind, f"its {uneven} query heads cannot share {kv_heads} key-value heads evenly")
    if head_dim != value_dim:
        raise refuse(kind, f"its keys have {head_dim} dimensions and its values {value_dim}")
    if getattr(model, "_is_stateful", False):
        raise refuse(kind, "it has recurrent state")
    _check_windows(config, calls)
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if not positions:
        raise refuse(kind, "its configuration names no context length (max_position_embeddings)")
    names = {module: name for name, module in model.named_modules()}
    return Layout(
        layers=layers,
        kv_heads=kv_heads,
        head_dim=head_dim,
        windows=sorted({call.window for call in calls}, key=lambda window: window or 0),
        context=min(int(positions), limit or int(positions)),
        vocab=int(config.vocab_size),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        linear_parameters=_linear_parameters(model),
        embedding_parameters=sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding)),
        tied_parameters=_tied_parameters(model),
        attention=[names[call.module] for call in calls],
        eos=eos_ids(config.eos_token_id),
    )


def _check_windows(config: Any, calls: list[_Call]) -> None:
    """Windows that layers pass must be those of the configuration: a window known only to a mask would be missed."""
    types_ = getattr(config, "layer_types", None)
    declared = getattr(config, "sliding_window", None)
    if config.model_type == "gpt_neo":
        return  # the window is that of _route_gpt_neo
    for i, call in enumerate(calls):
        wanted = declared if types_ is None or types_[i] == "sliding_attention" else None
        if types_ is None and not getattr(config, "use_sliding_window", True):
            wanted = None
        if call.window != wanted:
            says = f"layer {i} attends with window {call.window}, its configuration says {wanted}"
            raise refuse(config.model_type, says)


def _tied_parameters(model: Any) -> int:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return int(head.weight.numel()) if head.weight is embedding.weight else 0


def _linear_parameters(model: nn.Module) -> int:
    from transformers.pytorch_utils import Conv1D

    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear | Conv1D))

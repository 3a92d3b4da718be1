"""The layout of a model: all that the engine needs to place its KV and to run it, whichever kind of image computes it.

Each kind finds it in its own way: torch's by running transformers' module dry (architecture.py), the native decoder's by
reading config.json (cpu/native/config.py). Refusals have one form, so that a user sees one system.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmasos.modelfiles.files import broken, quoted
from llmasos.syscalls.errno import Errno, SyscallError

# The tests compare these with transformers token by token; other architectures are taken if they pass a trial.
TESTED = (
    "gemma2", "gpt2", "gpt_neo", "gpt_neox", "llama", "ministral", "mistral", "phi3", "qwen2", "qwen3",
    "seed_oss",
)  # fmt: skip

# Common architectures that the trial (architecture.py) refuses whatever their configurations say; the tests compare these
# reasons with those of the trial.
REFUSED = {
    "gpt_oss": "its attention takes into account: s_aux",
    **dict.fromkeys(
        ("mamba", "falcon_mamba", "jamba", "qwen3_next", "recurrent_gemma", "nemotron_h", "minimax"),
        "it has linear_attention layers",
    ),
    "falcon_h1": "it has hybrid layers",
    "llama4_text": "it has chunked_attention layers",
    "bert": "its attention takes into account: tokens after its own (it is not causal)",
}
LAYER_TYPES = {"full_attention", "sliding_attention"}


@dataclass(slots=True)
class Layout:
    """The measures of a model."""

    layers: int
    kv_heads: int
    head_dim: int
    windows: list[int | None]  # distinct sliding windows of the layers
    context: int  # tokens
    vocab: int
    parameters: int
    linear_parameters: int = 0  # of them, in weights that int8 quantises
    embedding_parameters: int = 0  # of them, in embeddings; a tied head's count here and among the linear ones
    tied_parameters: int = 0  # of the head, where they are the embedding's: int8 copies them
    attention: list[str] = field(default_factory=list)  # names of torch's attention modules, in the order of layers
    eos: list[int] = field(default_factory=list)


def eos_ids(value: object) -> list[int]:
    """`eos_token_id` of a configuration as a list: a number, a list, or null. Raises EIO for what is no number."""
    try:
        if isinstance(value, list):
            return [int(item) for item in value]
        return [] if value is None else [int(value)]  # type: ignore[call-overload]  # else a TypeError
    except (TypeError, ValueError, OverflowError):
        raise broken(f"eos_token_id is {quoted(value)}, a token id, a list of them or null was wanted") from None


def refused_unseen(raw: Mapping[str, Any]) -> str:
    """Why a trial of a model of this config.json would refuse it, as far as that can be told without one; or ""."""
    if raw.get("is_encoder_decoder"):
        return "it is an encoder-decoder"
    if why := REFUSED.get(raw["model_type"]):
        return why
    if raw["model_type"] in ("deepseek_v2", "deepseek_v3"):
        keys = [raw.get("qk_nope_head_dim", 128), raw.get("qk_rope_head_dim", 64)]
        values = raw.get("v_head_dim", 128)
        if all(isinstance(one, int) for one in (*keys, values)) and sum(keys) != values:
            return f"its keys have {sum(keys)} dimensions and its values {values}"
    types = raw.get("layer_types")
    words = [one for one in types if isinstance(one, str)] if isinstance(types, list) else []
    return next((f"it has {word} layers" for word in words if word not in LAYER_TYPES), "")


def refuse(architecture: str, why: str) -> SyscallError:
    return SyscallError(
        Errno.ENOEXEC,
        f"architecture {architecture!r} is not supported: {why}; supported are causal language models with full, "
        f"sliding-window or soft-capped attention, e.g. {', '.join(TESTED)}",
    )

"""A GGUF file's metadata under the prefix of its architecture, each field checked when it is read.

Reads are recorded: a key that no code reads may change what a model computes, so it is refused by name unless it is known
to be harmless.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from llmasos.modelfiles.files import broken, shown
from llmasos.modelfiles.gguf import Entry, Header
from llmasos.modelfiles.gguf_families import FAMILIES, Family
from llmasos.modelfiles.spans import Spans
from llmasos.syscalls.errno import Errno, SyscallError

MOST_FACTORS = 1 << 12
_FACTORS = (1e-4, 1e6)  # from which fp32 still makes frequencies

# GGUF files that are no models: by their architecture, or by what they call themselves.
_OTHER_THINGS = {
    "clip": "a vision or audio tower", "mmproj": "a vision or audio tower", "imatrix": "an importance matrix",
    "adapter": "an adapter (LoRA), which is a change to a model (llama-export-lora merges it into one)",
    "controlvector": "a control vector", "vocab": "a vocabulary",
}  # fmt: skip

# Fields that are known otherwise, or that do not change what a model computes; and harmless values of other fields.
_NO_MATTER = {
    "vocab_size", "context_length", "tensor_data_layout", "pooling_type", "feed_forward_length", "expert_shared_count",
    "attention.key_length", "attention.value_length", "attention.head_count_kv", "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.scaling.factor", "rope.scaling.attn_factor",
    "rope.scaling.original_context_length", "rope.scaling.finetuned", "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.freq_base",
}  # fmt: skip
_NEUTRAL = {
    "attention.causal": True, "expert_gating_func": 1, "expert_weights_norm": True,
    "expert_group_count": 1, "expert_group_used_count": 1, "expert_weights_scale": 1.0,
    "interleave_moe_layer_step": 1, "logit_scale": 1.0, "embedding_scale": 1.0, "residual_scale": 1.0,
    "rope.scale_linear": 1.0, "rope.scaling.yarn_ext_factor": 1.0, "rope.scaling.alpha": 1.0,
}  # fmt: skip


class Fields:
    """A header's metadata under its architecture's prefix, each field checked when it is read."""

    def __init__(self, header: Header) -> None:
        """Raises ENOEXEC unless it is a language model of a known architecture."""
        self.header = header
        self._read: set[str] = set()
        architecture = header.metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise SyscallError(Errno.ENOEXEC, f"{header.path} does not say which architecture it is")
        kind = str(header.metadata.get("general.type", "model"))[:40]
        if not header.tensors:
            raise SyscallError(
                Errno.ENOEXEC,
                f"{header.path} has no weights, only a vocabulary or metadata; name the model's own file",
            )
        self.architecture = architecture
        if kind != "model" or architecture in _OTHER_THINGS:
            what = _OTHER_THINGS.get(architecture) or _OTHER_THINGS.get(kind) or repr(kind)
            raise SyscallError(
                Errno.ENOEXEC,
                f"{header.path} holds no language model but {what}; name the model's own file",
            )
        if architecture not in FAMILIES:
            raise SyscallError(
                Errno.ENOEXEC,
                f"architecture {architecture[:40]!r} of {header.path} is not read from GGUF files; those are "
                f"{', '.join(sorted(FAMILIES))}; try the model's safetensors",
            )
        self.family: Family = FAMILIES[architecture]

    def get(self, key: str, default: Any = None) -> Any:
        self._read.add(key)
        return self.header.metadata.get(f"{self.architecture}.{key}", default)

    def all_known(self) -> None:
        """Raise ENOEXEC for a key that was not read, unless it or its value is harmless."""
        for name, value in self.header.metadata.items():
            prefix, _, key = name.partition(".")
            if prefix != self.architecture or key in self._read or key in _NO_MATTER:
                continue
            if isinstance(value, int | float) and value == _NEUTRAL.get(key, 0):
                continue
            raise self.refused(f"it has a field {name!r}, which says something that is not known here")

    def layers(self) -> int:
        """The number of layers, without those behind them that predict further tokens, which transformers does not run
        either."""
        count, predicting = self.whole("block_count"), self.whole_or_none("nextn_predict_layers")
        if not predicting:
            return count
        if not self.family.predicts:
            raise self.refused("it has layers that predict several tokens")
        if predicting >= count:
            raise self.wrong(f"{predicting} of its {count} layers predict further tokens")
        return count - predicting

    def whole(self, key: str, default: int | None = None) -> int:
        """A count. If there is one for each layer, all must be equal."""
        value = self.get(key, default)
        if isinstance(value, np.ndarray) and value.ndim == 1 and value.size:
            if not (value == value[0]).all():
                raise self.refused(f"its layers differ in {key}")
            value = value[0].item()
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 40:
            raise self.wrong(f"{self.architecture}.{key} is {str(value)[:60]!r}, a number above 0 was wanted")
        return value

    def whole_or_none(self, key: str) -> int:
        """A count that may be 0, or absent, which means 0."""
        value = self.get(key, 0)
        return 0 if isinstance(value, int | float) and value == 0 else self.whole(key)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(f"{self.architecture}.{key} is {str(value)[:60]!r}, true or false was wanted")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(f"{self.architecture}.{key} is {str(value)[:60]!r}, a number was wanted")
        return shortest(float(value))

    def token(self, name: str) -> int | None:
        """The id of a named token, if there is one."""
        value = self.header.metadata.get(f"tokenizer.ggml.{name}_token_id")
        vocab = self.header.tensors["token_embd.weight"].shape[0]
        return value if isinstance(value, int) and 0 <= value < vocab else None

    def factors(self, name: str) -> list[float] | None:
        """A small tensor of fp32. None if there is none."""
        entry: Entry | None = self.header.tensors.get(name)
        if entry is None:
            return None
        if entry.kind != "F32" or len(entry.shape) != 1 or entry.shape[0] > MOST_FACTORS:
            raise self.wrong(f"tensor {name} is {entry.kind} {entry.shape}, a row of F32 was wanted")
        found = Spans().read(entry.file, entry.offset, entry.size).view("<f4")
        least, greatest = _FACTORS
        if not ((found >= least) & (found <= greatest)).all():
            raise self.wrong(f"tensor {name} has values that are no factors: from {least:g} to {greatest:g} they go")
        return [shortest(float(value)) for value in found]

    def wrong(self, what: str) -> SyscallError:
        return broken(f"broken GGUF file: {shown(self.header.path)}: {what}; copy or download it again")

    def refused(self, what: str) -> SyscallError:
        return SyscallError(
            Errno.ENOEXEC,
            f"architecture {self.architecture!r} of {self.header.path} is not supported: {what}",
        )


def shortest(value: float) -> float:
    """The decimal behind an fp32 number: 1e-05, not 9.999999747378752e-06."""
    single = np.float32(value)
    return float(str(single)) if float(single) == value else value

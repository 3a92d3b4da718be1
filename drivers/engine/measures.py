"""The numbers of a config.json, looked at before anything is built or allocated from them.

A configuration comes from a stranger, and building what it says may take gigabytes or hours; a kernel looks at a
program's headers likewise before it maps anything. Bounds are several times the greatest model that has been published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from syscalls.errno import Errno, SyscallError

MOST_ID = (1 << 31) - 1
_LAYERS, _WIDTH, _MIDDLE, _HEADS, _POSITIONS = 1024, 1 << 17, 1 << 20, 1 << 12, 1 << 27
_VOCABULARY, _EXPERTS = 1 << 24, 1 << 13
_PARAMETERS = 1 << 43  # in the layers' matrices
_NUMBER = 1 << 53  # of any whole number: JSON's own limit
_DEPTH = 64

# field -> the least and the most it may be; the names that several families give to the same thing
BOUNDS: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), (1, _LAYERS)),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim"), (1, _WIDTH)),
    **dict.fromkeys(
        ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "moe_intermediate_size"), (0, _MIDDLE)
    ),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), (1, _HEADS)),
    "num_key_value_heads": (1, _HEADS),
    "head_dim": (1, _WIDTH),
    "vocab_size": (1, _VOCABULARY),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), (1, _POSITIONS)),
    "original_max_position_embeddings": (1, _POSITIONS),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), (0, _EXPERTS)
    ),
}
_IDS = ("eos_token_id", "bos_token_id", "pad_token_id")


def check(config: Mapping[str, Any], where: str) -> None:
    """Raises EIO naming the first field whose number cannot be; `where` names the configuration."""

    def wrong(name: str, value: object, wanted: str) -> SyscallError:
        shown = (
            str(value)
            if not isinstance(value, int) or abs(value) < _NUMBER
            else f"about 2^{value.bit_length()}"
        )
        return SyscallError(Errno.EIO, f"{where}: {name} is {shown[:40]}, {wanted} was wanted")

    for name, value in _leaves(config, "", where):
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        plain = name.rpartition(".")[2]
        if plain.split("[")[0] in _IDS:
            if not -1 <= value <= MOST_ID:
                raise wrong(name, value, f"an id from 0 to {MOST_ID:,}")
        elif plain in BOUNDS:
            least, most = BOUNDS[plain]
            if not least <= value <= most:
                raise wrong(name, value, f"a number from {least:,} to {most:,}")
        elif abs(value) > _NUMBER:
            raise wrong(name, value, f"a number of at most {_NUMBER:,}")
    _check_product(config, wrong)


def _check_product(config: Mapping[str, Any], wrong: Any) -> None:
    """Each number may be in bounds and the whole still be absurd."""

    def first(*names: str) -> int:
        found = [config[name] for name in names if isinstance(config.get(name), int)]
        return int(found[0]) if found else 1

    layers = first("num_hidden_layers", "n_layer", "n_layers", "num_layers")
    width = first("hidden_size", "n_embd", "d_model", "dim")
    middle = first("moe_intermediate_size", "intermediate_size", "n_inner", "ffn_dim")
    experts = max(1, first("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"))
    total = layers * width * max(middle * experts, width)
    if total > _PARAMETERS:
        raise wrong("the number of parameters", total, f"at most {_PARAMETERS:,}")


def _leaves(value: Any, name: str, where: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every value with the path to it."""
    if depth > _DEPTH:
        raise SyscallError(Errno.EIO, f"{where}: {name[:40]} is nested more than {_DEPTH} deep")
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key), where, depth + 1)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{name}[{number}]", where, depth + 1)
    else:
        yield name, value

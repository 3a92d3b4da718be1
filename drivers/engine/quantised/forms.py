"""Which native form holds a quantised checkpoint's integers as they are, told by its configuration alone.

The answer is needed before any weight is read: it is the dtype in which such a model runs if nobody names one. Reading
checks each layer again (Stored.packed); a layer that does not fit is dequantised and quantised anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GROUP = 32  # inputs that share a scale in the native forms: a group is a multiple of it, or the whole column
_BITS = {4: "int4", 8: "int8"}


def native_form(settings: Mapping[str, Any]) -> str:
    """int8 or int4, or "" where no form of the native decoder holds the integers, or where they are floats. Never
    raises: opening the weights refuses odd settings."""
    read = _METHODS.get(str(settings.get("quant_method")))
    return read(settings) if read else ""


def _form(bits: object, group: object) -> str:
    if not isinstance(bits, int) or not (group is None or isinstance(group, int)):
        return ""
    fits = group is None or group == -1 or (group > 0 and group % GROUP == 0)
    return _BITS.get(bits, "") if fits else ""


def _gptq(settings: Mapping[str, Any]) -> str:
    if settings.get("desc_act") and settings.get("group_size") != -1:
        return ""  # inputs of a group lie apart
    return _form(settings.get("bits"), settings.get("group_size", 128))


def _awq(settings: Mapping[str, Any]) -> str:
    bits = settings.get("bits", settings.get("w_bit"))
    group = settings.get("group_size", settings.get("q_group_size"))
    return _form(4 if bits is None else bits, 128 if group is None else group)


def _auto_round(settings: Mapping[str, Any]) -> str:
    return _form(settings.get("bits"), settings.get("group_size", 128))


def _bitsandbytes(settings: Mapping[str, Any]) -> str:
    return "int8" if settings.get("load_in_8bit") or settings.get("_load_in_8bit") else ""


def _compressed_tensors(settings: Mapping[str, Any]) -> str:
    groups = settings.get("config_groups")
    found = set()
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            continue
        strategy = weights.get("strategy")
        if weights.get("type", "int") != "int" or weights.get("actorder") in ("group", "dynamic", True):
            return ""
        size = weights.get("group_size") if strategy in ("group", None) else None
        found.add(_form(8 if strategy == "block" else weights.get("num_bits", 8), size))
    return found.pop() if len(found) == 1 else ""


def _torchao(settings: Mapping[str, Any]) -> str:
    kind = settings.get("quant_type")
    kind = kind.get("default") if isinstance(kind, dict) else None
    if not isinstance(kind, dict):
        return ""
    if str(kind.get("_type")).startswith("Int8"):
        return "int8"
    data = kind.get("_data")
    dtype = data.get("weight_dtype") if isinstance(data, dict) else None
    name = dtype.get("_data") if isinstance(dtype, dict) else None
    return str(name) if kind.get("_type") == "IntxWeightOnlyConfig" and name in ("int4", "int8") else ""


_METHODS = {
    "auto-round": _auto_round,
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed_tensors,
    "gptq": _gptq,
    "torchao": _torchao,
}

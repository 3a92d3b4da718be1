"""Opening a model's files: its configuration, and its weights, whatever form they have.

Only this module knows which forms there are; a kind of image sees a dictionary and `llmasos.modelfiles.tensors.Weights`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from llmasos.drivers.engine import quantised
from llmasos.modelfiles import gguf, gguf_items, source
from llmasos.modelfiles.gguf_weights import GGUFWeights
from llmasos.modelfiles.tensors import SafetensorsWeights, Weights

_GGUF_FORMS = {"Q8_0": "int8", "Q4_0": "int4"}  # where all matrices of the layers are of that kind
_log = logging.getLogger(__name__)


def read_config(place: Path) -> dict[str, Any]:
    """The configuration of the model in `place`. Raises EIO, ENOEXEC."""
    raw = source.read_config(place)
    if not place.is_file() and (settings := quantised.settings(place, raw)) is not None:
        quantised.check(settings)
    return raw


def native_form(place: Path, raw: dict[str, Any]) -> str:
    """The native form that holds the integers of a quantised checkpoint as they are; "" where none does."""
    if place.is_file():
        kinds = gguf.read_header(place).layer_kinds()
        return _GGUF_FORMS.get(kinds[0], "") if len(kinds) == 1 else ""
    settings = quantised.settings(place, raw)
    return "" if settings is None else quantised.native_form(settings)


def stored(place: Path, raw: dict[str, Any], dtype: str, keeps: bool) -> str:
    """How quantised files hold the weights, and how a kind that `keeps` integers, or does not, runs them in `dtype`; "":
    they are not quantised."""
    if place.is_file():
        kinds = gguf.read_header(place).layer_kinds()
        if not kinds or kinds[0] in gguf_items.PLAIN:
            return ""
        method = f"GGUF {kinds[0]}"
    else:
        settings = quantised.settings(place, raw)
        if settings is None:
            return ""
        method = settings["quant_method"]
    as_it_is = keeps and dtype == native_form(place, raw)
    return f"{method}, {'as it is' if as_it_is else 'dequantised'}"


def open_weights(place: Path, raw: dict[str, Any], dtype: str) -> Weights:
    """The weights of the model in `place`, whose configuration is `raw`, to be run in `dtype`. Raises EIO, ENOEXEC,
    ENOTSUP."""
    if place.is_file():
        return GGUFWeights(gguf.read_header(place))
    weights = SafetensorsWeights(place)
    if quantised.settings(place, raw) is None:
        return weights
    opened = quantised.open_quantised(place, raw, weights)
    _log.info("%s: its weights are stored as %s, and wanted as %s", place, opened.form, dtype)
    return opened

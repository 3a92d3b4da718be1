"""Opening a model's files: its configuration, checked, and its weights, whatever form they have.

The one place that knows which forms there are; who runs a model sees a dictionary and `modelfiles.tensors.Weights`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from drivers.engine import measures, quantised
from modelfiles import source
from modelfiles.tensors import SafetensorsWeights, Weights

_log = logging.getLogger(__name__)


def read_config(place: Path) -> dict[str, Any]:
    """The configuration of the model in `place`. Raises EIO, ENOEXEC."""
    raw = source.read_config(place)
    measures.check(raw, str(place / "config.json"))
    if (settings := quantised.settings(place, raw)) is not None:
        quantised.check(settings)
    return raw


def native_form(place: Path, raw: dict[str, Any]) -> str:
    """The native form that holds the integers of a quantised checkpoint as they are; "" where none does."""
    settings = quantised.settings(place, raw)
    return "" if settings is None else quantised.native_form(settings)


def stored(place: Path, raw: dict[str, Any], dtype: str, keeps: bool) -> str:
    """How quantised files hold the weights, and what a kind that `keeps` integers, or not, makes of them in `dtype`; "":
    they are not quantised."""
    settings = quantised.settings(place, raw)
    if settings is None:
        return ""
    as_it_is = keeps and dtype == quantised.native_form(settings)
    return f"{settings['quant_method']}, {'as it is' if as_it_is else 'dequantised'}"


def open_weights(place: Path, raw: dict[str, Any], dtype: str) -> Weights:
    """The weights of the model in `place`, whose configuration is `raw`, to be run in `dtype`. Raises EIO, ENOTSUP."""
    weights = SafetensorsWeights(place)
    if quantised.settings(place, raw) is None:
        return weights
    opened = quantised.open_quantised(place, raw, weights)
    _log.info("%s: its weights are stored as %s, and wanted as %s", place, opened.form, dtype)
    return opened

"""Opening a model's files: its configuration, and its weights, whatever form they have.

The one place that knows which forms there are; who runs a model sees a dictionary and `modelfiles.tensors.Weights`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drivers.engine.layout import refuse
from modelfiles import source
from modelfiles.tensors import SafetensorsWeights, Weights


def read_config(place: Path) -> dict[str, Any]:
    """The configuration of the model in `place`. Raises EIO, ENOEXEC."""
    raw = source.read_config(place)
    if quantisation := raw.get("quantization_config"):
        method = quantisation.get("quant_method", "unknown") if isinstance(quantisation, dict) else "unknown"
        raise refuse(
            raw["model_type"],
            f"its weights are quantised ({method}); use the unquantised model with dtype int8",
        )
    return raw


def open_weights(place: Path, raw: dict[str, Any]) -> Weights:
    """The weights of the model in `place`, whose configuration is `raw`. Raises EIO, ENOTSUP."""
    return SafetensorsWeights(place)

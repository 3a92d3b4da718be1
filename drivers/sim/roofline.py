"""The cost of a step on a simulated device, in seconds.

The roofline model (Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for multicore
architectures", CACM 52(4), 2009): work takes the longer of its arithmetic at peak speed and its bytes at peak
bandwidth. For a step with runs r of n(r) tokens after p(r) cached ones, over models m:

    seconds = overhead + swapped bytes / link + copies' bytes / bandwidth
              + max(flops / peak, bytes / bandwidth, streamed bytes / link)
    flops   = sum over r of 2 x params x n + (KV bytes of a token) x (sum of p + 1 ... p + n)
    bytes   = sum over m of weights (read once, however many runs) + sum over r of (KV bytes of a token) x (p + 2n)

The arithmetic of attention is one multiply-add for each two-byte element of K and V that a token looks at; a run
reads its cached KV once, writes its new tokens' KV once and reads that back once.
"""

from __future__ import annotations

from collections.abc import Iterable

from llmasos.drivers.protocol import BLOCK_TOKENS
from llmasos.drivers.sim.spec import DeviceSpec, ModelSpec


def step_seconds(
    device: DeviceSpec,
    runs: Iterable[tuple[ModelSpec, int, int]],
    copied: int,
    swapped: int = 0,
    streamed: int = 0,
) -> tuple[float, dict[str, float]]:
    """Seconds of a step, whole and by phase. `runs` are (model, cached tokens, new tokens); `copied`, `swapped` (to the
    second tier and from there) and `streamed` (weights that are not kept in memory) are in bytes."""
    flops, moved = 0.0, 0.0
    models: set[ModelSpec] = set()
    for model, cached, new in runs:
        token_bytes = model.frame_bytes / BLOCK_TOKENS
        flops += 2.0 * model.params * new + token_bytes * new * (cached + (new + 1) / 2)
        moved += token_bytes * (cached + 2 * new)
        if model not in models:
            models.add(model)
            moved += model.weight_bytes
    phases = {
        "prepare": device.overhead,
        "swap": swapped / device.link,
        "copy": 2 * copied / device.bandwidth,  # read and written
        "model": max(flops / device.flops, moved / device.bandwidth, streamed / device.link),
    }
    return sum(phases.values()), phases


def load_seconds(device: DeviceSpec, model: ModelSpec) -> float:
    """Seconds to bring a model's weights over the link."""
    return model.weight_bytes / device.link

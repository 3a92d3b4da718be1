"""Small devices and models for simulations: steps of about a millisecond, models of a few kilobytes."""

from __future__ import annotations

from typing import Any

from llmasos.kernel.events import (
    DeviceConfig,
    KernelConfig,
)

SMALL = {  # a device whose steps take about a millisecond, and models of a few kilobytes
    "params": "1e6",
    "layers": "2",
    "kv_dim": "4",
    "vocab": "1000",
    "context": "512",
    "overhead": "0.001",
    "memory": "1g",
    "time_scale": "0",
}
FRAME_BYTES = 16 * 2 * 2 * 4 * 2  # of SMALL
DEVICE_FIELDS = ("policy", "victims", "evictions", "max_runs", "step_tokens", "weight_bytes")


def slots(count: int) -> str:
    """The option `swap` of a simulated device whose first image gets `count` places: an image gets half of the tier."""
    return str(2 * count * FRAME_BYTES)


def small_config(
    frames: int = 64,
    *,
    options: dict[str, str] | None = None,
    others: dict[str, str] | None = None,
    devices: int = 1,
    **config: Any,
) -> KernelConfig:
    """A kernel with small simulated devices sim0, sim1, ... whose models get `frames` frames each. `others` are options
    of all but the first.

    `config` are fields of DeviceConfig (policy, max_runs, step_tokens) or of KernelConfig.
    """
    device = {k: config.pop(k) for k in DEVICE_FIELDS if k in config}
    return KernelConfig(
        devices=[
            DeviceConfig(
                f"sim{i}",
                "sim",
                kv_bytes=16 * frames * FRAME_BYTES,
                image_kv_bytes=frames * FRAME_BYTES,
                options={**SMALL, **(options or {}), **((others or {}) if i else {})},
                **device,
            )
            for i in range(devices)
        ],
        models={"tiny": "sim"},
        version="test",
        **config,
    )

"""Small devices and models for simulations: steps of about a millisecond, models of a few kilobytes."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

import msgspec

from llmasos.kernel.events import (
    DeviceConfig,
    KernelConfig,
)
from llmasos.simulator.border import known, options, wants, whole
from llmasos.syscalls.constraint import sentence
from llmasos.syscalls.errno import Errno

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
_FROM_ONE = ("quantum", "max_processes", "max_crashes", "trace_events", "log_lines")
DEVICE_FIELDS = ("policy", "victims", "evictions", "max_runs", "step_tokens", "weight_bytes")


@wants(count=whole(0))
def slots(count: int) -> str:
    """The option `swap` of a simulated device whose first image gets `count` places: an image gets half of the tier."""
    return str(2 * count * FRAME_BYTES)


@wants(frames=whole(1), devices=whole(1, 64), options=options, others=options)
def small_config(
    frames: int = 64,
    *,
    options: Mapping[str, str | float] | None = None,
    others: Mapping[str, str | float] | None = None,
    devices: int = 1,
    **config: Any,
) -> KernelConfig:
    """A kernel with small simulated devices sim0, sim1, ... whose models get `frames` frames each. `others` are options
    of all but the first.

    `config` are fields of DeviceConfig (policy, max_runs, step_tokens) or of KernelConfig. Raises EINVAL, which names the
    argument.
    """
    _check(config)
    options, others = _texts(options), _texts(others)
    device = {k: config.pop(k) for k in DEVICE_FIELDS if k in config}
    return KernelConfig(
        devices=[
            DeviceConfig(
                f"sim{i}",
                "sim",
                kv_bytes=16 * frames * FRAME_BYTES,
                image_kv_bytes=frames * FRAME_BYTES,
                options={**SMALL, **options, **(others if i else {})},
                **device,
            )
            for i in range(devices)
        ],
        models={"tiny": "sim"},
        version="test",
        **config,
    )


def _check(config: Mapping[str, Any]) -> None:
    """EINVAL for a keyword that is none, or whose value cannot be."""
    hints = {key: typing.get_type_hints(DeviceConfig)[key] for key in DEVICE_FIELDS}
    hints |= {key: hint for key, hint in typing.get_type_hints(KernelConfig).items() if key not in ("devices", "version")}
    for key, value in config.items():
        if key not in hints:
            raise known(key, ["frames", "devices", "options", "others", *hints], "simulate()")
        try:
            msgspec.convert(value, hints[key], from_attributes=True)
        except msgspec.ValidationError as error:
            raise Errno.EINVAL(f"simulate() {key}: {sentence(str(error), hints[key], value)}") from None
        if isinstance(value, int | float) and not isinstance(value, bool) and not value >= (key in _FROM_ONE):
            least = int(key in _FROM_ONE)
            raise Errno.EINVAL(f"simulate() {key}: {least} or more, found {value}")


def _texts(options: Mapping[str, str | float] | None) -> dict[str, str]:
    return {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in (options or {}).items()}

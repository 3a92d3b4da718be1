"""Samples for tests of `top`, made of records as the kernel would give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmasos.syscalls.records import (
    BootInfo,
    DeviceInfo,
    GroupInfo,
    GroupSettings,
    Kind,
    ModelInfo,
    PressureInfo,
    ProcessInfo,
    State,
    Stats,
    Tier,
    Usage,
    WaitFor,
)
from llmasos.userland.top.sample import Sample

CALM = PressureInfo([0.0, 0.0, 0.0], 0.0, [0.0, 0.0, 0.0], 0.0)
RESOURCES = ("cpu", "memory", "weights", "quota")


def agent(pid: int, name: str, *, computed: int = 0, decoded: int = 0, ppid: int = 3, **fields: Any) -> ProcessInfo:
    """An LLM process that waits for input, unless fields say otherwise."""
    waits = fields.pop("waits", {})
    usage = Usage(computed=computed, decoded=decoded, waits=waits, device_seconds=fields.pop("device_seconds", 0.0))
    given: dict[str, Any] = {
        "state": State.BLOCKED,
        "wait": WaitFor.INPUT,
        "group": "/users/ada",
        "model": "tiny",
        "device": "cpu0",
    }
    given |= {"context": 1000, "length": computed, "pages": -(-computed // 16)} | fields
    return ProcessInfo(pid=pid, ppid=ppid, kind=Kind.LLM, name=name, usage=usage, **given)


def program(pid: int, name: str, group: str = "/users/ada", kind: Kind = Kind.PROGRAM) -> ProcessInfo:
    return ProcessInfo(
        pid=pid, ppid=1, kind=kind, name=name, state=State.BLOCKED, wait=WaitFor.INPUT, group=group, os_pid=99,
        rss=20 << 20, cpu_seconds=1.5,
    )  # fmt: skip


def group(path: str, **fields: Any) -> GroupInfo:
    given: dict[str, Any] = {
        "settings": GroupSettings(), "kv": 0, "swap": 0, "weights": 0, "tokens": 0, "pids": 1, "processes": [],
        "events": {}, "pressure": dict.fromkeys(RESOURCES, CALM),
    }  # fmt: skip
    return GroupInfo(path=path, **(given | fields))


def device(name: str = "cpu0", busy: float = 0.0, **fields: Any) -> DeviceInfo:
    given: dict[str, Any] = {
        "kind": "cpu", "state": "up", "policy": "fair", "kv_bytes": 64 << 20, "weight_bytes": 1 << 30,
        "tiers": [Tier("ram", 8 << 30, 0.0), Tier("disk", 1 << 30, 0.0)], "busy_seconds": busy,
    }  # fmt: skip
    return DeviceInfo(name=name, **(given | fields))


def model(name: str = "tiny", **fields: Any) -> ModelInfo:
    given: dict[str, Any] = {
        "path": f"/models/{name}", "device": "cpu0", "state": "resident", "frames": 100, "frames_free": 60,
        "frames_cached": 10, "block_bytes": 65536, "slots": 50, "slots_free": 40, "processes": 2,
        "resident_bytes": 13 << 20,
    }  # fmt: skip
    return ModelInfo(name=name, **(given | fields))


def sample(
    at: float,
    rows: Sequence[ProcessInfo] = (),
    *,
    os_pid: int = 7,
    groups: Sequence[GroupInfo] = (),
    devices: Sequence[DeviceInfo] | None = None,
    models: Sequence[ModelInfo] | None = None,
    **counters: Any,
) -> Sample:
    """A sample `at` seconds after boot. init, a driver and a shell are there anyway."""
    devices = [device()] if devices is None else list(devices)
    boot = BootInfo("0.1.0", 1, "/run/llmasos", os_pid, at, 9, "tiny", "cpu0", ["fair"], devices)
    given: dict[str, Any] = {
        "calls": 10, "errors": 0, "rejected_frames": 0, "by_state": {"blocked": len(rows) + 3}, "spawned": 2, "exited": 0,
        "tokens_fed": 0, "tokens_computed": 0, "tokens_reused": 0, "tokens_decoded": 0, "steps": 0, "preemptions": 0,
        "driver_restarts": 0, "calls_by_name": {},
    }  # fmt: skip
    stats = Stats(uptime=at, processes=len(rows) + 3, **(given | counters))
    always = [
        program(1, "init", "/system", Kind.INIT),
        program(2, "driver:cpu0", "/system", Kind.DRIVER),
        program(3, "shell"),
    ]
    tree = [group("/"), group("/system"), group("/users"), group("/users/ada"), *groups]
    return Sample(boot, stats, [model()] if models is None else list(models), tree, [*always, *rows])

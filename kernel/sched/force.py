"""Which policies are in force on a device: they can be changed at any moment, and those that are faulty are taken out.

As in Linux's sched_ext, a policy of the user's own, whose name has a colon, goes on only while it behaves. Its guard
(kernel/edge/guards.py) says what it did wrong. Then the last one that was good goes on, at the latest the one of the
tables.
"""

from __future__ import annotations

from llmasos.kernel.clock import nanoseconds
from llmasos.kernel.memory.evictions import Evictions
from llmasos.kernel.memory.victims import Victims
from llmasos.kernel.objects.device import Device
from llmasos.kernel.sched.policy import Policy
from llmasos.kernel.sched.run_queue import RunQueue
from llmasos.kernel.state import System

DEFAULTS = {"policy": "fair", "victims": "cost", "evictions": "lru"}
_WHAT = {"policy": "scheduling policy", "victims": "policy for victims", "evictions": "policy for evictions"}
_KEPT = 16  # names of good policies


def reschedule(system: System, device: Device, *, max_runs: int = 0, step_tokens: int = 0, **names: str) -> None:
    """Change how a device is scheduled while it runs; arguments that are empty or 0 leave things as they are. `names` are
    those of a `policy`, of `victims` and of `evictions`. Raises SyscallError for a name that is none, before anything is
    changed."""
    for kind, policy in [(kind, _make(system, kind, name)) for kind, name in names.items() if name]:
        _change(system, device, kind, policy)
    config = device.config
    device.max_runs, config.max_runs = max_runs or device.max_runs, max_runs or config.max_runs
    device.step_tokens, config.step_tokens = step_tokens or device.step_tokens, step_tokens or config.step_tokens
    note(system, device)


def foreign(device: Device) -> bool:
    """Whether a policy in force is a module of the user's."""
    return any(":" in name for name in _names(device).values())


def note(system: System, device: Device) -> None:
    """The device is scheduled otherwise than configured, or by modules of the user's: the journal keeps that."""
    device.rescheduled = True
    system.journal.device_set(device)


def _names(device: Device) -> dict[str, str]:
    return {"policy": device.queue.policy.name, "victims": device.config.victims, "evictions": device.evictions.name}


def _make(system: System, kind: str, name: str) -> Policy | Victims | Evictions:
    if kind == "policy":
        return system.sources.scheduling(name, system.config.quantum)
    return system.sources.victims(name) if kind == "victims" else system.sources.evictions(name)


def _change(
    system: System, device: Device, kind: str, policy: Policy | Victims | Evictions, *, fault: bool = False
) -> None:
    """Put a policy in force, unless it is already. `fault`: it replaces a faulty one, which may have the same name."""
    old = _names(device)[kind]
    if policy.name == old and not fault:
        return
    if not fault:
        device.good = [*device.good[1 - _KEPT :], (kind, old)]
    system.log("info", f"{device.name}: {_WHAT[kind]} {old} -> {policy.name}")
    system.emit("sched.policy", device=device.name, detail=f"{kind} {old} -> {policy.name}")
    if isinstance(policy, Policy):
        for part, queue in enumerate(device.queues):
            one = system.sources.scheduling(policy.name, system.config.quantum) if part else policy
            device.queues[part] = RunQueue(one)
            for process in list(queue):
                queue.withdraw(process)
                device.queues[part].put(process)
    elif isinstance(policy, Victims):
        device.config.victims = policy.name
        for image in device.images.values():
            image.victims = system.sources.victims(policy.name)
            for process in image.holders.values():
                image.victims.came(process)
    else:
        device.evictions = policy


def take_out(system: System, device: Device) -> None:
    """Take out the policies that are faulty; the last good ones go on."""
    if not foreign(device):
        return
    policy = device.queue.policy
    policy.look(device, system.now, nanoseconds(system.config.aging_seconds))
    of_victims = next((image.victims.fault for image in device.images.values() if image.victims.fault), "")
    faults = {"policy": policy.fault, "victims": of_victims, "evictions": device.evictions.fault}
    for kind, fault in faults.items():
        if fault:
            text = f"{_WHAT[kind]} {_names(device)[kind]} is taken out: {fault}"
            system.log("error", f"{device.name}: {text}")
            system.emit("sched.fault", device=device.name, detail=text)
            last = next((good for good in reversed(device.good) if good[0] == kind), (kind, DEFAULTS[kind]))
            device.good = [good for good in device.good if good != last]
            _change(system, device, kind, _make(system, *last), fault=True)  # its text is known: it was made before
            note(system, device)

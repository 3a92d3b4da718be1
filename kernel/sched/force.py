"""Which policies are in force on a device: they can be changed at any moment, and those that are faulty are taken out.

As in Linux's sched_ext, a policy of the user's own goes on only while it behaves. Its guard (kernel/edge/policies.py)
says what it did wrong; that it starves a process is found here. Then the last one that was good goes on, at the latest
the one of the tables.
"""

from __future__ import annotations

from collections.abc import Callable

from llmasos.kernel.clock import nanoseconds
from llmasos.kernel.objects.device import Device
from llmasos.kernel.sched.run_queue import RunQueue
from llmasos.kernel.state import System
from llmasos.syscalls.errno import SyscallError

_LOOKS = 4  # for starved processes, in the time of ageing
_KEPT = 8  # names of good policies
_KINDS = "scheduling policy", "policy for victims", "policy for evictions"


def reschedule(
    system: System,
    device: Device,
    *,
    policy: str = "",
    victims: str = "",
    evictions: str = "",
    max_runs: int = 0,
    step_tokens: int = 0,
) -> None:
    """Change how a device is scheduled while it runs; arguments that are empty or 0 leave things as they are. Raises
    SyscallError for a policy that is not there or is none; then nothing is changed."""
    # All are made before the first is put in force.
    changes = [
        make(system, device, name)
        for make, name in zip((_policy, _victims, _evictions), (policy, victims, evictions), strict=True)
        if name
    ]
    for change in changes:
        change()
    device.config.max_runs = max_runs or device.config.max_runs
    device.config.step_tokens = step_tokens or device.config.step_tokens
    device.max_runs = max_runs or device.max_runs
    device.step_tokens = step_tokens or device.step_tokens
    note(system, device)


def foreign(device: Device) -> bool:
    """Whether a policy in force is a module of the user's."""
    return device.queue.policy.foreign or device.evictions.foreign or ":" in device.config.victims


def note(system: System, device: Device) -> None:
    """The device is scheduled otherwise than configured, or by modules of the user's: the journal keeps that."""
    device.rescheduled = True
    system.journal.device_set(device)


def _policy(system: System, device: Device, name: str) -> Callable[[], None]:
    policy = system.sources.scheduling(name, system.config.quantum)

    def change() -> None:
        old = device.queue
        if policy.name == old.policy.name and not old.policy.fault:
            return
        ready = list(old)
        device.queue = RunQueue(policy)
        for process in ready:
            old.withdraw(process)
            device.queue.put(process)
        _changed(system, device, 0, old.policy.name, policy.name, good=not old.policy.fault)

    return change


def _victims(system: System, device: Device, name: str) -> Callable[[], None]:
    one = {image.id: system.sources.victims(name) for image in device.images.values()}
    new = system.sources.victims(name).name

    def change() -> None:
        old, fault = device.config.victims, _fault_of_victims(device)
        if new == old and not fault:
            return
        device.config.victims = new
        for image in device.images.values():
            image.victims = one[image.id]
            for process in image.holders.values():
                image.victims.came(process)
        _changed(system, device, 1, old, new, good=not fault)

    return change


def _evictions(system: System, device: Device, name: str) -> Callable[[], None]:
    evictions = system.sources.evictions(name)

    def change() -> None:
        old, device.evictions = device.evictions, evictions
        if evictions.name != old.name or old.fault:
            _changed(system, device, 2, old.name, evictions.name, good=not old.fault)

    return change


def _changed(system: System, device: Device, kind: int, old: str, new: str, *, good: bool) -> None:
    if good:
        device.good[kind].append(old)
        del device.good[kind][:-_KEPT]
    system.log("info", f"{device.name}: {_KINDS[kind]} {old} -> {new}")
    system.emit("sched.policy", device=device.name, detail=f"{_KINDS[kind]} {old} -> {new}")


def take_out(system: System, device: Device) -> None:
    """Take out the policies that are faulty; the last good ones go on."""
    if not foreign(device):
        return
    policy = device.queue.policy
    if policy.foreign and not policy.fault:
        policy.fault = _starves(system, device)
    found = (
        (policy.name, policy.fault, _policy),
        (device.config.victims, _fault_of_victims(device), _victims),
        (device.evictions.name, device.evictions.fault, _evictions),
    )
    for kind, (name, fault, make) in enumerate(found):
        if not fault:
            continue
        system.log("error", f"{device.name}: {_KINDS[kind]} {name} is taken out: {fault}")
        system.emit("sched.fault", device=device.name, detail=f"{name}: {fault}")
        names = device.good[kind]
        while True:
            last = names.pop() if names else ("fair", "cost", "lru")[kind]
            try:
                make(system, device, last)()
                break
            except SyscallError as error:  # its file has gone meanwhile; those of the tables are always there
                system.log("warning", f"{device.name}: {last} cannot go on: {error.reason}")
        note(system, device)


def _fault_of_victims(device: Device) -> str:
    return next((image.victims.fault for image in device.images.values() if image.victims.fault), "")


def _starves(system: System, device: Device) -> str:
    """Whom the policy leaves ready beyond ageing, if that is not for lack of places. A round in which each that waits
    gets a quantum is allowed beside the time of ageing; and steps enough for a quantum must have passed since it was
    first noticed, so that a machine that was suspended proves nothing."""
    aging = nanoseconds(system.config.aging_seconds)
    if system.now < device.next_look or not len(device.queue) or not device.steps:
        return ""
    device.next_look = system.now + aging // _LOOKS
    first = min(device.queue, key=lambda process: (process.since, process.pid))
    rounds = 1 + len(device.queue) // device.max_runs
    waited = system.now - first.since
    if waited <= aging + device.busy // device.steps * system.config.quantum * rounds:
        return ""
    if device.doubt[:2] != (first.pid, first.since):
        device.doubt = first.pid, first.since, device.steps
    if device.steps - device.doubt[2] < system.config.quantum:
        return ""
    return f"it leaves process {first.pid} ready and unplanned for {waited / 1e9:.1f} s"

"""Scheduling a device otherwise while it runs."""

from __future__ import annotations

from llmasos.kernel.objects.device import Device
from llmasos.kernel.sched.policies import make_policy
from llmasos.kernel.sched.run_queue import RunQueue
from llmasos.kernel.state import System


def reschedule(system: System, device: Device, policy: str, max_runs: int, step_tokens: int) -> None:
    """Schedule a device otherwise; what is empty or 0 stays."""
    if policy and policy != device.queue.policy.name:
        ready = list(device.queue)
        device.queue, old = RunQueue(make_policy(policy, system.config.quantum)), device.queue
        for process in ready:
            old.withdraw(process)
            device.queue.put(process)
        system.log("info", f"{device.name}: scheduling policy {old.policy.name} -> {policy}")
    device.config.max_runs = max_runs or device.config.max_runs
    device.config.step_tokens = step_tokens or device.config.step_tokens
    device.max_runs = max_runs or device.max_runs
    device.step_tokens = step_tokens or device.step_tokens
    device.rescheduled = True
    system.journal.device_set(device)

"""What a scheduling policy is: a few small functions over a process, pure and replaceable at run time.

As in Linux's sched_class and the exercises of teaching kernels, a policy only orders processes of one class; classes,
batching, page shortage and ageing across classes are the planner's. To write one: subclass, return smaller keys for
processes that go first, and load it from its file (docs/policies.md). Keys, and all that they are made of, should be
integers: floats are rounded otherwise by other machines, and the same events must give the same order everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmasos.kernel.objects.process import LLMProcess

if TYPE_CHECKING:
    from llmasos.kernel.objects.device import Device


class Policy:
    """By default, processes are served in the order in which they woke. The state of a process is in
    `process.policy_state`; it is None until this policy's `woke` is called first."""

    name = "policy"
    fault = ""  # of a module of the user's: why its guard (kernel/edge/guards.py) lets it go on no longer

    def __init__(self, quantum: int) -> None:
        self.quantum = quantum  # tokens
        self._stamp = 0

    def stamp(self) -> int:
        """A number greater than all before it: the tail of a queue."""
        self._stamp += 1
        return self._stamp

    def woke(self, process: LLMProcess) -> None:
        """The process was idle and wants the device (or the policy was just put in force)."""
        process.policy_state = self.stamp()

    def key(self, process: LLMProcess) -> int:
        """Its place among the ready processes of its class; the smallest goes first. Asked each time it is queued."""
        stamp: int = process.policy_state
        return stamp

    def planned(self, first: LLMProcess, waiting: bool) -> None:
        """A step begins; `first` is its first process by class and key. `waiting`: others had to stay behind."""

    def ran(self, process: LLMProcess, tokens: int) -> None:
        """A step has computed this many tokens of the process."""

    def look(self, device: Device, now: int, aging: int) -> None:
        """For guards: see whether it starves somebody on its device, beyond `aging` nanoseconds."""

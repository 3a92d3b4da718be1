"""Policies in a simulation: names of the kernel's tables, classes of one's own, or `/PATH/FILE.py:CLASS`.

They stand in the same guards as on a running kernel, which take no time here. A faulty one ends the simulation with
PolicyFault, whose cause is what the policy raised; a `forgiving` simulation takes it out, as a running kernel does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmasos.kernel.edge.guards import GuardedEvictions, GuardedVictims, Untimed
from llmasos.kernel.edge.policies import Modules, check_class
from llmasos.kernel.edge.standing import Standing
from llmasos.kernel.memory.evictions import EVICTIONS, Evictions
from llmasos.kernel.memory.victims import VICTIMS, Victims
from llmasos.kernel.sched.policies import POLICIES
from llmasos.kernel.sched.policy import Policy
from llmasos.simulator.border import wanted
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.policy_file import located_policy

KINDS: dict[str, type[Any]] = {"policy": Policy, "victims": Victims, "evictions": Evictions}


class Classes(Modules):
    """Where a simulated kernel's policies come from."""

    def __init__(self, *, forgiving: bool = False) -> None:
        standing = Standing(clock=lambda: 0.0)  # the hour of the day is no part of a simulation
        super().__init__(None, Untimed(), standing, strict=not forgiving)
        self._given: dict[str, type[Any]] = {}

    def known(self) -> list[str]:
        return [*super().known(), *(name for name, cls in self._given.items() if issubclass(cls, Policy))]

    def add(self, cls: type[Any]) -> str:
        """Make a class known; returns the name that it has from here on: its own, with a colon before it, as the name of
        every policy has one that is not the kernel's."""
        base = next((base for base in KINDS.values() if issubclass(cls, base)), None)
        if base is None or cls in (*KINDS.values(), *POLICIES.values(), *VICTIMS.values(), *EVICTIONS.values()):
            raise Errno.EINVAL(f"{cls.__name__} is no Policy, Victims or Evictions of your own; subclass one of these")
        name = f":{cls.__name__}"
        check_class(cls, base, name)
        self._given[name] = cls
        return name

    def named(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a configuration, with names for classes and whole paths for files."""
        return {key: self._name(key, value) if key in KINDS else value for key, value in fields.items()}

    def _name(self, key: str, value: str | type[Any]) -> str:
        if isinstance(value, str):
            return located_policy(value)
        if not isinstance(value, type):
            raise wanted(key, "a policy's name, a class of your own, or FILE.py:CLASS", value)
        if not issubclass(value, KINDS[key]):
            raise Errno.EINVAL(f"{value.__name__} is no {KINDS[key].__name__}, which `{key}` wants; subclass that")
        return self.add(value)

    def scheduling(self, name: str, quantum: int) -> Policy:
        cls = self._given.get(name)
        return super().scheduling(name, quantum) if cls is None else self.guarded(cls, name, quantum)

    def victims(self, name: str) -> Victims:
        cls = self._given.get(name)
        return super().victims(name) if cls is None else GuardedVictims(self.guard(cls, name))

    def evictions(self, name: str) -> Evictions:
        cls = self._given.get(name)
        return super().evictions(name) if cls is None else GuardedEvictions(self.guard(cls, name))

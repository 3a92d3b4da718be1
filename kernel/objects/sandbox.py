"""Sandboxes: endpoints of the kernel at which programs are confined, whatever they say.

A program that is to be restricted runs where the host shows it nothing else of the kernel than such an endpoint: a socket
in a directory of its own, which the edge makes (kernel/edge/entrances.py). Who attaches there gets what the starter has
granted the sandbox, and nothing besides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from llmasos.kernel.objects.process import Program
from llmasos.kernel.objects.request import Channel


@dataclass(slots=True, eq=False)
class Sandbox:
    """`number` is drawn by the edge, and is the name of its directory."""

    number: int
    starter: Program
    directory: str = ""  # where its socket is; empty: there is none yet
    trouble: str = ""  # why there can be none
    opened: Channel = field(default_factory=Channel)  # woken when there is one, or can be none
    programs: dict[int, Program] = field(default_factory=dict)  # that have come by it, by pid


class Sandboxes:
    """All of them, by number."""

    def __init__(self) -> None:
        self._all: dict[int, Sandbox] = {}
        self.refused = 0
        self.changed: dict[int, Sandbox | None] = {}  # that the journal has to be told of; None: it is gone

    def __len__(self) -> int:
        return len(self._all)

    def __bool__(self) -> bool:
        return bool(self._all)

    def __iter__(self) -> Iterator[Sandbox]:
        return iter(self._all.values())

    def get(self, number: int) -> Sandbox | None:
        return self._all.get(number)

    def of(self, program: Program) -> list[Sandbox]:
        """Those that a program has started."""
        return [one for one in self._all.values() if one.starter is program]

    def add(self, sandbox: Sandbox) -> None:
        self._all[sandbox.number] = self.changed[sandbox.number] = sandbox

    def remove(self, sandbox: Sandbox) -> None:
        del self._all[sandbox.number]
        self.changed[sandbox.number] = None

    @property
    def most(self) -> int:
        """The most that one program has."""
        return max((len(self.of(one.starter)) for one in self), default=0)

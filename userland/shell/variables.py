"""What a shell knows by name: variables, arguments, functions, aliases, and the switches of `set`.

A subshell (a member of a pipeline, `(...)`, `$(...)`) has a copy, so that what it sets is its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

from llmasos.userland.shell.tree import Node

SWITCHES = {"e": "errexit", "x": "xtrace"}
"""The switches that `set` takes by a letter; `pipefail` has a name only."""
NAMES = (*SWITCHES.values(), "pipefail")


@dataclass
class Variables:
    """`status` is `$?`, `last` is `$!` (a pid, or the number of a job)."""

    values: dict[str, str] = field(default_factory=dict)
    exported: set[str] = field(default_factory=set)
    arguments: list[str] = field(default_factory=list)
    name: str = "llmasos"  # $0
    functions: dict[str, Node] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=lambda: {"quit": "exit", "?": "help", ".": "source"})
    switches: set[str] = field(default_factory=set)
    status: int = 0
    last: str = ""

    def copy(self) -> Variables:
        """A subshell's."""
        return replace(
            self,
            values=dict(self.values),
            exported=set(self.exported),
            arguments=list(self.arguments),
            functions=dict(self.functions),
            aliases=dict(self.aliases),
            switches=set(self.switches),
        )

    def get(self, name: str) -> str | None:
        """The value of a variable or parameter; None if it is not set. What is not set here is the environment's."""
        match name:
            case "?":
                return str(self.status)
            case "$":
                return str(os.getpid())
            case "!":
                return self.last
            case "#":
                return str(len(self.arguments))
            case "@" | "*":
                return " ".join(self.arguments)
        if name.isdigit():
            if name == "0":
                return self.name
            return self.arguments[int(name) - 1] if int(name) <= len(self.arguments) else None
        return self.values.get(name, os.environ.get(name))

    def environment(self) -> dict[str, str]:
        """What a program of the host gets: the environment with what was exported."""
        given = {name: self.values[name] for name in self.exported if name in self.values}
        given |= {name: value for name, value in self.values.items() if name in os.environ}
        return {**os.environ, **given}

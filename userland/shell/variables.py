"""What a shell knows by name: variables, arguments, functions, aliases, and the switches of `set`.

A subshell (a member of a pipeline, `(...)`, `$(...)`) has a copy, so that what it sets is its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

from llmasos.userland.shell.tree import Node

SWITCHES = {"e": "errexit", "u": "nounset", "x": "xtrace"}
"""The switches that `set` takes by a letter; `pipefail` has a name only."""
NAMES = (*SWITCHES.values(), "pipefail")


@dataclass
class Variables:
    """`status` is `$?`, `last` is `$!` (a pid, or the number of a job). `scopes`: for each function that runs, what its
    `local` variables were before. `traps`: what `trap` runs, by EXIT and INT; empty: INT is ignored."""

    values: dict[str, str] = field(default_factory=dict)
    exported: set[str] = field(default_factory=set)
    arguments: list[str] = field(default_factory=list)
    name: str = "llmasos"  # $0
    functions: dict[str, Node] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=lambda: {"quit": "exit", "?": "help", ".": "source", ":": "true"})
    switches: set[str] = field(default_factory=set)
    scopes: list[dict[str, str | None]] = field(default_factory=list)
    traps: dict[str, str] = field(default_factory=dict)
    status: int = 0
    last: str = ""

    def copy(self) -> Variables:
        """A subshell's. What `trap` runs stays the shell's; what it ignores is ignored here too."""
        return replace(
            self,
            values=dict(self.values),
            exported=set(self.exported),
            arguments=list(self.arguments),
            functions=dict(self.functions),
            aliases=dict(self.aliases),
            switches=set(self.switches),
            scopes=[dict(scope) for scope in self.scopes],
            traps={name: text for name, text in self.traps.items() if not text},
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
            case "PPID":
                return str(os.getppid())
            case "#":
                return str(len(self.arguments))
            case "@" | "*":
                return " ".join(self.arguments)
        if name.isdigit():
            if name == "0":
                return self.name
            return self.arguments[int(name) - 1] if int(name) <= len(self.arguments) else None
        return self.values.get(name, os.environ.get(name))

    def keep(self, name: str) -> None:
        """`local`: the function that runs gives the variable its present value back when it ends."""
        self.scopes[-1].setdefault(name, self.values.get(name))

    def put_back(self, before: dict[str, str | None]) -> None:
        """Set variables as they were; None: not at all."""
        for name, value in before.items():
            if value is None:
                self.values.pop(name, None)
            else:
                self.values[name] = value

    def environment(self) -> dict[str, str]:
        """What a program of the host gets: the environment with what was exported."""
        given = {name: self.values[name] for name in self.exported if name in self.values}
        given |= {name: value for name, value in self.values.items() if name in os.environ}
        return {**os.environ, **given}

"""compact: a conversation near its window goes on."""

from __future__ import annotations

from llmasos.syscalls.printable import printable
from llmasos.userland.shell.grammar import Line
from llmasos.userland.shell.session import Session, does

KEEP = 2  # turns that stay, by default


@does("compact")
def _compact(shell: Session, line: Line) -> None:
    agent = shell.agent(shell.pid(line.text("PID"), agent=True))
    before, keep = shell.info(agent.pid), line.integer("--keep", KEEP, least=0)
    length = agent.compact(drop=line.has("--drop"), keep=keep)
    name = printable(before.name, one_line=True)
    how = "older turns dropped" if line.has("--drop") else "older turns as the model sums them up"
    shell.screen.line(f"[{agent.pid}] {name}: {length} of {before.context} tokens, they were {before.length} ({how})")

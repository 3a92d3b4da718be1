"""The commands that talk: spawn, say, chat. In a pipeline an answer is bare text, and what comes in is said
behind TEXT."""

from __future__ import annotations

import re

from llmasos.modelfiles.called import called
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import Limits, State
from llmasos.userland.programs import ps
from llmasos.userland.programs.listing import document
from llmasos.userland.sdk.actions import MAX_TOKENS
from llmasos.userland.shell.arrival import arrival
from llmasos.userland.shell.grammar import Line, UsageError
from llmasos.userland.shell.saying import answered, tell
from llmasos.userland.shell.session import Session, does
from llmasos.userland.shell.tty import Interrupted

_PLAIN = re.compile(r"[\w.@+-]+")  # a name that is a word of its own
_YOU = "you: "


@does("spawn")
def _spawn(shell: Session, line: Line) -> None:
    name = line.text("NAME")
    if name.isdigit():
        raise UsageError(f"an agent's name may not be a number, found {name!r}: it would be taken for a pid")
    if not name or name.startswith(("-", "%")):
        raise UsageError(f"an agent's name may not be empty or begin with `-` or `%`, found {name!r}")
    max_tokens = line.integer("--max", MAX_TOKENS, least=1) if line.has("--max") else None
    text = _with_input(shell, line)
    place = shell.job.place() if shell.job is not None and not line.has("--group") else ""
    with arrival(shell):
        agent = shell.warmed().spawn(
            line.text("--model"),
            name=name,
            system=line.text("--system"),
            nice=line.integer("--nice", 0),
            temperature=line.decimal("--temperature", 0.0) if line.has("--temperature") else None,
            seed=line.integer("--seed", 0, least=0) if line.has("--seed") else None,
            dtype=line.text("--dtype"),
            device=line.text("--device"),
            group=line.text("--group", place),
            detached=shell.lets_live(line),
            limits=Limits(tokens=line.integer("--tokens", 0, least=0)),
            thinking=_thinking(line.text("--thinking")),
        )
    shell.remember(agent, max_tokens, line.text("--system"), thoughts=not line.has("--no-thoughts"))
    shell.variables.last = str(agent.pid)
    if shell.job is not None:
        shell.job.enlist(agent.pid)
    if line.has("--json"):
        document(shell.screen, answered(shell, agent, line, text, fresh=True) if text else agent.info())
    elif text:
        tell(shell, agent, text, background=line.background, fresh=True)
    elif not shell.piped:
        shown = printable(name, one_line=True)
        model = printable(called(agent.model.name), one_line=True)
        same = ps.processes(shell.kernel, lambda row: row.name == name and row.state is not State.ZOMBIE)
        typed = _typed(name, agent.pid) if len(same) < 2 else str(agent.pid)
        several = f"; {len(same)} processes are called so: say which by its pid" if len(same) > 1 else ""
        shell.screen.line(f"[{agent.pid}] {shown} on {model}: `say {typed} ...` talks to it{several}")


def _typed(name: str, pid: int) -> str:
    """A name as a person types it: in quotes, if it needs them; the pid, if they would not do."""
    if _PLAIN.fullmatch(name):
        return name
    quoted = name.strip() == name and printable(name, one_line=True) == name and not set(name) & set("'\"$`\\")
    return f"'{name}'" if quoted else str(pid)


def _with_input(shell: Session, line: Line) -> str:
    """TEXT, and behind it what comes in by a pipe or from a file."""
    given = shell.read_input(line.command.name).rstrip("\n")
    return "\n".join(part for part in (line.text("TEXT"), given) if part)


def _thinking(word: str) -> bool | str | None:
    """The value of `--thinking`: on, off, or an effort."""
    return {"": None, "on": True, "off": False}.get(word, word)


@does("say")
def _say(shell: Session, line: Line) -> None:
    agent = shell.agent(shell.pid(line.text("PID"), agent=True))
    text = _with_input(shell, line)
    if not text:
        raise UsageError(f"say: there is nothing to say: neither TEXT nor input has any. Usage: {line.command.usage}")
    if shell.job is not None:
        shell.job.enlist(agent.pid)
    if line.has("--json"):
        document(shell.screen, answered(shell, agent, line, text))
        return
    tell(
        shell,
        agent,
        text,
        background=line.background,
        thoughts=not line.has("--no-thoughts"),
        max_tokens=line.integer("--max", MAX_TOKENS, least=1) if line.has("--max") else None,
    )


@does("chat")
def _chat(shell: Session, line: Line) -> None:
    agent = shell.agent(shell.pid(line.text("PID"), agent=True))
    name = printable(shell.info(agent.pid).name, one_line=True)
    shell.screen.line(f"an empty line or Ctrl-D leaves {name}", "dim")
    while True:
        try:
            text = shell.ask_line(_YOU).strip()
        except (EOFError, KeyboardInterrupt):
            shell.screen.line()
            return
        if not text:
            return
        try:
            tell(shell, agent, text, background=False, thoughts=not line.has("--no-thoughts"))
        except Interrupted:  # the answer, not the chat
            if not shell.interactive:
                raise

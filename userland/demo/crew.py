"""The agents of the tour: what each one learns, and a view of them speaking at once.

They run in fp32, greedily, so that their answers can be compared token for token.
"""

from __future__ import annotations

import textwrap
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import Finish
from llmasos.syscalls.table import Decode, Getinfo
from llmasos.userland.demo.stage import WIDTH, Stage
from llmasos.userland.sdk import actions, turns
from llmasos.userland.sdk.system import Process, System

if TYPE_CHECKING:
    from rich.columns import Columns

DTYPE = "fp32"
ANSWER_TOKENS = 160
WAIT_SECONDS = 240.0  # nothing arrives after this, however slow the machine
POLL_SECONDS = 0.02
LINES = 8  # of an answer in a frame


@dataclass(frozen=True)
class Role:
    """An agent's name, the fact that it is told, the question for it, the word that proves that it knows, and its
    story."""

    name: str
    told: str
    asked: str
    proof: str
    story: str


_STORY = "Tell me a long story about {}."

ROLES = (
    Role("alice", "My name is Mira.", "What is my name?", "Mira", _STORY.format("a fox")),
    Role("bob", "My favourite colour is teal.", "What is my favourite colour?", "teal", _STORY.format("an owl")),
    Role("carol", "My lucky number is 42.", "What is my lucky number?", "42", _STORY.format("a whale")),
)


@dataclass
class Agent:
    """A process of the tour and its role. `heard` is the place in its log where its last answer begins."""

    process: Process
    role: Role
    heard: int = 0

    @property
    def pid(self) -> int:
        return self.process.pid

    def begin(self, text: str) -> None:
        """Say something; the answer is decoded in the background."""
        language = self.process.language
        system = self.process.system
        system.run(turns.say_next(language, self.pid, [{"role": "user", "content": text}]))
        started = system(Decode(self.pid, ANSWER_TOKENS, language.stop_ids, wait=False))
        self.heard = started.position

    def answer(self) -> list[int]:
        """The tokens of the last answer so far."""
        return self.process.system.run(actions.log_of(self.pid, self.heard))

    def words(self) -> str:
        return self.process.language.decode(self.answer()).strip()

    def recall(self, stage: Stage, name: str = "") -> None:
        """Ask for the fact that it was told, print the answer (as said by `name`), and check it."""
        name = name or self.role.name
        stage.say("you", self.role.asked)
        said = self.process.ask(self.role.asked, 40).strip()
        stage.say(name, said)
        stage.claim(self.role.proof.lower() in said.lower(), f"{name} still knows", f"it said {said!r}")


def enlist(system: System, role: Role) -> Agent:
    """Spawn an agent."""
    return Agent(system.spawn(name=role.name, dtype=DTYPE), role)


def until_done(agents: list[Agent]) -> None:
    """Wait until all have ended their answers. Raises ETIME, and EIO if one was ended from outside."""
    deadline = time.monotonic() + WAIT_SECONDS
    for agent in agents:
        while (info := agent.process.info()).decoding:
            _patience(deadline, agent)
            time.sleep(POLL_SECONDS)
        if info.finish not in (Finish.STOP, Finish.LENGTH):
            raise SyscallError(Errno.EIO, f"{agent.role.name}'s answer ended by {info.finish}")


def _patience(deadline: float, agent: Agent) -> None:
    if time.monotonic() > deadline:
        state = agent.process.system(Getinfo(agent.pid)).state
        raise SyscallError(Errno.ETIME, f"{agent.role.name} ({state}) has not got on for {WAIT_SECONDS:.0f} s")


def watch(stage: Stage, agents: list[Agent]) -> None:
    """Show answers as they grow, side by side on a terminal; elsewhere print them when they are done."""
    if stage.screen.terminal:
        from rich.live import Live

        with Live(_panels(agents), console=stage.screen.console, auto_refresh=False) as live:
            while any(agent.process.info().decoding for agent in agents):
                live.update(_panels(agents), refresh=True)
                time.sleep(POLL_SECONDS * 2)
            live.update(_panels(agents), refresh=True)
        until_done(agents)
        return
    until_done(agents)
    for agent in agents:
        lines = textwrap.wrap(agent.words(), WIDTH - 11) or [""]
        stage.say(agent.role.name, lines[0])
        for line in lines[1:]:
            stage.screen.line(" " * 11 + line)


def _panels(agents: list[Agent]) -> Columns:
    """Each agent's words in a frame of its own; of a long answer, the last lines."""
    from rich.columns import Columns
    from rich.panel import Panel
    from rich.text import Text

    width = max(24, (WIDTH + 2) // len(agents) - 1)
    panels = []
    for agent in agents:
        lines = textwrap.wrap(agent.words(), width - 4)[-LINES:]
        lines += [""] * (LINES - len(lines))
        panels.append(Panel(Text(printable("\n".join(lines))), title=f"{agent.pid} {agent.role.name}", width=width))
    return Columns(panels)

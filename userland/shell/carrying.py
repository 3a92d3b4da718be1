"""`spawn a | spawn b`: what one agent says is told to the next, turn by turn, for as long as this shell runs.

A stand-in for messages between processes, which the system does not have yet: a thread of the shell waits for the end of
each answer, and passes its text on. It makes no call while nobody speaks.
"""

from __future__ import annotations

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import State
from llmasos.syscalls.table import Read
from llmasos.userland.sdk.answers import follow
from llmasos.userland.sdk.system import Process
from llmasos.userland.shell.conversation import read_back
from llmasos.userland.shell.listening import stream
from llmasos.userland.shell.saying import begin
from llmasos.userland.shell.session import Session


def carry(shell: Session, first: Process, second: Process, *, last: bool) -> None:
    """Tell `second` what `first` says, until one of them has ended; of the `last` of a pipeline the answer is printed."""
    try:
        position = shell.info(first.pid).length
        while (turn := _turn(shell, first, position)) is not None:
            text, position = turn
            _tell(shell, second, text, printed=last)
    except SyscallError as error:
        if error.errno not in (Errno.ESRCH, Errno.EPIPE):
            shell.screen.error(f"{error}; the pipe from {first.pid} to {second.pid} has ended")


def _turn(shell: Session, agent: Process, position: int) -> tuple[str, int] | None:
    """The next answer that an agent has finished, behind a position of its log, and the log's length then. None: the
    agent has ended."""
    while True:
        result = shell.kernel(Read(agent.pid, position, limit=1, follow=True))
        if result.state is not State.ZOMBIE:
            result = shell.kernel(Read(agent.pid, -1))  # to the end of its answer
        if result.state is State.ZOMBIE:
            return None
        tokens = agent.tokens()
        turns = read_back(agent, tokens, raw=False)
        position = max(len(tokens), position + 1)
        if turns and turns[-1].text and turns[-1].who == printable(agent.info().name, one_line=True):
            return turns[-1].text, position


def _tell(shell: Session, agent: Process, text: str, *, printed: bool) -> None:
    while True:
        try:
            listening = begin(shell, agent, text, None)
            break
        except SyscallError as error:
            if error.errno is not Errno.EBUSY:
                raise
            shell.kernel(Read(agent.pid, -1))  # somebody else talks to it
    if printed:
        pieces = stream(shell.kernel, follow(agent.language, agent.pid, listening))
        said = "".join(piece.text for piece in pieces if piece.kind == "answer")
        name = printable(agent.info().name, one_line=True)
        shell.screen.line(f"{name}: {said}")

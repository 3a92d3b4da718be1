"""The command cat: what an agent's log says, read back from the log; or a file, or the input."""

from __future__ import annotations

import os
import sys

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import State
from llmasos.syscalls.table import Read
from llmasos.userland.programs.flow import Flow
from llmasos.userland.programs.listing import document
from llmasos.userland.sdk import turns
from llmasos.userland.sdk.options import file_path
from llmasos.userland.sdk.system import Process
from llmasos.userland.shell.conversation import Turn, known_turns, read_back, render
from llmasos.userland.shell.files import file_error, is_path
from llmasos.userland.shell.grammar import Line, UsageError
from llmasos.userland.shell.pager import paged
from llmasos.userland.shell.session import Session, does

# Of a model that is gone, or a device that does not come up.
_NO_WORDS = (Errno.ENOENT, Errno.EIO, Errno.ENODEV, Errno.ENOTSUP, Errno.ENOEXEC, Errno.ENOMEM, Errno.EAGAIN)


@does("cat")
def _cat(shell: Session, line: Line) -> int:
    word = line.text("PID")
    if not word and shell.input is None and not _at_terminal():
        raise UsageError(f"cat needs PID, or input by a pipe or from a file. Usage: {line.command.usage}")
    if line.words and (line.has("-f") or line.has("--json") or line.has("--raw")):
        raise UsageError("cat: -f, --raw and --json are for one process")
    status = 0
    for one in [word or "-", *line.words]:
        if one == "-" and shell.input is None and _at_terminal():
            from llmasos.userland.shell.launch import typed  # late: most verbs start no program of the host

            status = typed(shell) or status
        else:
            _cat_one(shell, line, one)
    return status


def _at_terminal() -> bool:
    """Whether somebody types."""
    return sys.stdin is not None and sys.stdin.isatty()


def _cat_one(shell: Session, line: Line, word: str) -> None:
    if is_path(word):
        _print_file(shell, word)
        return
    pid, raw = _pid_or_file(shell, word), line.has("--raw")
    try:
        agent = shell.agent(pid)
        if line.has("-f"):
            _follow(shell, agent, raw=raw)
            return
        said = read_back(agent, agent.tokens(), raw=raw)
        unread = ""
    except SyscallError as error:
        if error.errno not in _NO_WORDS or raw or line.has("-f"):
            raise
        said, unread = _recorded(shell, pid, error)
    if line.has("--json"):
        document(shell.screen, said)
    else:
        with paged(shell.screen):
            _print_turns(shell, said)
    if unread:
        shell.complain(SyscallError(Errno.ENOENT, unread))
    elif not line.has("--json") and (info := shell.info(pid)).decoding:
        how = (
            f"stopped; `cont {pid}` lets it go on"
            if info.state is State.STOPPED
            else f"still speaking; `cat -f {pid}` follows"
        )
        shell.screen.line(f"(it is {how})", "dim")


def _recorded(shell: Session, pid: int, why: SyscallError) -> tuple[list[Turn], str]:
    """The turns of an agent whose model is not there, from its records, which are text; and what of its log they do not
    tell. Raises `why` if there are none."""
    known = shell.system.run(turns.known_of(pid))
    if known.dialogue is None or not known.dialogue.said:
        raise why
    info = shell.info(pid)
    said = known_turns(known.dialogue, None, printable(info.name, one_line=True))
    left = known.length - known.dialogue.end
    unread = f"the last {left} tokens are not in its records, and its model is not there: {why.reason}"
    return said, unread if left else ""


def _print_turns(shell: Session, said: list[Turn]) -> None:
    for turn in said:
        if turn.who:
            shell.screen.write(f"{turn.who}: ", "cyan" if turn.who != "system" else "dim")
        flow = Flow(shell.screen, len(turn.who) + 2 if turn.who else 0)
        if turn.thought:
            flow.push(f"{turn.thought}\n", "dim")
        flow.push(turn.text)
        flow.flush()
        shell.screen.line()


def _pid_or_file(shell: Session, word: str) -> int:
    try:
        return shell.pid(word, agent=True)
    except SyscallError as error:
        if error.errno is Errno.ESRCH and os.path.exists(word):
            raise SyscallError(Errno.ESRCH, f"{error.reason}; a file is named with a slash: `cat ./{word}`") from None
        raise


def _print_file(shell: Session, word: str) -> None:
    """A file, or with `-` the input, as it is."""
    if word == "-":
        if shell.input is None:
            raise UsageError("cat - prints its input, and there is none: `... | cat -`, or `cat - < FILE`")
        for piece in iter(lambda: shell.input.read(1 << 16) if shell.input is not None else "", ""):
            shell.screen.write(piece)
        return
    try:
        with open(file_path(word), encoding="utf-8", errors="replace", newline="") as file:
            for piece in iter(lambda: file.read(1 << 16), ""):
                shell.screen.write(piece)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise file_error(word, error) from None


def _follow(shell: Session, agent: Process, *, raw: bool) -> None:
    tokens: list[int] = []
    shown = ""
    if shell.info(agent.pid).state is State.STOPPED:
        shell.screen.note(f"(it is stopped; `cont {agent.pid}` lets it go on)")
    try:
        while True:
            try:
                result = shell.kernel(Read(agent.pid, len(tokens), timeout=1.0, follow=True))
            except SyscallError as error:
                if error.errno is Errno.ETIME:
                    continue
                if error.errno is Errno.ESRCH and tokens:
                    break
                raise
            tokens += result.tokens
            text = render(read_back(agent, tokens, raw=raw))
            if text.startswith(shown) and not text.endswith("\ufffd"):
                shell.screen.write(text[len(shown) :])
                shown = text
            if result.state is State.ZOMBIE and len(tokens) >= result.length:  # an answer has no more than so many
                break
    except KeyboardInterrupt:
        shell.screen.line()
        if not shell.interactive:
            raise
        return
    shell.screen.line()

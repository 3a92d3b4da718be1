"""The command cat: what an agent's log says, read back from the log; or a file, or the input."""

from __future__ import annotations

import os

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import State
from llmasos.syscalls.table import Read
from llmasos.userland.programs.flow import Flow
from llmasos.userland.programs.listing import document
from llmasos.userland.sdk.options import file_path
from llmasos.userland.sdk.system import Process
from llmasos.userland.shell.conversation import Turn, read_back, render
from llmasos.userland.shell.files import file_error, is_path
from llmasos.userland.shell.grammar import Line, UsageError
from llmasos.userland.shell.pager import paged
from llmasos.userland.shell.session import Session, does


@does("cat")
def _cat(shell: Session, line: Line) -> None:
    word = line.text("PID")
    if not word and shell.input is None:
        raise UsageError(f"cat needs PID, or input by a pipe or from a file. Usage: {line.command.usage}")
    if line.words and (line.has("-f") or line.has("--json") or line.has("--raw")):
        raise UsageError("cat: -f, --raw and --json are for one process")
    for one in [word or "-", *line.words]:
        _cat_one(shell, line, one)


def _cat_one(shell: Session, line: Line, word: str) -> None:
    if is_path(word):
        _print_file(shell, word)
        return
    agent = shell.agent(_pid_or_file(shell, word))
    if line.has("-f"):
        _follow(shell, agent, raw=line.has("--raw"))
        return
    said = read_back(agent, agent.tokens(), raw=line.has("--raw"))
    if line.has("--json"):
        document(shell.screen, said)
        return
    with paged(shell.screen):
        _print_turns(shell, said)
    if shell.info(agent.pid).decoding:
        shell.screen.line(f"(it is still speaking; `cat -f {agent.pid}` follows)", "dim")


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
            if result.state is State.ZOMBIE:
                break
    except KeyboardInterrupt:
        shell.screen.line()
        if not shell.interactive:
            raise
        return
    shell.screen.line()

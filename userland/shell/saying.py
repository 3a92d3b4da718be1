"""Saying something to an agent: it begins to answer, and the shell listens, or with `&` leaves the rest to the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import ProcessInfo, State
from llmasos.userland.programs.flow import Flow
from llmasos.userland.sdk import turns
from llmasos.userland.sdk.actions import MAX_TOKENS, Language
from llmasos.userland.sdk.answers import Listening, follow
from llmasos.userland.sdk.system import Process
from llmasos.userland.shell.grammar import Line, UsageError
from llmasos.userland.shell.listening import Heard, ending, hear, interrupted, shown, stream, suspended, until_idle
from llmasos.userland.shell.patience import Patience
from llmasos.userland.shell.session import Session
from llmasos.userland.shell.tty import Suspended


def tell(
    shell: Session,
    agent: Process,
    text: str,
    *,
    background: bool,
    fresh: bool = False,
    thoughts: bool = True,
    max_tokens: int | None = None,
) -> None:
    """Say something to a process and print the answer, with at most `max_tokens` tokens (None: as it was spawned). End a
    fresh process that cannot even begin to answer."""
    pid, flow = agent.pid, Flow(shell.screen)
    heard = Heard()
    try:
        with Patience(shell, pid, flow) as patience:
            try:
                info = shell.info(pid)
                name = heard.name = printable(info.name, one_line=True)
                _check_idle(info, background=background)
                heard.listening = begin(shell, agent, text, max_tokens)
            except SyscallError:
                if fresh:
                    _end(agent)
                raise
            if background:
                shell.in_background(pid, name, heard.listening)
                shell.screen.line(f"[{pid}] {name} answers in the background; `cat {pid}` shows it")
                return
            if fresh and not shell.piped:
                patience.head(f"[{pid}] ", "dim")
            with _ended_if_mute(shell, agent, fresh=fresh):
                hear(shell, agent, heard, patience, thoughts=thoughts and shell.remembered(pid).thoughts)
    except KeyboardInterrupt:
        interrupted(shell, pid)
        return
    except Suspended:
        suspended(shell, pid, heard)
        raise
    ending(shell, pid, newline=not flow.ended_line)


def answered(shell: Session, agent: Process, line: Line, text: str, *, fresh: bool = False) -> dict[str, Any]:
    """Say a text to a process; its whole answer, for JSON. End a fresh process that cannot even begin."""
    if line.background:
        raise UsageError("--json waits for the whole answer, which `&` does not")
    pid = agent.pid
    max_tokens = line.integer("--max", MAX_TOKENS, least=1) if line.has("--max") else None
    try:
        info = shell.info(pid)
        _check_idle(info, background=False)
        listening = begin(shell, agent, text, max_tokens)
    except SyscallError:
        if fresh:
            _end(agent)
        raise
    try:
        with _ended_if_mute(shell, agent, fresh=fresh):
            said = list(stream(agent.system.kernel, follow(agent.language, pid, listening)))
    except KeyboardInterrupt:
        until_idle(shell, pid)
        raise
    return {
        "pid": pid,
        "name": info.name,
        "thought": "".join(piece.text for piece in said if piece.kind == "thought"),
        "text": "".join(shown(piece) for piece in said if piece.kind != "thought"),
        "finish": shell.info(pid).finish,
    }


@contextmanager
def _ended_if_mute(shell: Session, agent: Process, *, fresh: bool) -> Iterator[None]:
    """End a fresh process whose answer has failed before its first token: nobody asked for one that is mute."""
    try:
        yield
    except SyscallError:
        with suppress(SyscallError):
            if fresh and not shell.info(agent.pid).usage.decoded:
                _end(agent)
        raise


def _end(agent: Process) -> None:
    """End an agent that could not begin; the error that tells why is the one to be heard."""
    with suppress(SyscallError):
        agent.end()


def _check_idle(info: ProcessInfo, *, background: bool) -> None:
    pid, name = info.pid, info.name
    if info.state is State.STOPPED and (info.decoding or not background):
        midst = " in the midst of an answer" if info.decoding else ""
        raise SyscallError(Errno.EAGAIN, f"process {pid} ({name}) is stopped{midst}; `cont {pid}` lets it answer")
    if info.decoding:
        how = f"`wait {pid}`, or `kill -INT {pid}` interrupts it"
        raise SyscallError(Errno.EBUSY, f"process {pid} ({name}) is still answering; {how}")


def _say_plain(shell: Session, language: Language) -> None:
    """Tell once that a model is spoken to in plain text though it has chat templates, and why: its answers are others.
    One that has none is meant for that."""
    name = language.model.name
    if language.tokenizer.settings.templates and name not in shell.plain:
        shell.plain.add(name)
        shell.front.note(f"{name} is spoken to in plain text: {language.why_no_chat}")


def begin(shell: Session, agent: Process, text: str, max_tokens: int | None) -> Listening:
    """Say something to a process and let it begin to answer; after an error its context is as it was. Returns how to
    listen."""
    language, pid, kept = agent.language, agent.pid, shell.remembered(agent.pid)
    if language.chat is None:
        _say_plain(shell, language)
        turn = turns.text_next(language, pid, text)
    else:
        turn = turns.say_next(language, pid, [{"role": "user", "content": text}], kept.instructions)
    return agent.system.run(turns.begin_answer(language, pid, turn, max_tokens or kept.max_tokens))

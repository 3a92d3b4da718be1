"""The commands that talk: spawn, say, chat, cat, wait.

In the foreground the answer is streamed, and Ctrl-C interrupts the process that answers; in the background (`&`) the
shell only has the process begin, and the kernel does the rest.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from contextlib import closing

from llmasos.modelfiles.called import called
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import Finish, Limits, ProcessInfo, Signal, State
from llmasos.syscalls.table import Getinfo, Kill, Models, Read, Wait
from llmasos.userland.programs.flow import Flow
from llmasos.userland.sdk import turns
from llmasos.userland.sdk.actions import MAX_TOKENS
from llmasos.userland.sdk.answers import Listening, follow
from llmasos.userland.sdk.compact import hint_of
from llmasos.userland.sdk.script import Piece, pieces
from llmasos.userland.sdk.system import Process
from llmasos.userland.sdk.tool_calls import BadCall, ToolCall
from llmasos.userland.shell import conversation
from llmasos.userland.shell.arrival import arrival
from llmasos.userland.shell.conversation import Turn, marks, render
from llmasos.userland.shell.grammar import Line, UsageError
from llmasos.userland.shell.patience import Patience
from llmasos.userland.shell.session import Session, does

POLL_SECONDS = 0.05
SETTLE_SECONDS = 10.0
_ENDINGS = {
    Finish.LENGTH: "as many tokens as it was allowed; `say` goes on, --max allows more",
    Finish.CONTEXT: "its context is full; `fork` an earlier copy, or spawn another",
    Finish.BUDGET: "its token budget is used up; `limits PID --tokens N` raises it",
    Finish.INTERRUPT: "interrupted by another",
    Finish.DEADLINE: "out of time",
    Finish.KILLED: "killed",
    Finish.ERROR: "it could not be computed; `dmesg` says why",
}


@does("spawn")
def _spawn(shell: Session, line: Line) -> None:
    name = line.text("NAME")
    if name.isdigit():
        raise UsageError(f"an agent's name may not be a number, found {name!r}: it would be taken for a pid")
    if not name or name.startswith("-"):
        raise UsageError(f"an agent's name may not be empty or begin with `-`, found {name!r}")
    max_tokens = line.integer("--max", MAX_TOKENS, least=1) if line.has("--max") else None
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
            group=line.text("--group"),
            detached=shell.lets_live(line),
            limits=Limits(tokens=line.integer("--tokens", 0, least=0)),
            thinking=_thinking(line.text("--thinking")),
        )
    shell.remember(agent, max_tokens, line.text("--system"), thoughts=not line.has("--no-thoughts"))
    if line.has("TEXT"):
        _tell(shell, agent, line.text("TEXT"), background=line.background, fresh=True)
    else:
        shown = printable(name, one_line=True)
        model = printable(called(agent.model.name), one_line=True)
        shell.screen.line(f"[{agent.pid}] {shown} on {model}: `say {shown} ...` talks to it")


def _thinking(word: str) -> bool | str | None:
    """The value of `--thinking`: on, off, or an effort."""
    return {"": None, "on": True, "off": False}.get(word, word)


@does("say")
def _say(shell: Session, line: Line) -> None:
    agent = shell.agent(shell.pid(line.text("PID")))
    _tell(
        shell,
        agent,
        line.text("TEXT"),
        background=line.background,
        thoughts=not line.has("--no-thoughts"),
        max_tokens=line.integer("--max", MAX_TOKENS, least=1) if line.has("--max") else None,
    )


@does("chat")
def _chat(shell: Session, line: Line) -> None:
    agent = shell.agent(shell.pid(line.text("PID")))
    name = printable(shell.info(agent.pid).name, one_line=True)
    shell.screen.line(f"an empty line or Ctrl-D leaves {name}", "dim")
    while True:
        try:
            text = shell.ask_line("you: ").strip()
        except (EOFError, KeyboardInterrupt):
            shell.screen.line()
            return
        if not text:
            return
        _tell(shell, agent, text, background=False, thoughts=not line.has("--no-thoughts"))


def _tell(
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
    try:
        with Patience(shell, pid, flow) as patience:
            try:
                info = shell.info(pid)
                name = printable(info.name, one_line=True)
                _check_idle(info, background=background)
                listening = _begin(shell, agent, text, max_tokens)
            except SyscallError:
                if fresh:
                    agent.end()
                raise
            if not background:
                if fresh:
                    patience.head(f"[{pid}] ", "dim")
                patience.head(f"{name}: ", "cyan")
                answer = follow(agent.language, pid, listening)
                shows = thoughts and shell.remembered(pid).thoughts
                _print(shell, pieces(agent.system.kernel, answer, pid), patience, thoughts=shows)
    except KeyboardInterrupt:
        until_idle(shell, pid)
        shell.screen.line(" [interrupted]", "dim")
        if not shell.interactive:
            raise
        return
    if background:
        shell.jobs[pid] = name
        shell.screen.line(f"[{pid}] {name} answers in the background; `cat {pid}` shows it")
    else:
        _ending(shell, pid, newline=not flow.ended_line)


def _check_idle(info: ProcessInfo, *, background: bool) -> None:
    pid, name = info.pid, info.name
    if info.decoding:
        how = f"`wait {pid}`, or `kill -INT {pid}` interrupts it"
        raise SyscallError(Errno.EBUSY, f"process {pid} ({name}) is still answering; {how}")
    if info.state is State.STOPPED and not background:
        raise SyscallError(Errno.EAGAIN, f"process {pid} ({name}) is stopped; `cont {pid}` lets it answer")


def _begin(shell: Session, agent: Process, text: str, max_tokens: int | None) -> Listening:
    """Say something to a process and let it begin to answer; after an error its context is as it was. Returns how to
    listen."""
    language, pid, kept = agent.language, agent.pid, shell.remembered(agent.pid)
    if language.chat is None:
        turn = turns.text_next(language, pid, text)
    else:
        turn = turns.say_next(language, pid, [{"role": "user", "content": text}], kept.instructions)
    try:
        return agent.system.run(turns.begin_answer(language, pid, turn, max_tokens or kept.max_tokens))
    except SyscallError as error:
        if error.errno is not Errno.EDQUOT:
            raise
        what, _, _ = error.reason.partition("; raise it with setlimits")
        if what == error.reason:  # the group's own message, which says what to do
            raise
        raise SyscallError(Errno.EDQUOT, f"{what}; `limits {pid} --tokens N` raises it") from None


def _print(shell: Session, answer: Generator[Piece, None, None], patience: Patience, *, thoughts: bool) -> None:
    """Print an answer while it is made: thoughts dim, or not at all, in lines of their own; then its text."""
    thinking = False
    try:
        with closing(answer) as parts:
            for piece in parts:
                if piece.kind == "thought":
                    if thoughts:
                        patience.push(piece.text, "dim")
                        thinking = True
                    continue
                if thinking:
                    patience.push("\n", "dim")
                    thinking = False
                patience.push(_shown(piece))
    except SyscallError:
        patience.flush()
        shell.screen.line()
        raise
    except KeyboardInterrupt:
        patience.flush()
        raise
    patience.flush()


def _shown(piece: Piece) -> str:
    """A piece as it is printed; of a call, the tool and its arguments."""
    if isinstance(piece.call, ToolCall):
        return f"[calls {piece.call.name} {json.dumps(piece.call.arguments, ensure_ascii=False)}]"
    if isinstance(piece.call, BadCall):
        return f"[no proper call: {piece.call.reason}] {piece.call.text}"
    return piece.text


def _ending(shell: Session, pid: int, *, newline: bool = True) -> None:
    """Say why an answer ended, unless it was finished."""
    try:
        info = shell.info(pid)
        finish = info.finish
    except SyscallError as error:
        if error.errno is not Errno.ESRCH:
            raise
        finish = Finish.KILLED
    if finish is Finish.BUDGET and not info.limits.tokens:
        path = info.group
        shell.screen.line(f" [a group's tokens_total is used up, {path} or above; `group {path}` shows it]", "dim")
    elif finish is Finish.CONTEXT and _bound_by_group(shell, info):
        shell.screen.line(
            f" [its context is full: its group has KV memory (kv_max) for {info.context} tokens; `group {info.group}` "
            "shows it]",
            "dim",
        )
    elif finish in _ENDINGS:
        shell.screen.line(f" [{_ENDINGS[finish].replace('PID', str(pid))}]", "dim")
    elif newline:
        shell.screen.line()
    if finish is not Finish.KILLED and hint_of(info.length, info.context):
        near = f"{info.length} of {info.context} tokens"
        shell.screen.line(f" [its conversation has {near}: `compact {pid}` lets it go on]", "dim")


def _bound_by_group(shell: Session, info: ProcessInfo) -> bool:
    """Whether it could have a longer context in another group."""
    if info.limits.context or info.limits.pages:
        return False
    models = shell.kernel(Models())
    return any(info.model in (m.name, m.path) and info.device == m.device and info.context < m.context for m in models)


def until_idle(shell: Session, pid: int) -> None:
    """After SIGINT: wait until the process has reached its next token boundary and is idle."""
    deadline = time.monotonic() + SETTLE_SECONDS
    shell.kernel(Kill(pid=pid, signal=Signal.INT))
    while shell.info(pid).decoding and time.monotonic() < deadline:
        time.sleep(0.01)


@does("cat")
def _cat(shell: Session, line: Line) -> None:
    agent = shell.agent(shell.pid(line.text("PID")))
    if line.has("-f"):
        _follow(shell, agent, raw=line.has("--raw"))
        return
    said = _conversation(agent, agent.tokens(), raw=line.has("--raw"))
    for turn in said:
        if turn.who:
            shell.screen.write(f"{turn.who}: ", "cyan" if turn.who != "system" else "dim")
        flow = Flow(shell.screen, len(turn.who) + 2 if turn.who else 0)
        if turn.thought:
            flow.push(f"{turn.thought}\n", "dim")
        flow.push(turn.text)
        flow.flush()
        shell.screen.line()
    if shell.info(agent.pid).decoding:
        shell.screen.line(f"(it is still speaking; `cat -f {agent.pid}` follows)", "dim")


def _conversation(agent: Process, tokens: list[int], *, raw: bool) -> list[Turn]:
    language = agent.language
    text = language.decode(tokens, special=True)
    if raw:
        return [Turn("", text)]
    known = agent.system.run(turns.known_of(agent.pid)).dialogue
    if known is not None and known.said and language.chat is not None and known.end <= len(tokens):
        speaks = known.asked or known.end < len(tokens)
        answer = language.chat.answered(known, tokens).message if speaks else None
        return conversation.known_turns(known, answer, printable(agent.info().name, one_line=True))
    return conversation.turns(text, marks(language), printable(agent.info().name, one_line=True))


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
            text = render(_conversation(agent, tokens, raw=raw))
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


@does("wait")
def _wait(shell: Session, line: Line) -> None:
    pid = shell.pid(line.text("PID"), exited=True)
    while True:
        info = shell.kernel(Getinfo(pid=pid))
        name = printable(info.name, one_line=True)
        if info.state is State.ZOMBIE:
            ended = shell.kernel(Wait(pid=pid))
            shell.screen.line(f"[{pid}] {name}: exited with {ended.status} ({ended.reason})")
            break
        if not info.decoding:
            shell.screen.line(f"[{pid}] {name}: idle after {info.usage.decoded} decoded tokens")
            break
        time.sleep(POLL_SECONDS)
    shell.jobs.pop(pid, None)

"""The commands that talk: spawn, say, chat, cat, wait.

In the foreground the answer is streamed; Ctrl-C interrupts the process that answers, and Ctrl-Z stops it. In the
background (`&`) the shell only has the process begin, and the kernel does the rest. In a pipeline an answer is bare text,
and what comes in is said behind TEXT.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Generator
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from typing import Any

from llmasos.modelfiles.called import called
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import Finish, Kind, Limits, ProcessInfo, Signal, State
from llmasos.syscalls.table import Getinfo, Kill, Models, Read, Wait
from llmasos.userland.programs.flow import Flow
from llmasos.userland.programs.listing import document, plain
from llmasos.userland.programs.screen import Unwritable
from llmasos.userland.sdk import turns
from llmasos.userland.sdk.actions import MAX_TOKENS
from llmasos.userland.sdk.answers import Listening, follow
from llmasos.userland.sdk.compact import hint_of
from llmasos.userland.sdk.options import file_path
from llmasos.userland.sdk.script import Piece
from llmasos.userland.sdk.system import Process
from llmasos.userland.sdk.tool_calls import BadCall, ToolCall
from llmasos.userland.shell import conversation, pipes
from llmasos.userland.shell.arrival import arrival
from llmasos.userland.shell.conversation import Turn, marks, render
from llmasos.userland.shell.files import file_error
from llmasos.userland.shell.grammar import Line, UsageError
from llmasos.userland.shell.jobs import Answer, Pipeline
from llmasos.userland.shell.listening import stream
from llmasos.userland.shell.pager import paged
from llmasos.userland.shell.patience import Patience
from llmasos.userland.shell.session import Session, does
from llmasos.userland.shell.tty import Interrupted, Suspended

POLL_SECONDS = 0.05
SETTLE_SECONDS = 10.0
_PLAIN = re.compile(r"[\w.@+-]+")  # a name that is a word of its own
_YOU = "you: "
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
        document(shell.screen, _answered(shell, agent, line, text, fresh=True) if text else agent.info())
    elif text:
        _tell(shell, agent, text, background=line.background, fresh=True)
    elif not shell.piped:
        shown = printable(name, one_line=True)
        model = printable(called(agent.model.name), one_line=True)
        shell.screen.line(f"[{agent.pid}] {shown} on {model}: `say {_typed(name, agent.pid)} ...` talks to it")


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
        document(shell.screen, _answered(shell, agent, line, text))
        return
    _tell(
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
            _tell(shell, agent, text, background=False, thoughts=not line.has("--no-thoughts"))
        except Interrupted:  # the answer, not the chat
            if not shell.interactive:
                raise


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
    heard = _Heard()
    try:
        with Patience(shell, pid, flow) as patience:
            try:
                info = shell.info(pid)
                name = heard.name = printable(info.name, one_line=True)
                _check_idle(info, background=background)
                heard.listening = begin(shell, agent, text, max_tokens)
            except SyscallError:
                if fresh:
                    agent.end()
                raise
            if background:
                shell.in_background(pid, name, heard.listening)
                shell.screen.line(f"[{pid}] {name} answers in the background; `cat {pid}` shows it")
                return
            if fresh and not shell.piped:
                patience.head(f"[{pid}] ", "dim")
            _hear(shell, agent, heard, patience, thoughts=thoughts and shell.remembered(pid).thoughts)
    except KeyboardInterrupt:
        _interrupted(shell, pid)
        return
    except Suspended:
        _suspended(shell, pid, heard)
        raise
    _ending(shell, pid, newline=not flow.ended_line)


@dataclass
class _Heard:
    """What was heard of an answer: from where on, and how many characters of it were printed."""

    name: str = ""
    listening: Listening | None = None
    shown: int = 0


def _hear(shell: Session, agent: Process, heard: _Heard, patience: Patience, *, thoughts: bool) -> None:
    """Print an answer from where it was left."""
    assert heard.listening is not None
    if not shell.piped:
        patience.head(f"{heard.name}: ", "cyan")
    answer = stream(agent.system.kernel, follow(agent.language, agent.pid, heard.listening))
    try:
        with shell.terminal.suspendable() if shell.terminal is not None and _can_stop(shell) else nullcontext():
            _print(shell, answer, patience, heard, thoughts=thoughts and not shell.piped)
    except (BrokenPipeError, Unwritable):  # nobody reads it any more
        until_idle(shell, agent.pid)
        raise


def _can_stop(shell: Session) -> bool:
    """Whether Ctrl-Z stops an answer. Not one in a `$(...)`: nothing could take what comes after `fg`."""
    return shell.main and not (shell.piped and pipes.leads_on(shell.screen.out))


def _interrupted(shell: Session, pid: int) -> None:
    """After Ctrl-C. Raises KeyboardInterrupt, which a script and a loop end by."""
    until_idle(shell, pid)
    shell.screen.line(" [interrupted]", "dim")
    raise Interrupted


def _suspended(shell: Session, pid: int, heard: _Heard) -> None:
    """After Ctrl-Z: the process is stopped, and a job, which keeps the file that the answer goes to."""
    shell.kernel(Kill(pid=pid, signal=Signal.STOP))
    job = shell.in_background(pid, heard.name, heard.listening, heard.shown)
    job.stopped = True
    job.out = pipes.again(shell.screen.out) if shell.piped else None
    shell.front.line()
    shell.front.line(f"[{pid}] {heard.name}: stopped; `fg` goes on with it, `bg` lets it go on in the background", "dim")


def resume(shell: Session, job: Answer) -> None:
    """`fg` of an answer: print what was not printed yet, and the rest while it comes, to where the answer went."""
    with ExitStack() as stack:
        if job.out is not None:
            stack.callback(pipes.close, job.out)
            shell = shell.view()
            shell.redirected(job.out)
            job.out = None
        _resume(shell, job)


def _resume(shell: Session, job: Answer) -> None:
    agent, flow = shell.agent(job.pid), Flow(shell.screen)
    heard = _Heard(job.name, job.listening, job.shown)
    shell.jobs.remove(job)
    if job.listening is None:  # it spoke before this shell listened
        raise SyscallError(Errno.EINVAL, f"job [{job.pid}] {job.name} began elsewhere; `cat -f {job.pid}` follows it")
    shell.kernel(Kill(pid=job.pid, signal=Signal.CONT))
    try:
        with Patience(shell, job.pid, flow) as patience:
            _hear(shell, agent, heard, patience, thoughts=shell.remembered(job.pid).thoughts)
    except KeyboardInterrupt:
        _interrupted(shell, job.pid)
        return
    except Suspended:
        _suspended(shell, job.pid, heard)
        raise
    _ending(shell, job.pid, newline=not flow.ended_line)


def _answered(shell: Session, agent: Process, line: Line, text: str, *, fresh: bool = False) -> dict[str, Any]:
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
            agent.end()
        raise
    try:
        said = list(stream(agent.system.kernel, follow(agent.language, pid, listening)))
    except KeyboardInterrupt:
        until_idle(shell, pid)
        raise
    return {
        "pid": pid,
        "name": info.name,
        "thought": "".join(piece.text for piece in said if piece.kind == "thought"),
        "text": "".join(_shown(piece) for piece in said if piece.kind != "thought"),
        "finish": shell.info(pid).finish,
    }


def _check_idle(info: ProcessInfo, *, background: bool) -> None:
    pid, name = info.pid, info.name
    if info.decoding:
        how = f"`wait {pid}`, or `kill -INT {pid}` interrupts it"
        raise SyscallError(Errno.EBUSY, f"process {pid} ({name}) is still answering; {how}")
    if info.state is State.STOPPED and not background:
        raise SyscallError(Errno.EAGAIN, f"process {pid} ({name}) is stopped; `cont {pid}` lets it answer")


def begin(shell: Session, agent: Process, text: str, max_tokens: int | None) -> Listening:
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


def _print(
    shell: Session, answer: Generator[Piece, None, None], patience: Patience, heard: _Heard, *, thoughts: bool
) -> None:
    """Print an answer while it is made: thoughts dim, or not at all, in lines of their own; then its text. What was
    printed of it before is left out."""
    thinking = False
    skip, heard.shown = heard.shown, 0
    try:
        with closing(answer) as parts:
            for piece in parts:
                thought = piece.kind == "thought"
                if thought and not thoughts:
                    continue
                text = piece.text if thought else _shown(piece)
                new = text[skip:] if skip < len(text) else ""
                skip -= min(skip, len(text))
                if thinking and not thought and new:
                    patience.push("\n", "dim")
                thinking = thought
                if new:
                    patience.push(new, "dim" if thought else "")
                heard.shown += len(text)
    except SyscallError:
        patience.flush()
        shell.screen.line()
        raise
    except BaseException:
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
        shell.remark(f" [a group's tokens_total is used up, {path} or above; `group {path}` shows it]")
    elif finish is Finish.CONTEXT and _bound_by_group(shell, info):
        shell.remark(
            f" [its context is full: its group has KV memory (kv_max) for {info.context} tokens; `group {info.group}` "
            "shows it]"
        )
    elif finish in _ENDINGS:
        shell.remark(f" [{_ENDINGS[finish].replace('PID', str(pid))}]")
    elif newline:
        shell.screen.line()
    if finish is not Finish.KILLED and hint_of(info.length, info.context):
        near = f"{info.length} of {info.context} tokens"
        shell.remark(f" [its conversation has {near}: `compact {pid}` lets it go on]")


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


def is_path(word: str) -> bool:
    """Whether a word names a file: it has a slash in it, or is `-` for the input."""
    return "/" in word or word in ("-", "~")


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


def read_back(agent: Process, tokens: list[int], *, raw: bool) -> list[Turn]:
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


@does("wait")
def _wait(shell: Session, line: Line) -> int:
    word = line.text("PID")
    job = shell.jobs.find(word) if word.startswith("%") else None
    if word and not isinstance(job, Pipeline):
        _wait_for(shell, shell.pid(word, exited=True), told=True, as_json=line.has("--json"))
        return 0
    status = 0
    for one in [job] if job is not None else list(shell.jobs):
        if isinstance(one, Pipeline):
            one.changed.wait()
            status = one.status
            if one.done:
                shell.jobs.remove(one)
        elif not one.stopped:
            _wait_for(shell, one.pid, told=False)
    return status if word else 0


def _wait_for(shell: Session, pid: int, *, told: bool, as_json: bool = False) -> None:
    """Wait until a process is idle, or has exited; `told`: say so."""
    while True:
        try:
            info = shell.kernel(Getinfo(pid=pid))
        except SyscallError as error:
            if told or error.errno is not Errno.ESRCH:
                raise
            break
        name = printable(info.name, one_line=True)
        if info.state is State.ZOMBIE:
            ended = shell.kernel(Wait(pid=pid))
            if as_json:
                document(shell.screen, {**plain(ended), "name": info.name, "state": info.state})
            elif told:
                shell.screen.line(f"[{pid}] {name}: exited with {ended.status} ({ended.reason})")
            break
        if info.kind in (Kind.INIT, Kind.DRIVER):
            what = "init, the kernel itself" if info.kind is Kind.INIT else f"the driver of {info.device}"
            raise UsageError(f"process {pid} is {what}, which ends with `halt` only: there is nothing to wait for")
        if info.kind is Kind.LLM and not info.decoding:
            if as_json:
                document(shell.screen, info)
            elif told:
                shell.screen.line(f"[{pid}] {name}: idle after {info.usage.decoded} decoded tokens")
            break
        time.sleep(POLL_SECONDS)
    shell.jobs.forget_answer(pid)

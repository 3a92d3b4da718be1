"""An answer as the shell hears it: printed while it comes. Ctrl-C interrupts the process that answers, Ctrl-Z stops it.

Unlike the SDK's stream, leaving this one does not interrupt the process: after Ctrl-Z the process is stopped and its
answer goes on at `fg`; so who leaves an answer decides what becomes of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from typing import Any

from llmasos.syscalls.blocking import Client
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import Finish, ProcessInfo, Signal
from llmasos.syscalls.table import Kill, Models
from llmasos.userland.programs.flow import Flow
from llmasos.userland.programs.screen import Unwritable
from llmasos.userland.sdk.answers import Listening, follow
from llmasos.userland.sdk.compact import hint_of
from llmasos.userland.sdk.script import Piece, Request, Script, Stream, run
from llmasos.userland.sdk.system import Process
from llmasos.userland.sdk.tool_calls import BadCall, ToolCall
from llmasos.userland.shell import pipes
from llmasos.userland.shell.jobs import Answer
from llmasos.userland.shell.patience import Patience
from llmasos.userland.shell.session import Session
from llmasos.userland.shell.tty import Interrupted, Suspended

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


def stream(kernel: Client, answer: Stream[Any]) -> Generator[Piece, None, None]:
    """The pieces of an answer that is under way."""
    try:
        request = next(answer)
        while True:
            if isinstance(request, Piece):
                yield request
                request = next(answer)
                continue
            try:
                result = run(kernel, _once(request))
            except SyscallError as error:
                request = answer.throw(error)
            else:
                request = answer.send(result)
    except StopIteration:
        return
    finally:
        answer.close()


def _once(request: Request) -> Script[Any]:
    return (yield request)


@dataclass
class Heard:
    """What was heard of an answer: from where on, and how many characters of it were printed."""

    name: str = ""
    listening: Listening | None = None
    shown: int = 0


def hear(shell: Session, agent: Process, heard: Heard, patience: Patience, *, thoughts: bool) -> None:
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


def _print(
    shell: Session, answer: Generator[Piece, None, None], patience: Patience, heard: Heard, *, thoughts: bool
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
                text = piece.text if thought else shown(piece)
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


def shown(piece: Piece) -> str:
    """A piece as it is printed; of a call, the tool and its arguments."""
    if isinstance(piece.call, ToolCall):
        return f"[calls {piece.call.name} {json.dumps(piece.call.arguments, ensure_ascii=False)}]"
    if isinstance(piece.call, BadCall):
        return f"[no proper call: {piece.call.reason}] {piece.call.text}"
    return piece.text


def interrupted(shell: Session, pid: int) -> None:
    """After Ctrl-C. Raises KeyboardInterrupt, which a script and a loop end by."""
    until_idle(shell, pid)
    shell.screen.line(" [interrupted]", "dim")
    raise Interrupted


def suspended(shell: Session, pid: int, heard: Heard) -> None:
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
    heard = Heard(job.name, job.listening, job.shown)
    shell.jobs.remove(job)
    if job.listening is None:  # it spoke before this shell listened
        raise SyscallError(Errno.EINVAL, f"job [{job.pid}] {job.name} began elsewhere; `cat -f {job.pid}` follows it")
    shell.kernel(Kill(pid=job.pid, signal=Signal.CONT))
    try:
        with Patience(shell, job.pid, flow) as patience:
            hear(shell, agent, heard, patience, thoughts=shell.remembered(job.pid).thoughts)
    except KeyboardInterrupt:
        interrupted(shell, job.pid)
        return
    except Suspended:
        suspended(shell, job.pid, heard)
        raise
    ending(shell, job.pid, newline=not flow.ended_line)


def until_idle(shell: Session, pid: int) -> None:
    """After SIGINT: wait until the process has reached its next token boundary and is idle."""
    if shell.outage.down or shell.outage.gone:  # nobody is there to be told, and the person does not want to wait
        return
    deadline = time.monotonic() + SETTLE_SECONDS
    shell.kernel(Kill(pid=pid, signal=Signal.INT))
    while shell.info(pid).decoding and time.monotonic() < deadline:
        time.sleep(0.01)


def ending(shell: Session, pid: int, *, newline: bool = True) -> None:
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
    elif finish is Finish.ERROR and info.reason:
        shell.remark(f" [{printable(info.reason, one_line=True)}]")
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

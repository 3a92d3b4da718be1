"""The command wait: for processes to be idle or to end, and for the shell's jobs."""

from __future__ import annotations

import time

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import Kind, State
from llmasos.syscalls.table import Getinfo, Wait
from llmasos.userland.programs.listing import document, plain
from llmasos.userland.shell.grammar import Line, UsageError
from llmasos.userland.shell.jobs import Pipeline
from llmasos.userland.shell.session import Session, does, each

POLL_SECONDS = 0.05


@does("wait")
def _wait(shell: Session, line: Line) -> int:
    if line.words:
        return each(shell, line, lambda word: _one(shell, word, as_json=line.has("--json")))
    for job in shell.jobs:
        if isinstance(job, Pipeline):
            _job(shell, job)
        elif not job.stopped:
            _wait_for(shell, job.pid, told=False)
    return 0


def _one(shell: Session, word: str, *, as_json: bool) -> int:
    job = shell.jobs.find(word) if word.startswith("%") else None
    if isinstance(job, Pipeline):
        return _job(shell, job)
    _wait_for(shell, shell.pid(word, exited=True), told=True, as_json=as_json)
    return 0


def _job(shell: Session, job: Pipeline) -> int:
    job.changed.wait()
    if job.done:
        shell.jobs.remove(job)
    return job.status


def _wait_for(shell: Session, pid: int, *, told: bool, as_json: bool = False) -> None:
    """Wait until a process is idle, or has exited; `told`: say so."""
    remarked = False
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
        if not remarked and (info.state is State.STOPPED or info.kind is Kind.PROGRAM):
            how = (
                f"is stopped, and does nothing until `cont {pid}`"
                if info.kind is Kind.LLM
                else "is a program: until it ends"
            )
            shell.screen.note(f"[{pid}] {name} {how}")
            remarked = True
        time.sleep(POLL_SECONDS)
    shell.jobs.forget_answer(pid)

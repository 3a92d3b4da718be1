"""Jobs of this shell that it carries itself: made, and waited for in the foreground."""

from __future__ import annotations

from contextlib import ExitStack

from llmasos.syscalls.records import Signal
from llmasos.userland.shell.failing import STOPPED
from llmasos.userland.shell.jobs import Pipeline as Job
from llmasos.userland.shell.session import Session
from llmasos.userland.shell.tty import Suspended


def new_job(shell: Session, source: str, *, foreground: bool) -> Job:
    shell.jobs.sweep(shell.kernel)
    job = Job(shell.kernel, shell.jobs.free(), source, shell.terminal if shell.main else None)
    if not foreground:
        job.background()
    return job


def foreground(shell: Session, job: Job) -> int:
    """Wait for a job; returns its status, or STOPPED if it has been stopped. Ctrl-C interrupts all its members. Raises
    KeyboardInterrupt, after they have ended."""
    while True:
        try:
            with shell.terminal.suspendable() if shell.terminal is not None else ExitStack():
                job.changed.wait()
        except KeyboardInterrupt:
            job.signal(Signal.INT)
            continue
        except Suspended:
            pass
        if job.interrupted and not job.done and not job.stopped:
            job.signal(Signal.INT)  # a program of the host had the terminal, and Ctrl-C
            job.changed.clear()
            if not job.done:
                continue
        break
    job.background()
    if not job.done:
        job.stop()
        shell.jobs.add(job)
        shell.screen.line()
        shell.screen.line(
            f"%{job.number} {job.source}: stopped; `fg` goes on, `bg` lets it go on in the background", "dim"
        )
        return STOPPED
    shell.jobs.remove(job)
    if job.interrupted:
        raise KeyboardInterrupt
    return job.status

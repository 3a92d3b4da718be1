"""Jobs of this shell that it carries itself: made, and waited for in the foreground."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

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


class _CtrlC:
    """Ctrl-C while a job has the foreground: it interrupts the wait for the job, and is kept until there is one.
    Elsewhere it would leave a job behind that has the terminal and that nobody waits for."""

    def __init__(self) -> None:
        self._waits = self.kept = False

    def hear(self, number: int, frame: FrameType | None) -> None:
        if not self._waits:
            self.kept = True
            return
        self._waits = False
        raise KeyboardInterrupt

    def wait(self, job: Job) -> None:
        """Until the job has changed. Raises KeyboardInterrupt."""
        self._waits = True
        try:
            if self.kept:
                self.kept = False
                raise KeyboardInterrupt
            job.changed.wait()
        finally:
            self._waits = False


@contextmanager
def _ctrl_c() -> Iterator[_CtrlC]:
    """Raises KeyboardInterrupt at the end for one that came too late for the job."""
    pressed, before = _CtrlC(), signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():  # `trap '' INT`
        yield pressed
        return
    signal.signal(signal.SIGINT, pressed.hear)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed.kept:
        raise KeyboardInterrupt


def foreground(shell: Session, job: Job, begin: Callable[[], object]) -> int:
    """Have a job begin, or go on, and wait for it; returns its status, or STOPPED if it has been stopped. Ctrl-C
    interrupts all its members. Raises KeyboardInterrupt, after they have ended."""
    with _ctrl_c() as pressed:
        begin()
        return _waited_for(shell, job, pressed)


def _waited_for(shell: Session, job: Job, pressed: _CtrlC) -> int:
    while True:
        try:
            with shell.terminal.suspendable() if shell.terminal is not None else ExitStack():
                pressed.wait(job)
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

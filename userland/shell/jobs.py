"""Jobs: what runs beside the prompt, or is stopped. As in a Unix shell, `%1` names one; `fg`, `bg`, `kill %1` act on it.

Two kinds. An answer is one agent that speaks: the kernel lets it decode, and the shell only remembers where its answer
began, to go on with it at `fg`. A pipeline has members that this shell carries: threads and programs of the host. Its
agents are in a control group, so that a signal reaches all of them in one event of the kernel; it ends with the shell.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from subprocess import Popen
from typing import TYPE_CHECKING, TextIO

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Signal
from llmasos.syscalls.table import Getinfo, GroupCreate, GroupKill, GroupMove, GroupRemove, Kill
from llmasos.userland.shell import pipes
from llmasos.userland.shell.grammar import UsageError

if TYPE_CHECKING:
    from llmasos.syscalls.blocking import Client
    from llmasos.userland.sdk.answers import Listening
    from llmasos.userland.shell.tty import Terminal

SIGNALS = {
    Signal.INT: signal.SIGINT,
    Signal.TERM: signal.SIGTERM,
    Signal.KILL: signal.SIGKILL,
    Signal.STOP: signal.SIGSTOP,
    Signal.CONT: signal.SIGCONT,
}
_GONE = (Errno.ESRCH, Errno.ENOENT, Errno.EPIPE)


@dataclass
class Answer:
    """An agent that answers without being listened to. `listening`: where its answer began; `shown`: the characters of
    it that were printed; `stopped`: by Ctrl-Z."""

    number: int
    pid: int
    name: str
    listening: Listening | None = None
    shown: int = 0
    stopped: bool = False
    out: TextIO | None = None  # the file that the rest goes to at `fg`, if it was stopped on its way there

    @property
    def source(self) -> str:
        return f"[{self.pid}] {self.name}"


class Pipeline:
    """A pipeline, or another command in the background, that runs in threads of this shell."""

    def __init__(self, kernel: Client, number: int, source: str, terminal: Terminal | None) -> None:
        self.number, self.source = number, source
        self.agents: set[int] = set()
        self.status = 0
        self.stopped = False
        self.interrupted = False  # by SIGINT: `Ctrl-C`, here or at a program of the host
        self.changed = threading.Event()  # it has ended, or a program of the host has been stopped
        self.programs: dict[Popen[bytes], bool] = {}  # whether it is stopped
        self.pgid = 0  # of the host's programs
        self.group = ""  # path of the agents' control group, once there is one
        self.leftover = ""  # that path, if the group could not be removed yet
        self._kernel, self._terminal = kernel, terminal
        self._foreground = terminal is not None
        self._home = ""
        self._ended: Signal | None = None  # the signal that has ended it, for members that begin after it
        self.done = False
        self._lock = threading.RLock()

    # --- members ---

    def begin(self, members: Sequence[threading.Thread], result: Callable[[], int]) -> None:
        """Start the threads of the members; when all have ended, `result` is the status."""
        for thread in members:
            thread.start()

        def reap() -> None:
            for thread in members:
                thread.join()
            self.status = result()
            self._release()
            self.done = True
            self.changed.set()

        threading.Thread(target=reap, name="llmasos-reaper", daemon=True).start()

    def enlist(self, pid: int) -> None:
        """An agent is a member: it goes into the job's control group, unless it is in one with limits of its own."""
        with self._lock:
            self.agents.add(pid)
            if self._ended is not None:
                self._kernel(Kill(pid, self._ended))
            if self._place():
                with suppress(SyscallError):  # it stays where it is, and is signalled by itself
                    if self._kernel(Getinfo(pid)).group == self._home:
                        self._kernel(GroupMove(pid, self.group))

    def place(self) -> str:
        """The control group for an agent that is about to be spawned; empty: the shell's own."""
        with self._lock:
            return self.group if self._place() else ""

    def _place(self) -> bool:
        if not self.group:
            mine = self._kernel.pid
            self._home = self._kernel(Getinfo(mine)).group
            self.group = self._kernel(GroupCreate(f"job-{mine}-{self.number}")).path
        return bool(self.group)

    def _release(self) -> None:
        """The agents that are left go back to the shell's group, and the job's is removed."""
        if not self.group:
            return
        for pid in self._members_of_group():
            with suppress(SyscallError):
                self._kernel(GroupMove(pid, self._home))
        try:
            self._kernel(GroupRemove(self.group))
        except SyscallError as error:
            if error.errno is Errno.EBUSY:  # an exited agent is in it until it has been waited for
                self.leftover = self.group
        self.group = ""

    def _members_of_group(self) -> set[int]:
        inside = set()
        for pid in self.agents:
            with suppress(SyscallError):
                if self._kernel(Getinfo(pid)).group == self.group:
                    inside.add(pid)
        return inside

    # --- programs of the host ---

    def starting(self) -> AbstractContextManager[object]:
        """Within this one program is started: the first makes the process group, which the others find."""
        return self._lock

    def started(self, program: Popen[bytes], *, grouped: bool) -> None:
        """A program is a member. `grouped`: in the process group of the job, and not in the shell's."""
        with self._lock:
            self.programs[program] = False
            self.pgid = self.pgid or (program.pid if grouped else 0)
            if self._ended is not None:  # the signal came while the program was being started
                program.send_signal(SIGNALS[self._ended])
            if self._foreground and self._terminal is not None:
                self._terminal.give(self.pgid)

    def wait_for(self, program: Popen[bytes]) -> int:
        """Wait for a program to end; returns its exit status (128 + signal if it was killed)."""
        while True:
            _, raw = os.waitpid(program.pid, os.WUNTRACED)
            if os.WIFSTOPPED(raw):
                if not self._wants_terminal(os.WSTOPSIG(raw)):
                    self._halted(program, stopped=True)
                continue
            program.returncode = os.waitstatus_to_exitcode(raw)
            self._halted(program, stopped=False)
            return program.returncode if program.returncode >= 0 else 128 - program.returncode

    def _wants_terminal(self, stopped_by: int) -> bool:
        """A program of the job in the foreground has used the terminal before it was given to it: it has it now, and goes
        on."""
        with self._lock:
            if stopped_by not in (signal.SIGTTIN, signal.SIGTTOU) or not self._foreground or self._terminal is None:
                return False
            self._terminal.give(self.pgid)
            return True

    @property
    def in_foreground(self) -> bool:
        return self._foreground

    def _halted(self, program: Popen[bytes], *, stopped: bool) -> None:
        with self._lock:
            if stopped:
                self.programs[program] = self.stopped = True
            else:
                del self.programs[program]
                if program.returncode == -signal.SIGINT:
                    self.interrupted = True
            if self._foreground and self._terminal is not None and all(self.programs.values()):
                self._terminal.take()
            if stopped or self.interrupted:
                self.changed.set()

    # --- control ---

    def signal(self, number: Signal) -> None:
        """Send a signal to all members: to the agents in one event of the kernel, to the host's programs as a process
        group."""
        with self._lock:
            grouped: set[int] = set()
            if self.group:
                grouped = self._members_of_group()
                with suppress(SyscallError):
                    self._kernel(GroupKill(self.group, number))
            for pid in self.agents - grouped:
                try:
                    self._kernel(Kill(pid, number))
                except SyscallError as error:
                    if error.errno not in _GONE:
                        raise
            self._signal_programs(SIGNALS[number])
            if number in (Signal.INT, Signal.TERM, Signal.KILL):
                self.interrupted, self._ended = True, number
            self.stopped = number is Signal.STOP or (self.stopped and number is not Signal.CONT)

    def _signal_programs(self, number: int) -> None:
        if self.pgid and self.programs:
            with suppress(ProcessLookupError):
                os.killpg(self.pgid, number)
        elif not self.pgid:  # those of a script are in its own group
            for program in self.programs:
                with suppress(ProcessLookupError):
                    os.kill(program.pid, number)

    def stop(self) -> None:
        self.signal(Signal.STOP)
        self.background()

    def go_on(self, *, foreground: bool) -> None:
        self.changed.clear()
        self.programs = dict.fromkeys(self.programs, False)
        self._foreground = foreground and self._terminal is not None
        if self._foreground and self.programs and self._terminal is not None:
            self._terminal.restore()
            self._terminal.give(self.pgid)
        self.signal(Signal.CONT)
        if self.done:
            self.changed.set()

    def leave(self) -> None:
        """The shell ends, and what it carries with it: programs of the host are hung up; agents stay."""
        with self._lock, suppress(ProcessLookupError, SyscallError):
            self._release()
            self._signal_programs(signal.SIGHUP)
            self._signal_programs(signal.SIGCONT)

    def background(self) -> None:
        """It is not in the foreground any more."""
        with self._lock:
            if self._foreground and self._terminal is not None:
                self._terminal.take()
            self._foreground = False


Job = Answer | Pipeline


class Jobs:
    """The jobs of a shell, by number."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}
        self._leftover: list[str] = []
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Job]:
        with self._lock:
            return iter(list(self._jobs.values()))

    def __len__(self) -> int:
        return len(self._jobs)

    def answer(self, pid: int, name: str, listening: Listening | None = None, shown: int = 0) -> Answer:
        """Remember an answer in the background; the one that there was of this process is forgotten."""
        self.forget_answer(pid)
        job = Answer(self.free(), pid, name, listening, shown)
        self._jobs[job.number] = job
        return job

    def add(self, job: Pipeline) -> None:
        self._jobs[job.number] = job

    def free(self) -> int:
        """The next number."""
        with self._lock:
            return max(self._jobs, default=0) + 1

    def remove(self, job: Job) -> None:
        self._jobs.pop(job.number, None)
        if isinstance(job, Answer):
            pipes.close(job.out)
        if isinstance(job, Pipeline) and job.leftover:
            self._leftover.append(job.leftover)

    def sweep(self, kernel: Client) -> None:
        """Remove the control groups that earlier jobs could not remove."""
        before, self._leftover = self._leftover, []
        for path in before:
            try:
                kernel(GroupRemove(path))
            except SyscallError as error:
                if error.errno is Errno.EBUSY:
                    self._leftover.append(path)

    def forget_answer(self, pid: int) -> None:
        """Nobody waits for the answer of this process any more."""
        for job in self:
            if isinstance(job, Answer) and job.pid == pid:
                self.remove(job)

    def of(self, pid: int) -> Answer | None:
        """The answer of a process."""
        return next((job for job in self if isinstance(job, Answer) and job.pid == pid), None)

    def find(self, word: str) -> Job:
        """The job that a word means: `%1`, `%%` or nothing (the newest), a pid, a name. Raises ESRCH."""
        jobs = list(self)
        if word in ("", "%", "%%", "%+"):
            if not jobs:
                raise SyscallError(Errno.ESRCH, "there is no job; `&` behind a command makes one, or Ctrl-Z")
            return jobs[-1]
        number = word.removeprefix("%")
        for job in jobs:
            if word.startswith("%") and number == str(job.number):
                return job
            if isinstance(job, Answer) and word in (str(job.pid), job.name):
                return job
        if word.startswith("%") and not number.isdigit():
            raise UsageError(f"a job is %1, %2, ... or %% (the newest), found {word!r}")
        raise SyscallError(Errno.ESRCH, f"there is no job {word!r}; `jobs` lists them")

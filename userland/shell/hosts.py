"""Programs of the host: found on PATH, run with the streams of the command that they are.

On a terminal those of one job are a process group, which has the terminal while the job is in the foreground.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import nullcontext
from typing import IO, TYPE_CHECKING

from llmasos.syscalls.errno import Errno, SyscallError

if TYPE_CHECKING:
    from llmasos.userland.shell.session import Session

NOT_FOUND, NOT_EXECUTABLE = 127, 126
_ENDS = "would end more than this system: `halt` ends the kernel, and with --keep its agents stay"
_SIGNALS = "knows no agents: `kill NAME` and `kill 'NAME*'` do"
MEANT_OTHERWISE = {
    **dict.fromkeys(("reboot", "shutdown", "poweroff"), _ENDS),
    **dict.fromkeys(("pkill", "killall"), _SIGNALS),
    "renice": "knows no agents: `nice NAME VALUE` does",
}
"""Programs of the host that people may take for this system's: what is said of them."""


def found(name: str, shell: Session) -> str | None:
    """The path of a program; None if there is none."""
    if "/" in name:
        return name if os.path.exists(name) else None
    return shutil.which(name, path=shell.variables.environment().get("PATH", os.defpath))


def run(shell: Session, path: str, words: Sequence[str], given: dict[str, str]) -> int:
    """Run a program with `given` variables of its own, and wait for it; returns its exit status (128 + signal if it was
    killed). Raises ENOEXEC, EPERM."""
    environment = {**shell.variables.environment(), **given, "LLMASOS_RUNTIME": str(shell.kernel.runtime.absolute())}
    job = shell.job
    grouped = job is not None and shell.controls
    shell.screen.out.flush()
    source: IO[str] | int | None = shell.input
    if source is None and job is not None and not job.in_foreground:
        source = subprocess.DEVNULL
    if source is None and grouped and shell.terminal is not None:
        shell.terminal.restore()  # it may read what is typed
    try:
        with job.starting() if job is not None else nullcontext():
            program = _started(path, words, environment, shell, source, grouped)
            if job is not None:
                job.started(program, grouped=grouped)
    except PermissionError:
        raise SyscallError(Errno.EPERM, f"{path!r} may not be executed; `ls -l` shows by whom") from None
    except OSError as error:
        raise SyscallError(Errno.ENOEXEC, f"{path!r} cannot be executed: {error.strerror}") from None
    if job is None:
        return _waited(program)
    return job.wait_for(program)


def _started(
    path: str,
    words: Sequence[str],
    environment: dict[str, str],
    shell: Session,
    source: IO[str] | int | None,
    grouped: bool,
) -> subprocess.Popen[bytes]:
    def start(group: int | None) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            list(words),
            executable=path,
            env=environment,
            stdin=source,
            stdout=shell.screen.out,
            stderr=shell.screen.err,
            process_group=group,
        )

    if not grouped or shell.job is None:
        return start(None)
    try:
        return start(shell.job.pgid)
    except (PermissionError, ProcessLookupError):
        if not shell.job.pgid:
            raise
    return start(0)  # the group's last program has ended meanwhile


def _waited(program: subprocess.Popen[bytes]) -> int:
    """Wait for a program that shares this shell's process group: Ctrl-C goes to both, and is the program's to handle."""
    import threading

    if threading.current_thread() is not threading.main_thread():
        status = program.wait()
    else:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            status = program.wait()
        finally:
            signal.signal(signal.SIGINT, before)
    if status == -signal.SIGINT:
        raise KeyboardInterrupt
    return status if status >= 0 else 128 - status

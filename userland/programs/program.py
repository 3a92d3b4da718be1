"""run: start a userland program, a Python file, in an operating system process of its own.

It finds the kernel by LLMASOS_RUNTIME, as any program does; starting it from here makes no difference.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from llmasos.syscalls.calls import kernel_listens
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.sdk.options import file_path


def run(where: Path, file: str, arguments: Sequence[str]) -> int:
    """Run `file` against the kernel of runtime directory `where`; returns its exit status (128 + signal if killed).
    Raises what `checked` does."""
    path = checked(where, file)
    environment = {**os.environ, "LLMASOS_RUNTIME": str(where.absolute())}
    with subprocess.Popen([sys.executable, str(path), *arguments], env=environment) as child:
        # Ctrl-C goes to the whole foreground group: the program handles it, and this one waits.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            status = child.wait()
        finally:
            signal.signal(signal.SIGINT, before)
    return status if status >= 0 else 128 - status


def checked(where: Path, file: str) -> Path:
    """The path of a program that can be run. Raises ENOENT if there is no such file, EINVAL if it is no file, EPERM if it
    may not be read, ECONNREFUSED if no kernel runs."""
    path = Path(file_path(file))
    if not path.exists():
        where_from = "" if os.path.isabs(os.path.expanduser(file)) else f" here ({Path.cwd()})"
        raise SyscallError(Errno.ENOENT, f"there is no program {file!r}{where_from}; name a Python file")
    if path.is_dir() and not (path / "__main__.py").is_file():
        raise SyscallError(Errno.EINVAL, f"{file!r} is a directory; name a Python file")
    if not os.access(path, os.R_OK):
        raise SyscallError(Errno.EPERM, f"{file!r} may not be read by you; `ls -l` shows by whom")
    kernel_listens(where)
    return path

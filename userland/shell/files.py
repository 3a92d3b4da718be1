"""Files that a person names in the shell: for redirections, `cat ./notes.txt`, `source`."""

from __future__ import annotations

import os
from typing import TextIO

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.sdk.options import file_path
from llmasos.userland.shell import pipes

_MODES = {"<": os.O_RDONLY, ">": os.O_WRONLY | os.O_CREAT | os.O_TRUNC, ">>": os.O_WRONLY | os.O_CREAT | os.O_APPEND}


def opened(name: str, operator: str) -> TextIO:
    """The file of a redirection. Raises ENOENT, EPERM, EINVAL."""
    path = file_path(name)
    try:
        descriptor = os.open(path, _MODES[operator.lstrip("2&")] | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise file_error(name, error) from None
    return pipes.reader(descriptor) if operator == "<" else pipes.writer(descriptor)


def file_error(name: str, error: OSError) -> SyscallError:
    """What the operating system says about a file, as an error of this one."""
    match error:
        case FileNotFoundError():
            return SyscallError(Errno.ENOENT, f"there is no file {name!r}")
        case PermissionError():
            return SyscallError(Errno.EPERM, f"{name!r} may not be opened by you; `!ls -l` shows by whom")
        case IsADirectoryError():
            return SyscallError(Errno.EINVAL, f"{name!r} is a directory; name a file")
    return SyscallError(Errno.EIO, f"{name!r} cannot be used: {error.strerror}")

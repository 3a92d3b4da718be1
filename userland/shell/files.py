"""Files that a person names in the shell: for redirections, `cat ./notes.txt`, `source`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.programs.screen import Screen, Unwritable
from llmasos.userland.sdk.options import file_path
from llmasos.userland.shell import pipes

_MODES = {"<": os.O_RDONLY, ">": os.O_WRONLY | os.O_CREAT | os.O_TRUNC, ">>": os.O_WRONLY | os.O_CREAT | os.O_APPEND}


def is_path(word: str) -> bool:
    """Whether a word names a file: it has a slash in it, or is `-` for the input."""
    return "/" in word or word in ("-", "~")


def opened(name: str, operator: str) -> TextIO:
    """The file of a redirection. Raises ENOENT, EPERM, EINVAL."""
    path = file_path(name)
    try:
        descriptor = os.open(path, _MODES[operator.lstrip("2&")] | os.O_CLOEXEC, 0o666)
        try:
            return pipes.reader(descriptor) if operator == "<" else pipes.writer(descriptor)
        except OSError:
            os.close(descriptor)
            raise
    except OSError as error:
        above = os.path.dirname(path)
        if isinstance(error, FileNotFoundError) and operator != "<" and above and not os.path.isdir(above):
            raise SyscallError(Errno.ENOENT, f"there is no directory {above!r} for {name!r}") from None
        raise file_error(name, error) from None


@contextmanager
def closing(name: str, stream: TextIO) -> Iterator[None]:
    """Close the file of a redirection at the end. Raises EIO, with its name, if it did not take what was written."""
    try:
        yield
    except BaseException as error:
        told = _closed(name, stream)
        # A write that failed has left its text in the buffer, and closing fails for the same reason.
        if told is not None and isinstance(error, Unwritable):
            raise told from None
        raise
    told = _closed(name, stream)
    if told is not None:
        raise told


@contextmanager
def closing_errors(name: str, stream: TextIO, screen: Screen) -> Iterator[None]:
    """Close the file that errors go to. If it did not take them, that is said; the command's status stays its own."""
    try:
        yield
    finally:
        told = _closed(name, stream)
        if told is not None:
            screen.error(str(told))


def _closed(name: str, stream: TextIO) -> SyscallError | None:
    try:
        pipes.close(stream)
    except OSError as error:
        return SyscallError(Errno.EIO, f"{name}: {error.strerror}")
    return None


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

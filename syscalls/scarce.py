"""What the operating system refuses to a program that connects, as an errno that says what to do about it: descriptors
first of all, of which a connection takes some."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from llmasos.syscalls.errno import Errno, SyscallError

SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN})  # others may give some back
LIBZMQ = 16  # descriptors that libzmq takes for a connection, its first, at most


@contextmanager
def told() -> Iterator[None]:
    """Within this an OSError is raised as a SyscallError: EAGAIN where something is short, EPERM, ENOENT, EIO."""
    try:
        yield
    except OSError as error:
        raise refused(error) from None


def refused(error: OSError) -> SyscallError:
    """Why a program cannot connect."""
    about = f" ({error.filename})" if isinstance(error.filename, str) else ""
    if error.errno == errno.EMFILE:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return Errno.EAGAIN(
            f"this program has as many files and sockets open as it may have ({most}): close some, or raise its limit "
            "(`ulimit -n`), and connect again"
        )
    if error.errno == errno.ENFILE:
        return Errno.EAGAIN("this machine has as many files open as it may have (sysctl fs.file-max): try again later")
    if error.errno in SHORT:
        why = f"this machine has not what a connection takes: {error.strerror}{about}"
        return Errno.EAGAIN(f"{why}; end some programs, or try again later")
    kind = Errno.EPERM if isinstance(error, PermissionError) else Errno.EIO
    kind = Errno.ENOENT if isinstance(error, FileNotFoundError | NotADirectoryError) else kind
    return kind(f"the operating system refuses what a connection takes: {error.strerror or error}{about}")


def check_descriptors(count: int = LIBZMQ) -> None:
    """Raises OSError where so many descriptors cannot be had: before what does worse without. libzmq ends the whole
    program, and `tempfile`, when first used, says that no directory can be written."""
    taken: list[int] = []
    try:
        for _ in range(count):
            taken += (os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC),)
    finally:
        for one in taken:
            os.close(one)

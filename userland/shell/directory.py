"""The working directory of a subshell is its own, as POSIX has it: `(cd /tmp; ls)` leaves the shell where it is.

A subshell that runs in the main thread is taken back when it ends. A member of a pipeline, or a job, runs in a thread,
and threads share their directory until one of them asks for its own: unshare(2) with CLONE_FS, which needs no right.
Where a sandbox forbids it (Docker's default does), `cd` says so in such a thread.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from llmasos.syscalls.errno import Errno, SyscallError

_CLONE_FS = 0x200
_thread = threading.local()


def own() -> None:
    """From here on the directory of this thread is its own."""
    _thread.own = ctypes.CDLL(None).unshare(_CLONE_FS) == 0


@contextmanager
def kept() -> Iterator[None]:
    """Come back to the present directory at the end, wherever it may be called by then."""
    try:
        here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # it has been removed: there is nothing to come back to
        yield
        return
    try:
        yield
    finally:
        os.fchdir(here)
        os.close(here)


def change(path: str) -> None:
    """Go to a directory. Raises ENOENT, EPERM, EIO, ENOTSUP."""
    if threading.current_thread() is not threading.main_thread() and not getattr(_thread, "own", False):
        raise SyscallError(
            Errno.ENOTSUP, "this machine gives a member of a pipeline no directory of its own; `cd` before the pipeline"
        )
    try:
        os.chdir(path)
    except FileNotFoundError:
        raise SyscallError(Errno.ENOENT, f"there is no directory {path!r}") from None
    except NotADirectoryError:
        raise SyscallError(Errno.ENOENT, f"{path!r} is no directory") from None
    except PermissionError:
        raise SyscallError(Errno.EPERM, f"{path!r} may not be entered by you; `!ls -ld` shows by whom") from None
    except OSError as error:
        raise SyscallError(Errno.EIO, f"{path!r} cannot be entered: {error.strerror}") from None

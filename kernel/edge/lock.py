"""Holding a runtime directory: one kernel at a time, and no other user may look inside, or change what is there.

Like a daemon's pid file with flock: the operating system releases the lock when its holder ends, however it ends, so the
next kernel simply takes over the directory of a killed one. syscalls/runtime.py names the files in it.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from pathlib import Path

from llmasos.syscalls import runtime, zeromq
from llmasos.syscalls.atomic_file import write_all
from llmasos.syscalls.errno import Errno

_PATIENCE = 0.5  # seconds: a program that only asks whether a kernel runs holds the lock for an instant


PRIVATE, ENTERED = 0o700, 0o711  # modes of a user's own runtime directory, and of the machine's kernel's


def prepare(directory: Path) -> bool:
    """Make the runtime directory, 0700 and owned by this user; returns whether it was made now. One that is there must be
    so already, and is not changed: it may be a project, or /tmp. That of the machine's kernel is 0711, so that all users
    find the socket there. Raises SyscallError if it cannot be used."""
    shared = runtime.is_system(directory)
    try:
        zeromq.check_endpoint(runtime.endpoint(directory, runtime.DRIVERS))
    except ValueError as error:
        raise Errno.EINVAL(str(error)) from None
    _check_links(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=PRIVATE)
        if shared:
            directory.chmod(ENTERED)  # whatever the umask is
        return True
    except FileExistsError:
        pass
    except OSError as error:
        if shared and isinstance(error, PermissionError):
            raise Errno.EPERM(
                f"{directory}, the runtime directory of the machine's kernel, cannot be made: {error.strerror} (EACCES); "
                "boot it as root or by its systemd unit (`llmasos boot --system --unit` prints one), or boot a kernel of "
                "your own, without --system"
            ) from None
        raise Errno.EIO(f"the runtime directory {directory} cannot be made: {error.strerror}; name another") from None
    if not directory.is_dir():
        raise Errno.EINVAL(f"{directory} is no directory; name another (--runtime or LLMASOS_RUNTIME)")
    found = directory.stat()
    if found.st_uid != os.getuid():
        raise Errno.EPERM(
            f"the runtime directory {directory} belongs to user {found.st_uid}, not to you ({os.getuid()}); "
            "name another (--runtime or LLMASOS_RUNTIME)"
        )
    mode = stat.S_IMODE(found.st_mode)
    if shared:
        if mode & 0o022:
            raise Errno.EPERM(f"others may write to the directory {directory} (mode {mode:04o}); close it (chmod 711)")
        directory.chmod(mode | ENTERED)
    elif mode & 0o077:
        raise Errno.EPERM(
            f"the directory {directory} is open to other users (mode {mode:04o}), and a kernel's sockets must not be; "
            f"name one that is not there yet, such as {directory / 'llmasos'}, or close it (chmod 700)"
        )
    return False


def _check_links(directory: Path) -> None:
    """Follow no symbolic link that another user has made: it may lead to a directory of this user's where a kernel would
    remove files. Raises SyscallError EPERM."""
    place = directory.absolute()
    for part in (*reversed(place.parents), place):
        try:
            found = part.lstat()
        except OSError:  # it is not there, and nothing below it
            return
        if stat.S_ISLNK(found.st_mode) and found.st_uid not in (os.getuid(), 0):
            raise Errno.EPERM(
                f"{part} is a symbolic link that user {found.st_uid} has made, and is not followed; "
                "name another runtime directory (--runtime or LLMASOS_RUNTIME)"
            )


def hold(directory: Path) -> int:
    """Take the lock, for as long as the returned descriptor is open. Raises SyscallError EBUSY: another kernel holds
    it; OSError."""
    deadline = time.monotonic() + _PATIENCE
    path = directory / runtime.LOCK
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
                os.ftruncate(lock, 0)
                write_all(lock, f"{os.getpid()} {time.time():.3f}\n".encode())
                return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                found = os.pread(lock, 100, 0).split()
                os.close(lock)
                raise Errno.EBUSY(_held(directory, found)) from None
        except OSError as error:
            os.close(lock)
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None
        # A program asks about it in this instant, or its last holder removed it after we had opened it.
        os.close(lock)
        time.sleep(0.02)


def release(directory: Path, lock: int, *, keep_log: bool = False) -> None:
    """Remove the kernel's files from the runtime directory, and let go of it. `keep_log` keeps the log of one that
    failed. Raises SyscallError EIO: some are left, and it has let go nevertheless."""
    left = []
    for name in (runtime.PROGRAMS, runtime.DRIVERS, runtime.FILES, *(() if keep_log else (runtime.LOG,)), runtime.LOCK):
        try:
            (directory / name).unlink(missing_ok=True)
        except OSError as error:
            left.append(f"{directory / name} cannot be removed: {error.strerror}")
    os.close(lock)
    if left:
        raise Errno.EIO(f"{'; '.join(left)}; the kernel has ended, and the next one that is booted here replaces that")


def _held(directory: Path, found: list[bytes]) -> str:
    pid = found[0].decode() if found else "unknown"
    since = ""
    if len(found) > 1:
        since = time.strftime(" since %Y-%m-%d %H:%M:%S", time.localtime(float(found[1])))
    return (
        f"a kernel runs in {directory} already (pid {pid}{since}); use it, end it with `llmasos halt`, "
        "or boot another one elsewhere (--runtime or LLMASOS_RUNTIME)"
    )

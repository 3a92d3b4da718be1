"""Reasons why the file of a process image cannot be written or read, for people, and what to do about it."""

from __future__ import annotations

import errno
import os
import stat

from llmasos.syscalls.errno import Errno, SyscallError

WHICH = "; name the file that `checkpoint` has written"
_KINDS = {
    stat.S_IFDIR: "a directory", stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a fifo", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip


class Locked(SyscallError):
    """A file is under a key of a kernel's user, which has to be given; `name` tells which."""

    def __init__(self, path: str, name: bytes) -> None:
        super().__init__(Errno.EPERM, f"{path} is encrypted under a key of the kernel's user, which is not here")
        self.name = name


def kind_of(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "no regular file")


def refusal(path: str, error: OSError, *, writing: bool = False) -> SyscallError:
    """An error of the operating system as one of ours."""
    why = error.strerror or str(error)
    folder = os.path.dirname(path)
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR if not os.path.isdir(folder):
            there = f"{folder} is no directory" if os.path.exists(folder) else f"there is no directory {folder}"
            do = "make it (`mkdir -p`), or choose another place" if there.startswith("there") else "choose another place"
            return SyscallError(Errno.ENOENT, f"{path}: {there}" + (f"; {do}" if writing else WHICH))
        case errno.ENOENT | errno.ENOTDIR if writing:
            return SyscallError(Errno.EPERM, f"{path}: no file can be made in {folder}; choose another place")
        case errno.ENOENT | errno.ENOTDIR:
            return SyscallError(Errno.ENOENT, f"{path}: there is no such file{WHICH}")
        case errno.EACCES | errno.EPERM | errno.EROFS if writing:
            return SyscallError(Errno.EPERM, f"{path}: {why}; choose a place where the kernel's user may write and read")
        case errno.EACCES | errno.EPERM:
            return SyscallError(Errno.EPERM, f"{path}: {why}; it is the kernel's user that must be allowed to read it")
        case errno.ENAMETOOLONG:
            return SyscallError(Errno.EINVAL, f"{path}: {why}; choose a shorter one")
        case errno.ELOOP | errno.EISDIR | errno.ENXIO:
            return SyscallError(Errno.EINVAL, f"{path}: {why}")
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return SyscallError(
                Errno.EIO,
                f"{path}: no space left ({why}); nothing of it is kept, and nothing is lost; "
                "free some, or choose another place",
            )
    return SyscallError(Errno.EIO, f"{path}: {why}")

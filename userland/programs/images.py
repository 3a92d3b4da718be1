"""checkpoint, restore: a process to a file and back, and the messages of the command line and the shell about it.

The kernel has another working directory, so it gets the absolute paths of files. A passphrase comes from a file, because
every user who lists the processes would see it on a command line.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from llmasos.modelfiles.called import called
from llmasos.syscalls.blocking import Client
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.limits import MAX_KEY
from llmasos.syscalls.records import CheckpointInfo, ProcessInfo
from llmasos.syscalls.table import Checkpoint, Getinfo, Restore
from llmasos.userland.programs.figures import size
from llmasos.userland.programs.ps import Kernel
from llmasos.userland.sdk import script
from llmasos.userland.sdk.options import file_path, located

_ERRNOS: dict[type[OSError], Errno] = {
    FileNotFoundError: Errno.ENOENT,
    NotADirectoryError: Errno.ENOENT,
    PermissionError: Errno.EPERM,
    IsADirectoryError: Errno.EINVAL,
}


def passphrase_in(path: str) -> bytes:
    """The first line of a file; empty without a file. Raises ENOENT, EPERM, EINVAL, EIO."""
    if not path:
        return b""
    try:
        with open(os.path.expanduser(path), "rb") as file:
            line = file.readline(MAX_KEY + 2).rstrip(b"\r\n")
    except OSError as error:
        errno = _ERRNOS.get(type(error), Errno.EIO)
        raise SyscallError(
            errno,
            f"the passphrase cannot be read from {path}: {error.strerror}; name a file that has it in its first line",
        ) from None
    if not 0 < len(line) <= MAX_KEY:
        raise SyscallError(Errno.EINVAL, f"the first line of {path} is no passphrase; it may have 1 to {MAX_KEY} bytes")
    return line


def checkpoint(kernel: Kernel, pid: int, file: str, *, kv: bool, passphrase_file: str) -> tuple[CheckpointInfo, str]:
    """Write a process's image; returns what is in it, and the message."""
    info = kernel(Checkpoint(pid, file_path(file), kv, passphrase_in(passphrase_file)))
    return info, f"[{pid}] is in {info.path}: {_contents(info)}"


def _contents(info: CheckpointInfo) -> str:
    kv = f"with the KV of {info.kv_tokens}" if info.kv_tokens else "without KV"
    return f"{info.tokens} tokens, {kv}, {size(info.bytes)}"


def restore(
    kernel: Client,
    file: str,
    *,
    name: str = "",
    device: str = "",
    model: str = "",
    detached: bool,
    passphrase_file: str,
    shown: Callable[[str], str],
) -> tuple[ProcessInfo, str]:
    """Start a process from an image; returns its row and the message. `shown` makes its name printable."""
    path, key = file_path(file), passphrase_in(passphrase_file)
    where = script.run(kernel, located(model)) if model else ""
    pid = kernel(Restore(path, name, device, detached, key, where))
    info = kernel(Getinfo(pid))
    doing = "stopped" if info.state.value == "stopped" else "decoding" if info.decoding else "idle"
    return (
        info,
        f"[{pid}] {shown(info.name)} on {shown(called(info.model))}: {info.length} tokens, {doing}, from {path}",
    )

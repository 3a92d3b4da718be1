"""The kernel's key for connections from other machines, and the file of the keys that may come, as `[net]` names them."""

from __future__ import annotations

from pathlib import Path

from llmasos.kernel.edge.settings import Net
from llmasos.syscalls import curve_keys
from llmasos.syscalls.errno import Errno, SyscallError


def server_key(wanted: Net) -> bytes:
    """The kernel's secret key; it is made if it is not there. Raises SyscallError EPERM: others may read it; EINVAL,
    EIO."""
    path = _place(wanted.key, curve_keys.SERVER)
    if not path.exists():
        try:
            curve_keys.new_secret(path)
        except SyscallError as error:
            if error.errno is not Errno.EBUSY:  # another kernel has just made it
                raise
    return curve_keys.secret_of(path)


def authorized_keys(wanted: Net) -> Path:
    return _place(wanted.authorized_keys, curve_keys.AUTHORIZED)


def _place(named: str, usual: str) -> Path:
    return Path(named).expanduser().absolute() if named else curve_keys.place(usual)

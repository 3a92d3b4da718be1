"""Sizes as people write them: `512MiB`, `2G`, `1000000`."""

from __future__ import annotations

import re

from llmasos.syscalls.errno import Errno, SyscallError

Size = int | str

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]i?|)b?", re.IGNORECASE)


def size(value: Size, what: str) -> int:
    """Bytes, from a number or from text. Raises SyscallError EINVAL that names `what`."""
    if isinstance(value, int):
        number = float(value)
    elif match := _SIZE.fullmatch(value.strip()):
        number = float(match[1]) * _UNITS[match[2].lower()]
    else:
        raise SyscallError(Errno.EINVAL, f"{what}: {value!r} is no size; write e.g. 512MiB, 2G or 1000000")
    if number < 0:
        raise SyscallError(Errno.EINVAL, f"{what}: a size cannot be negative, {value} is")
    return int(number)

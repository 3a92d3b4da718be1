"""The endpoints of sandboxes: each a socket in a directory of its own, below that of the kernel.

The directory is what is bound into a sandbox, so it lives as long as that: when the kernel dies it stays, and the next
one listens in the same again. A sign in it tells programs that a kernel will come, as in the kernel's own directory. Who
may come is not a matter of modes: the core asks whose a program is, and the edge knows by which socket it came.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from llmasos.kernel.edge import listening
from llmasos.syscalls import runtime


def place_of(directory: Path, number: int) -> Path:
    """Where the endpoint of a sandbox is, in the kernel's runtime directory."""
    return directory / runtime.SANDBOXES / f"{number:x}"


def make(directory: Path, number: int, *, durable: bool) -> tuple[socket.socket, Path]:
    """The listening socket of a sandbox, and its directory. `durable`: the next kernel will have it, too. Raises
    OSError."""
    place = place_of(directory, number)
    place.parent.mkdir(mode=0o711, exist_ok=True)
    place.parent.chmod(0o711)  # whatever the umask is: a kernel may serve several users
    place.mkdir(mode=0o755, exist_ok=True)
    folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fchmod(folder, 0o755)
        if durable:
            (place / runtime.JOURNAL).touch()
        listener = listening.listen(Path(f"/proc/self/fd/{folder}") / runtime.PROGRAMS)  # its path may be a long one
        os.chmod(place / runtime.PROGRAMS, 0o666)
    finally:
        os.close(folder)
    return listener, place


def remove(directory: Path, number: int) -> None:
    """Leave nothing of it."""
    shutil.rmtree(place_of(directory, number), ignore_errors=True)
    with suppress(OSError):  # others are there
        (directory / runtime.SANDBOXES).rmdir()


def clear(directory: Path, kept: Collection[int] = ()) -> None:
    """Remove those that no kernel has any more, but for these."""
    place = directory / runtime.SANDBOXES
    try:
        found = list(place.iterdir()) if place.is_dir() else []
    except OSError:  # the next kernel tries again
        return
    names = {place_of(directory, number).name for number in kept}
    for one in found:
        if one.name not in names:
            shutil.rmtree(one, ignore_errors=True)
    if place.is_dir():
        with suppress(OSError):  # some are kept
            place.rmdir()

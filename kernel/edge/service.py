"""The kernel of a machine as a service of systemd: its unit, and what it tells the service manager.

The protocol (sd_notify(3)) is a datagram to the socket that $NOTIFY_SOCKET names. Where that is not set there is nobody
to tell.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
from contextlib import suppress
from pathlib import Path

from llmasos.syscalls.errno import Errno

_UNIT = Path(__file__).with_name("llmasos.service")
_PYTHON = "@PYTHON@"
_HOMES = ("/home", "/root", "/run/user")  # which ProtectHome= hides
_SOCKET = "NOTIFY_SOCKET"


def unit(python: str = sys.executable, package: Path = Path(__file__)) -> str:
    """The unit of this installation. Raises SyscallError ENOTSUP: it lies in a user's home, who could change what the
    machine's kernel runs."""
    for place in (Path(python), package.resolve()):
        if any(place.is_relative_to(home) for home in _HOMES):
            raise Errno.ENOTSUP(
                f"{place} is in a home directory, and a service of the machine must not be what one user can change; "
                "install it elsewhere, and print the unit there: `python3 -m venv /opt/llmasos`, `/opt/llmasos/bin/pip "
                "install llmasos`"
            )
    return _UNIT.read_text().replace(_PYTHON, shlex.quote(python))


class Manager:
    """Who has started the service; children do not inherit the way to it."""

    def __init__(self) -> None:
        self._address = os.environ.pop(_SOCKET, "")

    def tell(self, *facts: str) -> None:
        """Say what has become so, as `READY=1`."""
        if not self._address:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as way:
            way.settimeout(1.0)
            way.sendto("\n".join(facts).encode(), address)

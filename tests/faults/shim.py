"""The shim of faults (shim.c): built with the machine's C compiler, told what is to fail, asked what it has seen."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

KERNEL, DRIVER = 1, 2
SHORT, TORN, MISDIRECTED = -1, -2, -3
NAMES = {SHORT: "short", TORN: "torn", MISDIRECTED: "misdirected"}
ROLES = {KERNEL: "kernel", DRIVER: "driver"}
_FORM = struct.Struct("<IIQiIIIQQ")  # struct control
_SOURCE = Path(__file__).with_name("shim.c")

_FILES = (errno.EMFILE, errno.ENOMEM)
_NEW = (errno.EMFILE, errno.EIO)
_WRITES = (errno.ENOSPC, errno.EIO, errno.EINTR, SHORT)
_SENDS = (errno.EPIPE, errno.EINTR)
FAULTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("open", "open64", "openat", "openat64", "opendir", "fopen", "fopen64"), _NEW),
    **dict.fromkeys(("write", "writev"), _WRITES),
    **dict.fromkeys(("pwrite", "pwrite64", "pwritev", "pwritev64", "pwritev64v2"), (*_WRITES, TORN, MISDIRECTED)),
    **dict.fromkeys(("read", "pread", "pread64", "preadv", "preadv64", "preadv64v2"), (errno.EIO, errno.EINTR, SHORT)),
    **dict.fromkeys(("fsync", "fdatasync", "posix_fallocate", "posix_fallocate64"), (errno.EIO, errno.ENOSPC)),
    **dict.fromkeys(("rename", "renameat", "link", "linkat", "symlink", "mkdir"), (errno.ENOSPC, errno.EIO)),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir", "flock"), (errno.EIO,)),
    **dict.fromkeys(("ftruncate", "ftruncate64"), (errno.ENOSPC, errno.EINTR)),
    **dict.fromkeys(("mmap", "mmap64", "memfd_create"), (errno.ENOMEM,)),
    **dict.fromkeys(
        ("socket", "socketpair", "accept", "accept4", "pipe", "pipe2", "eventfd", "dup", "dup2", "dup3"), _FILES
    ),
    **dict.fromkeys(("epoll_create", "epoll_create1"), _FILES),
    "epoll_ctl": (errno.ENOMEM,),
    **dict.fromkeys(("bind", "listen", "connect"), (errno.ENOMEM,)),
    **dict.fromkeys(("recv", "recvfrom", "recvmsg"), (errno.ECONNRESET, errno.EINTR)),
    **dict.fromkeys(("send", "sendto", "sendmsg"), _SENDS),
    "getsockopt": (errno.ENOMEM,),
}
"""What may become of a call: errnos, and what contents may suffer."""


class Site(NamedTuple):
    """A place from which kernel or driver call the operating system. `stack`: innermost first."""

    role: int
    number: int
    call: str
    stack: str

    def __str__(self) -> str:
        return f"{ROLES[self.role]} {self.call} {' < '.join(self.stack.split(' < ')[:4])}"


def fault_name(fault: int) -> str:
    return NAMES.get(fault) or errno.errorcode[fault]


def unavailable() -> str:
    """Why there are no faults here; empty: there are."""
    if not sys.platform.startswith("linux"):
        return "faults are injected by Linux's LD_PRELOAD"
    return "" if shutil.which("gcc") else "faults are injected by a library that gcc builds, and there is no gcc"


def build(directory: Path) -> Path:
    """Compile the shim. Raises CalledProcessError."""
    library = directory / "shim.so"
    words = ["gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", os.fspath(library), os.fspath(_SOURCE), "-ldl"]
    subprocess.run([*words, "-lpthread"], check=True)
    return library


@dataclass(slots=True)
class Shim:
    """The shim of one kernel and its drivers: `environment` is theirs."""

    library: Path
    directory: Path

    def __post_init__(self) -> None:
        self.control.write_bytes(bytes(_FORM.size))
        self.log.touch()

    @property
    def control(self) -> Path:
        return self.directory / "control"

    @property
    def log(self) -> Path:
        return self.directory / "sites"

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "LD_PRELOAD": os.fspath(self.library),
            "LLMASOS_SHIM": os.fspath(self.control),
            "LLMASOS_SHIM_SITES": os.fspath(self.log),
        }

    def arm(self, fault: int, *, role: int = KERNEL | DRIVER, site: int = 0, skip: int = 0, times: int = 1) -> None:
        """Let calls fail: the next `times` at a place, or everywhere, after `skip` others."""
        self._write(0, role, site, fault, skip)
        self._write(times, role, site, fault, skip)

    def disarm(self) -> None:
        """No call fails any more; `fired` stays as it is."""
        with self.control.open("r+b") as file, mmap.mmap(file.fileno(), _FORM.size) as page:
            page[:] = _FORM.pack(0, *_FORM.unpack(page[:])[1:])

    def _write(self, armed: int, role: int, site: int, fault: int, skip: int) -> None:
        with self.control.open("r+b") as file, mmap.mmap(file.fileno(), _FORM.size) as page:
            page[:] = _FORM.pack(armed, role, site, fault, skip, 0, 0, *_FORM.unpack(page[:])[7:])

    def forget(self) -> None:
        """Note places anew."""
        self.log.write_bytes(b"")
        with self.control.open("r+b") as file, mmap.mmap(file.fileno(), _FORM.size) as page:
            *others, looks = _FORM.unpack(page[:])
            page[:] = _FORM.pack(*others, looks + 1)

    @property
    def fired(self) -> int:
        """Calls that have failed since it was armed."""
        return int(_FORM.unpack(self.control.read_bytes())[5])

    @property
    def calls(self) -> int:
        """Calls that came by, in all processes."""
        return int(_FORM.unpack(self.control.read_bytes())[7])

    def sites(self) -> list[Site]:
        """All places that were seen, in the order in which they were seen first."""
        found: dict[tuple[int, int], Site] = {}
        for line in self.log.read_text(errors="replace").splitlines():
            role, number, call, stack = [*line.split("\t"), "", "", ""][:4]
            if stack and role.isdecimal():
                site = Site(int(role), int(number, 16), call, stack)
                found.setdefault((site.role, site.number), site)
        return list(found.values())

"""The runtime directory: the place of one kernel's sockets and lock, and who holds it.

As with /run/user on Linux, the environment names its place, and no other user may look inside: it is 0700 and owned by
the user. A kernel is alive exactly while it holds the lock (flock: the operating system releases it with the process,
however that ends), so the files of a dead kernel are never mistaken for those of a living one.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

from llmasos.syscalls.errno import Errno

REMOTE = "tcp://"  # begins the address of a kernel on another machine
LOCK = "kernel.lock"
PROGRAMS = "kernel.sock"
DRIVERS = "drivers.sock"
LOG = "kernel.log"
SANDBOXES = "sandboxes"  # the directories of their sockets
JOURNAL = "kernel.journal"
_NOBODY = 65534  # the uid of users that a namespace does not have
BOOTED = "kernel.booted"  # beside the journal: the words that its kernel was booted with


_PLACE = Path(__file__).absolute().parents[2]  # the directory that holds the package `llmasos`


def module(name: str) -> list[str]:
    """The command that runs a module of this package in another process. The process does not search its working
    directory for modules, because people have files there with the names of ours."""
    return [sys.executable, "-P", "-m", name]


def package() -> Path:
    """The directory of the package `llmasos`."""
    return _PLACE / "llmasos"


def environment() -> dict[str, str]:
    """The environment for such a process: it loads this package from the same place as this one, before PYTHONPATH."""
    found = os.environ.get("PYTHONPATH", "")
    path = f"{_PLACE}{os.pathsep}{found}" if found else os.fspath(_PLACE)
    return {**os.environ, "PYTHONPATH": path}


def default() -> Path:
    """$LLMASOS_RUNTIME, else the usual one."""
    place = os.environ.get("LLMASOS_RUNTIME")
    return Path(place) if place else usual()


def usual() -> Path:
    """The runtime directory of the user's own kernel: $XDG_RUNTIME_DIR/llmasos, else /tmp/llmasos-UID."""
    if place := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(place) / "llmasos"
    return Path(f"/tmp/llmasos-{os.getuid()}")


def state() -> Path:
    """The place of what outlives a reboot: $XDG_STATE_HOME/llmasos, else ~/.local/state/llmasos. RuntimeError: no home
    is known."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "llmasos"


def configuration() -> Path | None:
    """The configuration file that the user's kernels have where none is named. None: there is none."""
    return own_settings("kernel.toml")


def settings_place() -> Path:
    """The place of the user's settings: $XDG_CONFIG_HOME/llmasos, else ~/.config/llmasos. RuntimeError: no home is
    known."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "llmasos"


def own_settings(name: str) -> Path | None:
    """A file of the user's settings: $XDG_CONFIG_HOME/llmasos/NAME, else the same in ~/.config. None: there is none."""
    try:
        place = settings_place() / name
    except RuntimeError:  # no home is known
        return None
    return place if place.exists() else None


def journal_place(runtime: Path) -> Path:
    """The directory of the journal of a kernel in that runtime directory, where none is named: on the disk for the user's
    own kernel, since its runtime directory is mostly in memory; else the runtime directory itself. RuntimeError: no home
    is known."""
    return state() if runtime.absolute() == usual().absolute() else runtime


def is_remote(where: str | os.PathLike[str] | None) -> bool:
    """Whether that names a kernel on another machine, `tcp://HOST:PORT`; None: $LLMASOS_RUNTIME does."""
    text = os.environ.get("LLMASOS_RUNTIME", "") if where is None else os.fspath(where)
    return text.startswith(REMOTE)


def locate(runtime: str | os.PathLike[str] | None) -> Path:
    """The directory that is meant by a runtime directory, an `ipc://.../kernel.sock` endpoint, or None (the default).
    Raises SyscallError ENOTSUP: a kernel on another machine is."""
    if is_remote(runtime):
        found = os.environ["LLMASOS_RUNTIME"] if runtime is None else os.fspath(runtime)
        raise Errno.ENOTSUP(f"{found} is a kernel on another machine, and this is done on the machine of the kernel")
    if runtime is None:
        return default()
    place = os.path.expanduser(os.fspath(runtime))
    if place.startswith("ipc://"):
        return Path(place.removeprefix("ipc://")).parent
    return Path(place)


def endpoint(runtime: Path, socket_name: str = PROGRAMS) -> str:
    return f"ipc://{runtime.absolute() / socket_name}"


def holder(runtime: Path) -> int | None:
    """The OS pid of the kernel that holds the runtime directory; None if none does; 0 if it has not written its pid
    yet."""
    try:
        lock = os.open(runtime / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return 0 if (runtime / PROGRAMS).exists() and _answers(runtime) else None  # a sandbox has the socket alone
    try:
        # A shared lock for an instant: two readers do not disturb each other, and a booting kernel tries again.
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        words = os.read(lock, 100).split()
        return int(words[0]) if words and words[0].isdigit() else 0
    finally:
        os.close(lock)
    return None


def halted(runtime: Path) -> bool:
    """Whether the kernel with a journal that was there ended in good order. One that died leaves its journal, or a
    symbolic link to it."""
    # In this order: a booting kernel, which holds the lock, may have put a damaged journal aside.
    return not os.path.lexists(runtime / JOURNAL) and holder(runtime) is None


def listening(runtime: Path) -> bool:
    """Whether a kernel accepts programs there. False also while more of them wait than the queue takes.

    Raises PermissionError: another user's kernel does. In a directory that all may write to, such as /tmp, anybody can
    make the one that is named after this user.
    """
    path = os.fspath(runtime.absolute() / PROGRAMS)
    try:
        trusted = _is_trusted(os.stat(runtime).st_uid, runtime)
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            probe.connect(path)
            if (credentials := getattr(socket, "SO_PEERCRED", None)) is not None:  # of Linux: the listener's
                uid = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, credentials, 12))[1]
                trusted &= _is_trusted(uid, runtime)
    except OSError:  # also: a path too long to connect to
        return False
    if not trusted:
        raise PermissionError(f"the kernel in {runtime} is another user's")
    return True


def _answers(runtime: Path) -> bool:
    try:
        return listening(runtime)
    except PermissionError:
        return False


def _is_trusted(uid: int, runtime: Path) -> bool:
    if uid == _NOBODY != os.getuid():  # a sandbox does not know the kernel's user by his number
        above = os.stat(runtime.absolute().parent)  # where only this user can have put it
        return above.st_uid == os.getuid() and not above.st_mode & 0o022
    return uid in (os.getuid(), 0)

"""The runtime directory: the place of one kernel's sockets and lock, and who holds it.

As with /run/user on Linux, the environment names its place, and no other user may look inside: it is 0700 and owned by
the user. That of the machine's kernel, which serves all users, is in /run, and others may enter it but not read it: they
find the socket by its name. A kernel is alive exactly while it holds the lock (flock: the operating system releases it
with the process, however that ends), so the files of a dead kernel are never mistaken for those of a living one.
"""

from __future__ import annotations

import errno
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
FILES = "files.sock"  # of a kernel that serves several users: they show it files there (shown.py)
LOG = "kernel.log"
SANDBOXES = "sandboxes"  # the directories of their sockets
JOURNAL = "kernel.journal"
_NOBODY = 65534  # the uid of users that a namespace does not have
SYSTEM = "LLMASOS_SYSTEM"  # names the root below which the machine's kernel has its places, if that is not /
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
    """The runtime directory of the kernel that is meant where none is named: $LLMASOS_RUNTIME; else that of the user's
    own kernel, if one runs or has left its agents; else that of the machine's, if there is one; else the user's own."""
    if os.environ.get("LLMASOS_RUNTIME") or not _is_served() or _has_own():
        return own()
    return system()


def own() -> Path:
    """$LLMASOS_RUNTIME, else the usual one: where a kernel is booted that is to be nowhere else."""
    place = os.environ.get("LLMASOS_RUNTIME")
    return Path(place) if place else usual()


def _has_own() -> bool:
    """Whether the user has a kernel of his own, running or to be booted again."""
    place = usual()
    if os.path.lexists(place / JOURNAL) or holder(place) is not None:
        return True
    try:
        return os.path.lexists(journal_place(place) / JOURNAL)
    except RuntimeError:  # no home is known
        return False


def _is_served() -> bool:
    """Whether there is a kernel of the machine for this user: one that listens, or one that died and left its journal."""
    place = system()
    if not (os.path.lexists(place / PROGRAMS) or os.path.lexists(place / JOURNAL)):
        return False
    try:
        return listening(place) or os.path.lexists(place / JOURNAL)
    except PermissionError:
        return False


def usual() -> Path:
    """The runtime directory of the user's own kernel: $XDG_RUNTIME_DIR/llmasos, else /tmp/llmasos-UID."""
    if place := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(place) / "llmasos"
    return Path(f"/tmp/llmasos-{os.getuid()}")


def system() -> Path:
    """The runtime directory of the machine's kernel, /run/llmasos (of another root than /, with $LLMASOS_SYSTEM)."""
    return _root() / "run" / "llmasos"


def system_state() -> Path:
    """What of the machine's kernel outlives a reboot: /var/lib/llmasos."""
    return _root() / "var" / "lib" / "llmasos"


def system_settings() -> Path:
    """The place of the settings of the machine's kernel: /etc/llmasos."""
    return _root() / "etc" / "llmasos"


def is_system(directory: Path) -> bool:
    """Whether that is the runtime directory of the machine's kernel."""
    return directory.absolute() == system()


def _root() -> Path:
    return Path(os.environ.get(SYSTEM) or "/").absolute()


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
    own kernel and for the machine's, since their runtime directories are mostly in memory; else the runtime directory
    itself. RuntimeError: no home is known."""
    if is_system(runtime):
        return system_state()
    return state() if runtime.absolute() == usual().absolute() else runtime


def is_remote(where: str | os.PathLike[str] | None) -> bool:
    """Whether that names a kernel on another machine, `tcp://HOST:PORT`; None: $LLMASOS_RUNTIME does."""
    text = os.environ.get("LLMASOS_RUNTIME", "") if where is None else os.fspath(where)
    return text.startswith(REMOTE)


def locate(runtime: str | os.PathLike[str] | None, *, boot: bool = False) -> Path:
    """The directory that is meant by a runtime directory, an `ipc://.../kernel.sock` endpoint, or None (the default; to
    `boot` a kernel there, the user's own). Raises SyscallError ENOTSUP: a kernel on another machine is."""
    if is_remote(runtime):
        found = os.environ["LLMASOS_RUNTIME"] if runtime is None else os.fspath(runtime)
        raise Errno.ENOTSUP(f"{found} is a kernel on another machine, and this is done on the machine of the kernel")
    if runtime is None:
        return own() if boot else default()
    place = os.path.expanduser(os.fspath(runtime))
    if place.startswith("ipc://"):
        return Path(place.removeprefix("ipc://")).parent
    return Path(place)


def endpoint(runtime: Path, socket_name: str = PROGRAMS) -> str:
    return f"ipc://{runtime.absolute() / socket_name}"


def holder(runtime: Path) -> int | None:
    """The OS pid of the kernel that holds the runtime directory; None if none does; 0 if that is not known, or not yet.
    Raises PermissionError: it is another user's, and not the machine's."""
    try:
        lock = os.open(runtime / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return _listener(runtime) if (runtime / PROGRAMS).exists() else None  # a sandbox has the socket alone
    except PermissionError:
        if not is_system(runtime):
            raise
        return _listener(runtime)
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

    Raises OSError: this program has no descriptor to look; PermissionError: another user's kernel does, or the machine's,
    which does not serve this user. In a directory that all may write to, such as /tmp, anybody can make the one that is
    named after this user.
    """
    try:
        trusted = _trusted(runtime)
        owner = os.stat(runtime).st_uid
        _, uid = _probe(runtime)
    except PermissionError:
        if not is_system(runtime):
            return False
        raise PermissionError(f"the machine's kernel in {runtime} is not for this user") from None
    except OSError as error:  # also: a path too long to connect to
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return False
    if owner not in trusted or uid not in trusted:
        raise PermissionError(f"the kernel in {runtime} is another user's")
    return True


def _probe(runtime: Path) -> tuple[int, int]:
    """The OS pid and the uid of who listens there (0 and this user's, where the system does not tell). Raises OSError."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        probe.connect(os.fspath(runtime.absolute() / PROGRAMS))
        if (credentials := getattr(socket, "SO_PEERCRED", None)) is not None:  # of Linux
            pid, uid, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, credentials, 12))
            return pid, uid
    return 0, os.getuid()


def _listener(runtime: Path) -> int | None:
    """The OS pid of who listens there; 0: not known, as it does not let this user in, or too many wait; None: nobody."""
    try:
        return _probe(runtime)[0]
    except (PermissionError, BlockingIOError):
        return 0
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return None


def _trusted(runtime: Path) -> set[int]:
    """Whose kernel may be there: the user's own or root's; in the machine's place, where only root can make a directory,
    the one's to whom root has given it. Raises OSError: nothing is there."""
    trusted = {os.getuid(), 0}
    if is_system(runtime):
        above = os.stat(runtime.parent)
        if above.st_uid in trusted and not above.st_mode & 0o022:
            trusted.add(os.stat(runtime).st_uid)
    if os.getuid() != _NOBODY:  # a sandbox does not know the kernel's user by his number
        above = os.stat(runtime.absolute().parent)  # where only this user can have put the directory
        trusted |= {_NOBODY} if above.st_uid == os.getuid() and not above.st_mode & 0o022 else set()
    return trusted

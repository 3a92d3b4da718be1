"""boot: start a kernel, and wait until it takes programs: one that lasts, or one that ends with this program.

The lasting kernel is the user's: it runs in the background and keeps a journal, and whoever needs it joins it. A kernel
of an older version of this package hands over to this one. The private kernel is a child that halts when the pipe on its
stdin closes, and the operating system closes that pipe however this program ends. It has a session of its own, so that
Ctrl-C in the terminal goes to the program and does not end the system.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from llmasos.syscalls import blocking, readiness, runtime, scarce
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.forked import Origin
from llmasos.syscalls.records import BootInfo
from llmasos.syscalls.table import Shutdown
from llmasos.syscalls.version import version

BOOT_SECONDS = 60.0  # until a kernel must be up, or say how far it has come
HALT_SECONDS = 15.0
_PROGRESS = "journal: "  # begins the lines in which a detached kernel says how far it has come
USAGE = 2  # the status of a command line that is none


def boot_if_none(where: Path, flags: Sequence[str] = (), say: Callable[[str], object] = lambda line: None) -> bool:
    """Boot a lasting kernel if none runs in a runtime directory; returns whether it did. Without flags it is booted as
    the one was that has left its agents there. `say` is told how far it has come, if it takes its time. Raises EIO with
    the kernel's last words if it does not boot, EINVAL if `flags` are none of its."""
    if runtime.holder(where) is not None or runtime.is_system(where):  # that is booted by who administers the machine
        return False
    directory, before = _booted(where)
    try:
        _boot_lasting(where, flags or before, None if flags else directory, say)
    except SyscallError as error:
        if flags or not before:
            raise
        again = (
            f"it was booted as before ({' '.join(before)}); `llmasos boot --detach` boots one otherwise, with its agents"
        )
        raise error.errno(f"{error.reason}; {again}") from None
    return True


def _booted(where: Path) -> tuple[str | None, list[str]]:
    """The working directory and the words of the command that booted the last kernel, if it has left its agents."""
    with suppress(OSError, RuntimeError, ValueError, KeyError, TypeError):  # then it is booted as usual
        journal = (where / runtime.JOURNAL).resolve()
        journal = journal if journal.exists() else runtime.journal_place(where) / runtime.JOURNAL
        told = json.loads(journal.with_name(runtime.BOOTED).read_bytes()) if journal.exists() else {}
        if told and os.path.isdir(told["directory"]):
            return str(told["directory"]), [str(word) for word in told["arguments"]]
    return None, []


def booted_words(boot: BootInfo) -> list[str]:
    """What to tell people of a kernel that was booted for them."""
    kept = "it keeps no journal"
    if boot.journal_path:
        kept = f"its agents live on, also after a reboot ({boot.journal_path})"
    again = f" (as before: {' '.join(boot.arguments)})" if boot.arguments else ""
    return [f"booted a kernel in the background{again}; {kept}; `llmasos halt` ends it", *leaves_at_logout()]


def take_over(where: Path, boot: BootInfo, say: Callable[[str], object] = lambda line: None) -> list[str]:
    """Let a running kernel of an older version hand over to this one; if it cannot, it stays. Returns what to tell
    people: nothing, if it is not older; `say` as of `boot_if_none`. Programs that are attached go on with the new
    kernel."""
    mine = version()
    if not _older(boot.version, mine):
        return []
    if runtime.is_system(where):
        return [f"the machine's kernel is of version {boot.version}, this is {mine}; its service has to be restarted"]
    try:
        _boot_lasting(where, [*boot.arguments, "--hand-over"], say=say)
    except SyscallError as error:
        if runtime.holder(where) != boot.os_pid:
            raise
        return [f"the running kernel is of version {boot.version}, this is {mine}: {error.reason}"]
    return [f"the kernel {boot.version} has handed over to {mine}; its agents are here"]


def _boot_lasting(
    where: Path, flags: Sequence[str], directory: str | None = None, say: Callable[[str], object] = lambda line: None
) -> None:
    words = [*runtime.module("llmasos.kernel.edge.boot"), "--runtime", os.fspath(where.absolute()), "--detach", *flags]
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        boot = subprocess.Popen(
            words,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=runtime.environment(),
        )
        with boot:
            for line in boot.stdout or ():
                if line.startswith(_PROGRESS):
                    say(line.rstrip())
        if boot.returncode:
            errors.seek(0)
            said = errors.read().strip().removeprefix("llmasos boot: ")
            raise _not_booted(boot.returncode, said.splitlines()[-1] if boot.returncode == USAGE and said else said)


def _older(one: str, other: str) -> bool:
    """Whether one version comes before another; not, if either is none."""
    numbers = [[int(part) for part in re.findall(r"\d+", version.partition("+")[0])] for version in (one, other)]
    return bool(numbers[0]) and bool(numbers[1]) and numbers[0] < numbers[1]


def leaves_at_logout() -> list[str]:
    """What to tell where the service manager ends all processes of a user at logout: they end, and how they stay. Empty
    where it does not."""
    if "XDG_SESSION_ID" not in os.environ or not _logind_kills():
        return []
    user = os.environ.get("USER", "")
    if Path("/var/lib/systemd/linger", user).exists():
        return []
    return [
        "at logout this machine ends what a user has running (systemd-logind): the kernel ends, and the next one goes on "
        f"with its agents; `loginctl enable-linger {user}` lets it run on"
    ]


def _logind_kills() -> bool:
    """Whether KillUserProcesses is on; logind's own default is off, and distributions set it in these files."""
    value = "no"
    places = (Path("/usr/lib/systemd/logind.conf.d"), Path("/etc/systemd/logind.conf.d"))
    for file in [Path("/etc/systemd/logind.conf"), *(one for place in places for one in sorted(place.glob("*.conf")))]:
        try:
            found = re.findall(r"^\s*KillUserProcesses\s*=\s*(\S+)", file.read_text(errors="replace"), re.MULTILINE)
        except OSError:
            continue
        value = found[-1] if found else value
    return value.lower() in ("yes", "true", "on", "1")


@contextmanager
def private_kernel(
    where: Path, flags: Sequence[str] = (), *, own_runtime: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """A kernel in runtime directory `where` while the `with` lasts; `flags` are those of `python -m
    llmasos.kernel.edge.boot`. It removes a directory that it has made, or with `own_runtime` that was made for it.

    A fork of this program that leaves the `with` does not end it. Raises EIO with the kernel's last words if it does not
    boot, EINVAL if `flags` are none of its, ETIME if it takes longer than BOOT_SECONDS.
    """
    scarce.check_descriptors(3)  # those of the pipe, and that of the file
    origin = Origin()
    command = [
        *runtime.module("llmasos.kernel.edge.boot"),
        "--runtime",
        str(where),
        "--die-with-parent",
        *(["--own-runtime"] if own_runtime else []),
        *flags,
    ]
    ready, told = os.pipe()
    with os.fdopen(ready, "rb") as heard, os.fdopen(told, "wb") as telling, tempfile.TemporaryFile() as said:
        kernel = subprocess.Popen(
            [*command, "--ready", str(told)],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=runtime.environment(),
            pass_fds=[told],
        )
        telling.close()
        try:
            _await(kernel, where, heard, said.fileno())
            yield kernel
        finally:
            if origin.here:
                _end(kernel, where)


def _await(kernel: subprocess.Popen[bytes], where: Path, heard: BinaryIO, said: int) -> None:
    """Until its devices are up; one that takes its time does not keep programs from connecting."""
    up = readiness.await_ready(heard, BOOT_SECONDS)
    if up is None:
        if runtime.holder(where) == kernel.pid and runtime.listening(where):
            return
        raise SyscallError(Errno.ETIME, f"the kernel has not booted after {BOOT_SECONDS:.0f} s: {_tail(said)}")
    if not up:
        status = kernel.wait()
        why = _tail(said).removeprefix("llmasos boot: ")
        raise _not_booted(status, why)


def _not_booted(status: int, why: str) -> SyscallError:
    errno = Errno.EINVAL if status == USAGE else Errno.EIO
    return SyscallError(errno, f"the kernel did not boot: {why or f'status {status}'}")


def _tail(said: int) -> str:
    with open(said, "rb", closefd=False) as file:
        file.seek(0)
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _end(kernel: subprocess.Popen[bytes], where: Path) -> None:
    if kernel.poll() is None:
        try:
            with blocking.connect(where, name="halt", timeout=1.0, reconnect=0.0) as client:
                client(Shutdown(), timeout=5.0)
        except SyscallError:
            pass  # closing its stdin says the same
    assert kernel.stdin is not None
    kernel.stdin.close()
    try:
        kernel.wait(HALT_SECONDS)
    except subprocess.TimeoutExpired:
        kernel.kill()
        kernel.wait()

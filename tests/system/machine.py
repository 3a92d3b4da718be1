"""A machine with a kernel for all its users, below a root of its own; and some of its users.

The kernel runs as a service's user, as its systemd unit has it. Interpreter and package may be in a home that others
cannot enter, so it keeps the one capability that lets it read there; a user's program has imported all that it needs
before it becomes that user's, and has none.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import dedent
from typing import Any

from llmasos.syscalls import blocking, runtime
from llmasos.syscalls.errno import Errno, SyscallError
from tests.booted import PATIENCE, SIM, wait_for_kernel

SERVICE = 54_321  # the user of the service
CAPABILITY = "+dac_read_search"

_PROGRAM = """
    import contextlib, fcntl, io, json, os, pathlib, socket, sys
    from llmasos.kernel.edge import boot
    from llmasos.syscalls import blocking, calls, runtime
    from llmasos.syscalls.errno import SyscallError
    from llmasos.syscalls.records import GroupSettings, Kind, Signal
    from llmasos.syscalls.table import *
    from llmasos.userland.programs import groups, listing, screen, status
    uid, gids = int(sys.argv[1]), json.loads(sys.argv[2])
    os.setgroups(gids), os.setgid(uid), os.setuid(uid)
    here = globals()
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            told = {"value": eval(json.loads(line), here)}
        except SyscallError as error:
            told = {"errno": error.errno, "reason": error.reason}
        except OSError as error:
            told = {"oserror": error.errno}
        print(json.dumps(told, default=repr), flush=True)
"""


class User:
    """A program of a user; `does` evaluates what a line of it says, with one connection, `kernel`."""

    def __init__(self, uid: int, home: Path, environment: dict[str, str], groups: Sequence[int] = ()) -> None:
        self.uid, self.home = uid, home
        for name in ("run", "state", "config"):
            (home / name).mkdir(parents=True, mode=0o700)
            os.chown(home / name, uid, uid)
        places = {"XDG_RUNTIME_DIR": home / "run", "XDG_STATE_HOME": home / "state", "XDG_CONFIG_HOME": home / "config"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", dedent(_PROGRAM), str(uid), json.dumps(list(groups))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment | {name: os.fspath(place) for name, place in places.items()},
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def does(self, expression: str) -> Any:
        """The value of a Python expression, as JSON has it. Raises SyscallError, OSError."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(expression) + "\n")
        self.process.stdin.flush()
        told = json.loads(self.process.stdout.readline())
        if "oserror" in told:
            raise OSError(told["oserror"], os.strerror(told["oserror"]))
        if "errno" in told:
            raise SyscallError(Errno(told["errno"]), told["reason"])
        return told["value"]

    def connect(self, timeout: float = PATIENCE) -> None:
        """Connect to the kernel that a program finds which names none."""
        self.does(f"here.__setitem__('kernel', blocking.connect(runtime.default(), name='test', timeout={timeout}))")

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(PATIENCE)
        self.process.stdout.close()


class Machine:
    def __init__(self, base: Path) -> None:
        self.base = base
        base.chmod(0o755)
        self.run, self.state = base / "run" / "llmasos", base / "var" / "lib" / "llmasos"
        for place, mode in ((self.run, 0o711), (self.state, 0o700)):  # as the service manager makes them
            place.parent.mkdir(parents=True)
            place.mkdir()
            place.chmod(mode)
            os.chown(place, SERVICE, SERVICE)
        (base / "etc" / "llmasos").mkdir(parents=True)
        drop = ("LLMASOS_RUNTIME", "NOTIFY_SOCKET", "XDG_SESSION_ID")
        self.environment = {name: value for name, value in os.environ.items() if name not in drop}
        self.environment |= {runtime.SYSTEM: os.fspath(base), "LLMASOS_CACHE": ""}
        self.kernel: subprocess.Popen[str] | None = None
        self.users: list[User] = []

    def configure(self, text: str) -> None:
        (self.base / "etc" / "llmasos" / "kernel.toml").write_text(text)

    def command(self, *words: str, uid: int = SERVICE, groups: Sequence[int] = ()) -> list[str]:
        """The command that boots its kernel, as the service's user; `words` instead of the module's command line."""
        gids = ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
        who = ["setpriv", "--reuid", str(uid), "--regid", str(uid), *gids]
        who += ["--inh-caps", CAPABILITY, "--ambient-caps", CAPABILITY]
        return [*who, *(words or [sys.executable, "-m", "llmasos.kernel.edge.boot", "--system", *SIM])]

    def boot(self, *words: str, groups: Sequence[int] = (), **environment: str) -> subprocess.Popen[str]:
        kernel = self.kernel = subprocess.Popen(
            self.command(*words, groups=groups),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment | environment,
        )
        wait_for_kernel(self.run, lambda: kernel.poll() is None)
        return kernel

    def user(self, uid: int, groups: Sequence[int] = ()) -> User:
        home = self.base / "home" / f"{uid}-{len(self.users)}"
        self.users.append(user := User(uid, home, self.environment, groups))
        return user

    def connect(self) -> blocking.Client:
        """As root."""
        return blocking.connect(self.run, name="root", timeout=PATIENCE)

    def end_kernel(self, number: signal.Signals = signal.SIGTERM) -> str:
        """Signal the kernel; what it has printed."""
        assert self.kernel is not None
        kernel, self.kernel = self.kernel, None
        kernel.send_signal(number)
        said, _ = kernel.communicate(timeout=PATIENCE)
        return said

    def end(self) -> None:
        for user in self.users:
            user.end()
        if self.kernel is not None:
            with suppress(ProcessLookupError):
                self.end_kernel()


@contextmanager
def machine() -> Iterator[Machine]:
    """One without a kernel yet; what programs of this process find is that machine's."""
    found = Machine(Path(tempfile.mkdtemp(prefix="llmasos-")))
    before = os.environ.get(runtime.SYSTEM)
    os.environ[runtime.SYSTEM] = os.fspath(found.base)
    try:
        yield found
    finally:
        if before is None:
            del os.environ[runtime.SYSTEM]
        else:
            os.environ[runtime.SYSTEM] = before
        found.end()
        shutil.rmtree(found.base)

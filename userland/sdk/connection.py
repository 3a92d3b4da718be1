"""How a program of the SDK connects: to the kernel that runs, or to a private one that it boots.

The blocking face stands on this, the asynchronous one on connection_async.py.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from llmasos.syscalls import blocking, calls, runtime, scarce
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.forked import Origin
from llmasos.syscalls.reconnect import RECONNECT_SECONDS
from llmasos.syscalls.remote import Place
from llmasos.syscalls.table import Call
from llmasos.userland.programs.boot import private_kernel
from llmasos.userland.sdk import script
from llmasos.userland.sdk.public import public
from llmasos.userland.sdk.turns import Talking

if TYPE_CHECKING:
    from llmasos.syscalls import client

R = TypeVar("R")
T = TypeVar("T")
Connected = TypeVar("Connected", "blocking.Client", "client.Client")

_LASTING = {"--detach", "--help", "-h", "--runtime", "--die-with-parent", "--own-runtime", "--system"}
Where = str | os.PathLike[str] | None  # a runtime directory; None: `$LLMASOS_RUNTIME`, else the user's usual one


@scarce.told()
def kernel_there(stack: ExitStack, where: Where, boot: bool, flags: Sequence[str]) -> Path:
    """The runtime directory to connect to. With `boot`, boot a private kernel if none runs there."""
    place = runtime.locate(where)
    if other := {*flags} & _LASTING:
        raise SyscallError(
            Errno.EINVAL,
            f"flags: {min(other)} is not for a private kernel, which ends with its program and is in the directory that "
            "connect() names; `llmasos boot` starts one that lasts",
        )
    if boot and runtime.holder(place) is None:
        if where is None:  # a directory of its own: the usual one stays free for a system people share
            place = stack.enter_context(_own_directory())
        stack.enter_context(private_kernel(place, flags, own_runtime=where is None))
    return place


def in_a_thread(work: Callable[..., T], *arguments: object) -> T:
    """Run `work`, which takes a while. (The asynchronous face does it in a thread.)"""
    return work(*arguments)


def from_threads() -> Callable[[Callable[[], object]], None]:
    """What does something for other threads: a blocking connection is for all."""

    def act(what: Callable[[], object]) -> None:
        with suppress(SyscallError):  # this program, or the kernel, has gone
            what()

    return act


@contextmanager
def _own_directory() -> Iterator[Path]:
    """A temporary directory while the `with` lasts. A fork of this program does not remove it, as tempfile's would."""
    scarce.check_descriptors(1)
    origin, place = Origin(), tempfile.mkdtemp(prefix="llmasos-")
    try:
        yield Path(place)
    finally:
        if origin.here:
            shutil.rmtree(place, ignore_errors=True)


def shown(connection: object, kernel: blocking.Client | client.Client | None) -> str:
    """A connection as `repr` shows it: its kernel, its pid, and whether calls can be made."""
    kind = type(connection).__name__
    if kernel is None:
        return f"<{kind}, not connected>"
    state = "closed" if kernel.closed else "waiting for the next kernel" if kernel.away else "connected"
    return f"<{kind} of {kernel.place}, pid {kernel.pid}, {state}>"


def finding(kernel: Connected) -> Connected:
    """A connection whose kernel does not open files for this program looks for models that it does not know by name among
    this user's: in his cache of the hub, and what other programs keep."""
    if kernel.showing is not None:
        kernel.showing.find = _found
    return kernel


def _found(name: str) -> str:
    from llmasos.modelfiles import source  # late: it imports HTTP and TLS for names of the hub

    return os.path.abspath(source.find(name, weights=True))


def closed(directory: Place) -> SyscallError:
    return SyscallError(Errno.EPIPE, f"this connection to {directory} is closed; connect anew (System.connect())")


class Connection:
    """A blocking connection: `with System.connect() as system`, or `System.connect()` and `close`."""

    kernel: blocking.Client
    """What makes its system calls."""

    @public
    def __init__(self, kernel: blocking.Client, cleanup: ExitStack) -> None:
        self.kernel = finding(kernel)
        self.talking = Talking()
        self._cleanup = cleanup
        # A system that a program still holds at its end is closed in order; one that it drops is closed then. (Its
        # processes and streams hold it too.)
        atexit.register(cleanup.close)

    @classmethod
    @public
    def connect(
        cls,
        where: Where = None,
        *,
        boot: bool = False,
        flags: Sequence[str] = (),
        name: str = "",
        timeout: float = calls.CONNECT_SECONDS,
        reconnect: float = RECONNECT_SECONDS,
        key: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Connect to the kernel of a runtime directory (None: `$LLMASOS_RUNTIME`, else the user's usual one), or of
        `tcp://HOST:PORT` on another machine, with the key in the file `key` (None: the user's own, of `llmasos key new`).

        With `boot`, boots a private kernel where none runs, with the `flags` of `llmasos boot`; that kernel ends with
        this system, or with this OS process, however it ends. `name` is the program's name in the process table. A kernel
        answers within `timeout` seconds, or ETIME is raised. When a kernel with a journal dies, waits `reconnect` seconds
        for the next one; calls and streams then go on where they were. Raises ECONNREFUSED where no kernel runs, EIO if a
        private one does not boot.

        Example:
            with llmasos.System.connect(place) as here:
                print(len(here.ps()), "processes")
        """
        timeout, reconnect = script.seconds(timeout), script.seconds(reconnect, "reconnect")
        with ExitStack() as stack:
            place = where if runtime.is_remote(where) else kernel_there(stack, where, boot, flags)
            kernel = stack.enter_context(
                blocking.connect(place, name=name, timeout=timeout, reconnect=reconnect, key=key)
            )
            return cls(kernel, stack.pop_all())

    def __repr__(self) -> str:
        return shown(self, self.kernel)

    def __del__(self) -> None:
        kernel: blocking.Client | None = getattr(self, "kernel", None)
        if kernel is not None and not kernel.closed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=1)
            self.close()

    @public
    def __enter__(self) -> Self:
        self.kernel.origin.check()
        if self.kernel.closed:
            raise closed(self.kernel.place)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End this program and all it spawned but the detached; a private kernel halts. A second call does nothing.

        Example:
            here = llmasos.System.connect(place)
            here.close()
        """
        atexit.unregister(self._cleanup.close)
        self._cleanup.close()

    def __call__(self, call: Call[R], *, timeout: float | None = None) -> R:
        """Make a system call: `call` is a record of `llmasos.syscalls.table`, and what it returns is in docs/syscalls.md.
        Raises SyscallError; ETIME after `timeout` seconds, when it is taken back.

        Example:
            from llmasos.syscalls.table import Getinfo
            row = system(Getinfo(agent.pid), timeout=5)
        """
        try:
            return self.kernel(call, timeout=None if timeout is None else script.seconds(timeout))
        except calls.Overdue as error:
            raise SyscallError(error.errno, error.reason) from None

    @public
    def run(self, what: script.Script[T], timeout: float | None = None) -> T:
        """Run a script, a generator that yields system calls and is sent their results, to what it returns. After
        `timeout` seconds the script cleans up, and ETIME is raised.

        Example:
            from llmasos.userland.sdk import actions
            ids = system.run(actions.log_of(agent.pid), timeout=5)
        """
        return script.run(self.kernel, what, timeout)

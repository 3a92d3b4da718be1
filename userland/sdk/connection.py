"""How a program of the SDK is connected: to the kernel that runs, or to a private one it boots.

The blocking face stands on this; connection_async.py is the other.
"""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from llmasos.syscalls import blocking, runtime
from llmasos.syscalls.reconnect import RECONNECT_SECONDS
from llmasos.syscalls.table import Call
from llmasos.userland.programs.boot import private_kernel
from llmasos.userland.sdk import script

R = TypeVar("R")
T = TypeVar("T")

Where = str | os.PathLike[str] | None


def kernel_there(stack: ExitStack, where: Where, boot: bool, flags: Sequence[str]) -> Path:
    """The runtime directory to connect to; with `boot`, a private kernel is booted there if none runs."""
    place = runtime.locate(where)
    if boot and runtime.holder(place) is None:
        if where is None:  # a directory of its own: the usual one stays free for a system people share
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmasos-")))
        stack.enter_context(private_kernel(place, flags))
    return place


class Connection:
    """A blocking connection."""

    def __init__(self, kernel: blocking.Client, cleanup: ExitStack) -> None:
        self.kernel = kernel
        self.talking: dict[int, Callable[[], bool]] = {}  # processes in a turn; see turns.alone
        self._cleanup = cleanup
        # Kept until closed: a stream whose system nobody names any more goes on, a forgotten one ends in good order.
        atexit.register(cleanup.close)

    @classmethod
    def connect(
        cls,
        where: Where = None,
        *,
        boot: bool = False,
        flags: Sequence[str] = (),
        name: str = "",
        reconnect: float = RECONNECT_SECONDS,
    ) -> Self:
        """Connect to the kernel of a runtime directory (default: the usual one).

        With `boot`, a private kernel is booted where none runs, with kernel.boot's `flags`; it ends with this system,
        or with this process, however that ends. A kernel with a journal that dies is waited for `reconnect` seconds;
        calls and streams then go on where they were. Raises ECONNREFUSED where no kernel runs, EIO if one cannot be
        booted.
        """
        with ExitStack() as stack:
            place = kernel_there(stack, where, boot, flags)
            kernel = stack.enter_context(blocking.connect(place, name=name, reconnect=reconnect))
            return cls(kernel, stack.pop_all())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End this program (and what it spawned, but for the detached); a private kernel halts. May be called again."""
        atexit.unregister(self._cleanup.close)
        self._cleanup.close()

    def __call__(self, call: Call[R]) -> R:
        """Make a system call."""
        return self.kernel(call)

    def run(self, what: script.Script[T]) -> T:
        """Run a script of system calls."""
        return script.run(self.kernel, what)

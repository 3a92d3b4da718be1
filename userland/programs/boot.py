"""boot: start a kernel as a child that ends with this program, and wait until it takes programs.

The child halts when the pipe on its stdin closes, and the operating system closes that pipe however this program ends. It
has a session of its own, so that Ctrl-C in the terminal goes to the program and does not end the system.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llmasos.syscalls import blocking, runtime
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Shutdown

BOOT_SECONDS = 60.0
HALT_SECONDS = 15.0


@contextmanager
def private_kernel(where: Path, flags: Sequence[str] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """A kernel in runtime directory `where` while the `with` lasts; `flags` are those of `python -m
    llmasos.kernel.edge.boot`.

    Raises EIO with the kernel's last words if it does not boot, ETIME if it takes longer than BOOT_SECONDS.
    """
    command = [
        *runtime.module("llmasos.kernel.edge.boot"),
        "--runtime",
        str(where),
        "--die-with-parent",
        *flags,
    ]
    with tempfile.TemporaryFile() as said:
        kernel = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=runtime.environment(),
        )
        try:
            _await(kernel, where, said.fileno())
            yield kernel
        finally:
            _end(kernel, where)


def _await(kernel: subprocess.Popen[bytes], where: Path, said: int) -> None:
    deadline = time.monotonic() + BOOT_SECONDS
    while not (runtime.holder(where) == kernel.pid and runtime.listening(where)):
        if kernel.poll() is not None:
            raise SyscallError(Errno.EIO, f"the kernel did not boot: {_tail(said) or f'status {kernel.returncode}'}")
        if time.monotonic() > deadline:
            raise SyscallError(Errno.ETIME, f"the kernel has not booted after {BOOT_SECONDS:.0f} s: {_tail(said)}")
        time.sleep(0.02)


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

"""The streams of a command: what redirections name, and the text that `$(...)` stands for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import TextIO

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.userland.shell import expansion, files, pipes
from llmasos.userland.shell.failing import MAX_DEPTH, deeper
from llmasos.userland.shell.session import Session
from llmasos.userland.shell.tree import Redirect, Script


def output_of(shell: Session, run: Callable[[Session, Script], int]) -> expansion.Output:
    """What a `$(...)` of a command stands for: what its script prints. `run` runs that in a subshell."""

    def output(script: Script) -> str:
        with deeper(f"$(...) stands within itself more than {MAX_DEPTH} deep"):
            inner = shell.subshell()
            reading, writing = pipes.pipe()
            said: list[str] = []
            reader = threading.Thread(target=lambda: said.append(_heard(reading)), name="llmasos-output", daemon=True)
            reader.start()
            inner.redirected(writing)
            try:
                shell.variables.status = run(inner, script)
            finally:
                pipes.close(writing)
                reader.join()
        if len(said[0]) > pipes.MAX_TEXT:
            raise SyscallError(Errno.E2BIG, f"$(...) keeps {pipes.MAX_TEXT >> 20} MiB; this printed more")
        return said[0]

    return output


def _heard(reading: TextIO) -> str:
    with reading:
        return reading.read(pipes.MAX_TEXT + 1)


def redirected(shell: Session, redirects: list[Redirect], output: expansion.Output, stack: ExitStack) -> Session:
    """A view with the streams that `redirects` name, which `stack` closes."""
    view = shell.view()
    for redirect in redirects:
        if redirect.operator == "2>&1":
            view.redirected(err=view.screen.out)
            continue
        if redirect.operator == ">&2":
            view.redirected(view.screen.err)
            continue
        said = expansion.text(shell.variables, redirect.target, output)
        if redirect.operator in ("<<<", "<<"):
            stream = pipes.from_text(said + ("\n" if redirect.operator == "<<<" else ""))
        else:
            stream = files.opened(said, redirect.operator)
        if redirect.operator.startswith("2"):
            stack.enter_context(files.closing_errors(said, stream, shell.screen))
        else:
            stack.enter_context(files.closing(said, stream))
        if redirect.operator.startswith("<"):
            view.input = stream
        elif redirect.operator.startswith("2"):
            view.redirected(err=stream)
        else:
            view.redirected(stream, stream if redirect.operator.startswith("&") else None)
    return view

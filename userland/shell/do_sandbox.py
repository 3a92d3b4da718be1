"""The command for programs of the host that are confined: sandbox."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import IO

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.rights_words import WORDS, rights_of, words_of
from llmasos.userland.sdk.process import Process
from llmasos.userland.shell.grammar import Line
from llmasos.userland.shell.session import INTERRUPTED, Session, does

_USUAL = ("read", "control")


@does("sandbox")
def _sandbox(shell: Session, line: Line) -> int:
    grants: dict[int | str | Process, Sequence[str]] = {}
    for word in line.all("--grant"):
        named, rights = _granted(shell, word)
        grants[named] = rights
    shell.screen.out.flush()
    source: IO[str] | int | None = shell.input
    if source is None and shell.job is not None and not shell.job.in_foreground:
        source = subprocess.DEVNULL
    started = shell.system.sandbox(
        line.words,
        grants=grants,
        read=line.all("--read"),
        write=line.all("--write"),
        network=line.has("--net"),
        directory=line.text("--dir"),
        stdin=source,
        stdout=shell.screen.out,
        stderr=shell.screen.err,
    )
    with started as program:
        try:
            return program.wait()
        except KeyboardInterrupt:
            return INTERRUPTED


def _granted(shell: Session, word: str) -> tuple[int | str, list[str]]:
    """`alice:read,control`, `/users/me/team:read`, or without rights."""
    name, colon, rights = word.rpartition(":")
    if not colon or not set(rights.split(",")) <= WORDS.keys():
        name, rights = word, ",".join(_USUAL)
    if not name:
        raise SyscallError(Errno.EINVAL, f"{word!r} names no agent or group")
    what = name if "/" in name else shell.pid(name, agent=True)
    return what, words_of(rights_of([rights])).split(",")

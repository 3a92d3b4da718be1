"""models pull and check: fetch a model into the hub's cache, and check that one is whole, with progress.

On a terminal one line shows the progress; elsewhere a line at intervals. Ctrl-C leaves what has arrived, and the next
`pull` goes on with it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmasos.modelfiles import cache, check, hub, names, stores
from llmasos.modelfiles.hub import Progress
from llmasos.modelfiles.names import Kind
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.printable import printable
from llmasos.userland.programs.figures import bar, duration, size
from llmasos.userland.programs.listing import Field, Listing
from llmasos.userland.programs.screen import Screen
from llmasos.userland.programs.table import NAME

_LINE_SECONDS = 0.1  # between two looks at a terminal
_PLAIN_SECONDS = 5.0  # between two lines without one
_BAR = 20
_STYLES = {check.OK: "", check.NOTE: "yellow", check.REFUSED: "bold red", check.BROKEN: "bold red"}


class Meter:
    """The progress of something, on a screen; `clock` in seconds."""

    def __init__(self, screen: Screen, clock: Callable[[], float] = time.monotonic) -> None:
        self._screen, self._clock = screen, clock
        self._next = 0.0
        self._start: tuple[float, int] | None = None
        self._drawn = False
        self._waits = ""

    def __call__(self, what: str, done: int, total: int, waits: str = "") -> None:
        now = self._clock()
        if self._start is None:
            self._start = (now, done)
            self._next = now if self._screen.terminal else now + _PLAIN_SECONDS
        if now < self._next and (not waits or waits == self._waits):
            return
        self._waits = waits
        terminal = self._screen.terminal
        self._next = now + (_LINE_SECONDS if terminal else _PLAIN_SECONDS)
        text = self._text(printable(waits or what, one_line=True), done, total, now, moves=not waits)
        if not terminal:
            self._screen.line(text)
            return
        width = self._screen.width - 1
        drawn = f"{bar(done / total if total else 1.0, _BAR)} {text}"
        self._screen.out.write("\r\x1b[K" + drawn[:width])
        self._screen.out.flush()
        self._drawn = True

    def _text(self, what: str, done: int, total: int, now: float, *, moves: bool) -> str:
        begun, at = self._start or (now, done)
        speed = (done - at) / (now - begun) if now > begun else 0.0
        text = f"{done / total if total else 1.0:4.0%}  {size(done)} of {size(total)}"
        if speed > 0 and moves:
            text += f"  {size(speed)}/s, {duration((total - done) / speed)} left"
        return f"{text}  {what}"

    def close(self) -> None:
        """End the terminal's line."""
        if self._drawn:
            self._screen.out.write("\r\x1b[K")
            self._screen.out.flush()
            self._drawn = False


def pull(screen: Screen, text: str) -> Path:
    """Fetch the hub's present files of a model, and print its place. Raises the errors of hub.pull, EINVAL for a name
    that is not one of the hub."""
    name = names.parse(text)
    if name.kind is Kind.STORE and not text.lower().startswith(tuple(f"{one}:" for one in names.STORES)):
        raise SyscallError(
            Errno.EINVAL, f"{text} is a name of Ollama's; a model of the hub is org/name (or org/name:Q4_K_M)"
        )
    if name.kind is not Kind.HUB:
        raise SyscallError(Errno.EINVAL, f"{text} is no model of the hub (org/name); there is nothing to fetch")
    meter = Meter(screen)

    def said(progress: Progress) -> None:
        others = f" and {progress.others} more" if progress.others else ""
        meter(f"{progress.file}{others}", progress.done, progress.total, progress.waits)

    try:
        place = hub.pull(name, said)
    except KeyboardInterrupt:
        meter.close()
        screen.error(f"interrupted; `models pull {text}` goes on where it was")
        raise
    finally:
        meter.close()
    screen.line(f"{name.canonical()} is in {place}")
    return place


def place_of(text: str) -> Path:
    """The place of a model, without fetching anything; for one of the hub, its files in the cache, whole or not. Raises
    ENOENT."""
    name = names.parse(text)
    if name.kind is Kind.STORE:
        return stores.lookup(name).path
    if name.kind is Kind.PATH:
        place = Path(name.path)
        if not place.exists():
            raise SyscallError(Errno.ENOENT, f"no model {text!r}: there is no such directory or file")
        return place
    whole = cache.find(name, weights=True)
    if whole is not None:
        return whole
    commit = cache.commit_of(name.repo, name.revision)
    place = cache.snapshot(name.repo, commit or "") / name.folder
    if commit is None or not place.is_dir():
        known = [one.name for one in stores.found()]
        hint = names.near(text, known) or "; `llmasos models pull` fetches it"
        raise SyscallError(Errno.ENOENT, f"{name.canonical()} is not in {cache.directory()}{hint}")
    return place


def checked(screen: Screen, text: str, *, quiet: bool = False) -> tuple[Path, list[check.Finding]]:
    """All findings about a model's files."""
    place = place_of(text)
    meter = Meter(screen)

    def said(what: str, done: int, total: int) -> None:
        if not quiet and screen.terminal:
            meter(what, done, total)

    try:
        return place, list(check.check(place, said))
    finally:
        meter.close()


# The findings, with broken ones in red.
FINDINGS: Listing[check.Finding] = Listing(
    (
        Field("STATUS", "status", keep=8),
        Field("WHAT", "what", style="bold", keep=NAME),
        Field("FOUND", "found", elastic=True, keep=NAME, least=30),
    ),
    style=lambda one: _STYLES[one.status],
)


def checked_record(text: str, place: Path, findings: list[check.Finding]) -> dict[str, Any]:
    """The findings for JSON."""
    return {
        "name": text,
        "path": os.fspath(place),
        "broken": any(one.status == check.BROKEN for one in findings),
        "refused": any(one.status == check.REFUSED for one in findings),
        "findings": findings,
    }
